"""How well a model obeys: what it was asked for beside what is measured, and whether the rest follows the law."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.utils import CommonKeys
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..checks import SettingError, is_number, suggest
from ..data.conditions import read_condition
from ..data.spheres import PARAMETERS, SphereLaw
from ..model.generator import VolumeGenerator
from ..model.tokens import CONDITION
from .fidelity import score_parameters
from .lines import Line
from .measurement import measure_dataset
from .store import VolumeStore

# The most that the root mean square error of a parameter may be: voxels for radius and centre, units of the values.
ERRORS: Mapping[str, float] = {**dict.fromkeys(("r", "cx", "cy", "cz"), 0.25), **dict.fromkeys("ab", 0.02)}


@dataclass(frozen=True)
class Case:
    """What was found where some parameters were asked for and the others were free.

    Args:
        asked: names of the parameters.
        guidance: of the sampling; 1 is none.
        lines: those of ``score_parameters`` and of ``score_control``, by name.
    """

    asked: tuple[str, ...]
    guidance: float
    lines: Mapping[str, Line]

    @property
    def free(self) -> tuple[str, ...]:
        """The parameters that were not asked for."""
        return tuple(name for name in PARAMETERS if name not in self.asked)

    @property
    def label(self) -> str:
        """What was asked for, in words."""
        return "all" if not self.free else ", ".join(self.asked) or "nothing"

    @property
    def failed(self) -> list[str]:
        """The lines that go beyond their limit, but for the law of what was asked for: it is that of the requests."""
        given = {f"ks_{name}" for name in self.asked}
        return [name for name, line in self.lines.items() if not line.ok and name not in given]

    def share(self, name: str) -> float:
        """Return a line's value as a share of its limit; NaN where it could not be had."""
        line = self.lines.get(name)
        return math.nan if line is None or not line.limit else line.value / line.limit

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        lines = {name: line.as_dict() for name, line in self.lines.items()}
        return {"asked": list(self.asked), "guidance": self.guidance, "volumes": lines, "failed": self.failed}

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> Case:
        """Read back what ``as_dict`` returned."""
        lines = {name: Line.from_dict(line) for name, line in known["volumes"].items()}
        return cls(tuple(known["asked"]), known["guidance"], lines)


@dataclass(frozen=True)
class Control:
    """What was found of a model.

    Args:
        cases: what it was asked for, and what came.
        real: the same of the real spheres whose parameters were asked for: what a perfect model scores.
    """

    cases: tuple[Case, ...]
    real: Case


def check_cases(cases: Any, names: Sequence[str]) -> None:
    """Refuse cases that are none, before any work.

    Args:
        cases: as ``evaluate_control`` takes them.
        names: the conditions that the model knows.

    Raises:
        SettingError: when a case is no such dictionary, or asks for what the model does not know.
    """
    form = "must be a list of {'asked': ['r', 'a'], 'guidance': 1.0}, each of its names one of conditions"
    if not names or set(names) - {*PARAMETERS}:
        raise SettingError(f"conditions={list(names)}: must be parameters of spheres, of {', '.join(PARAMETERS)}.")
    if not isinstance(cases, Sequence) or not cases:
        raise SettingError(f"cases={cases!r}: {form}.")
    for case in cases:
        right = isinstance(case, Mapping) and {*case} == {"asked", "guidance"} and isinstance(case["asked"], list)
        if not right or not is_number(case["guidance"]) or case["guidance"] < 0:
            raise SettingError(f"cases: {case!r}: {form}.")
        for name in case["asked"]:
            if name not in names:
                raise SettingError(f"cases: {name!r} is none of conditions={list(names)}{suggest(str(name), names)}")


def score_control(measured: Mapping[str, np.ndarray], asked: Mapping[str, np.ndarray]) -> dict[str, Line]:
    """Compare what was measured with what was asked for.

    Args:
        measured: arrays of shape (N,), as ``measure_dataset`` gives them.
        asked: what volumes were asked for, (N,), by parameter.

    Returns:
        Lines by name, over the volumes with a sphere, of measured less asked: ``bias_r``, the mean, with its
        ``standard_error``; ``rmse_r``, the root mean square, which has a limit; ``quantile_r``, what the absolute value
        of 95% stays within; and so on for each parameter.
    """
    lines = {}
    for name, values in asked.items():
        errors = measured[name] - values
        errors = errors[np.isfinite(errors)]
        if not len(errors):
            continue
        count = len(errors)
        lines[f"rmse_{name}"] = Line(float(np.sqrt((errors**2).mean())), count=count, limit=ERRORS[name])
        lines[f"bias_{name}"] = Line(float(errors.mean()), standard_error=float(errors.std() / math.sqrt(count)))
        lines[f"quantile_{name}"] = Line(float(np.quantile(np.abs(errors), 0.95)), count=count)
    return lines


@torch.no_grad()
def evaluate_control(
    generator: VolumeGenerator,
    noise: Callable[..., Dataset],
    spheres: Dataset,
    law: SphereLaw,
    cases: Sequence[Mapping[str, Any]],
    inferer: Inferer,
    batch_size: int = 16,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Control:
    """Ask a model for the parameters of real spheres, and measure what it returns.

    The requests are drawn from the law, so that whatever is asked for, all parameters of the volumes that a perfect
    model returns follow the law together, those that were free included: they have the lines and limits of volumes of
    which nothing was asked. The real spheres themselves are what such a model scores.

    Args:
        generator: the model, with weights.
        noise: makes the N items of ``LatentNoise`` from ``requests``, the same noise for each case.
        spheres: N items of ``SphereDataset``.
        law: the true distribution.
        cases: each ``{"asked": names, "guidance": number}``.
        inferer: runs the model on batches.
        batch_size: volumes at a time.
        num_workers: processes that make the items, and measure the volumes.
        device: of the model; without other processes volumes are measured there.

    Returns:
        What was found.

    Raises:
        SettingError: when the inferer of ``generator`` knows no guidance and a case has some.
    """
    assert generator.tokens is not None
    names = generator.tokens.names
    for case in cases:
        generator.check_guidance(case["guidance"])
    count = len(spheres)  # type: ignore[arg-type]
    true = torch.stack([read_condition(spheres[i], names) for i in range(count)])
    real = measure_dataset(spheres, batch_size, num_workers, device=device)

    def score(measured: Mapping[str, np.ndarray], asked: tuple[str, ...], guidance: float) -> Case:
        wanted = {name: true[:, names.index(name)].double().numpy() for name in asked}
        return Case(asked, guidance, score_parameters(measured, law) | score_control(measured, wanted))

    generator.eval()
    found = []
    for number, case in enumerate(cases, start=1):
        asked = tuple(name for name in names if name in case["asked"])
        requests = torch.where(torch.tensor([name in asked for name in names]), true, math.nan)
        generator.guidance = float(case["guidance"])
        store = VolumeStore(count)
        store.start()
        items = DataLoader(noise(requests=requests), batch_size, num_workers=num_workers)
        for batch in tqdm(items, desc=f"request {number} of {len(cases)}", leave=False):
            latents, *others = (batch[key].to(device) for key in (CommonKeys.IMAGE, "texture", CONDITION))
            store.add(inferer(latents, generator, *others))
        found.append(score(measure_dataset(store, batch_size, num_workers, device=device), asked, generator.guidance))
    return Control(tuple(found), score(real, tuple(names), 1.0))

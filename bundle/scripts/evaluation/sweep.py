"""What each condition does to a volume: one noise, one value moved through its range."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.inferers import Inferer
from monai.utils import CommonKeys
from PIL import Image
from torch.utils.data import Dataset

from ..atomic import replacing
from ..model.generator import VolumeGenerator
from .slices import PLANES, WINDOW, orthogonal_slices, save_figure

logger = logging.getLogger(__name__)

BASE = 0.25  # where in its range a radius stands while others move, so that the centre has room


def make_sweep(names: Sequence[str], ranges: torch.Tensor, steps: int, size: int | None = None) -> torch.Tensor:
    """Make the requests of a sweep: ``steps`` for each condition, which moves while the others stay.

    Args:
        names: the K conditions.
        ranges: least and greatest value of each, (K, 2).
        steps: from one end of a range to the other.
        size: of the grid that the ball has to lie in, in voxels; ``None`` where the volumes are no spheres.

    Returns:
        Shape (K, steps, K).
    """
    low, high = ranges.double().cpu().unbind(dim=1)
    base = (low + high) / 2
    if size is not None and "r" in names:
        r = names.index("r")
        base[r] = low[r] + BASE * (high[r] - low[r])
        for i, name in enumerate(names):
            if name in ("cx", "cy", "cz"):
                low[i], high[i] = base[r], size - base[r]
    requests = base.expand(len(names), steps, -1).clone()
    for i in range(len(names)):
        requests[i, :, i] = torch.linspace(float(low[i]), float(high[i]), steps, dtype=torch.float64)
    return requests.float()


@torch.no_grad()
def draw_sweep(
    generator: VolumeGenerator,
    noise: Dataset,
    inferer: Inferer,
    steps: int,
    output_dir: str | os.PathLike,
    size: int | None = None,
) -> None:
    """Draw a sweep: ``sweep.png``, a row for each condition, and ``sweep.gif``, all of them moving at once.

    Args:
        generator: a model that knows conditions, with weights.
        noise: whose first item, as ``LatentNoise``'s, all volumes are made from.
        inferer: runs the model on batches.
        steps: volumes a row.
        output_dir: the folder to write to; it is made.
        size: see ``make_sweep``.
    """
    assert generator.tokens is not None
    names, device = generator.tokens.names, generator.scale_factor.device
    requests = make_sweep(names, generator.tokens.ranges, steps, size)
    item = noise[0]
    latents, texture = (item[key].to(device) for key in (CommonKeys.IMAGE, "texture"))
    latents, texture = (part.expand(len(names) * steps, *part.shape) for part in (latents, texture))
    volumes = inferer(latents, generator.eval(), texture, requests.flatten(0, 1).to(device))
    planes = [1 if name == "cz" else 0 for name in names]  # an axial slice would not show it move
    rows = [
        [orthogonal_slices(volume)[plane] for volume in row]
        for plane, row in zip(planes, volumes.split(steps), strict=True)
    ]

    figure = Figure(figsize=(1.3 * steps + 1, 1.4 * len(names)), layout="compressed")
    axes = figure.subplots(len(names), steps, squeeze=False)
    for i, name in enumerate(names):
        for k, axis in enumerate(axes[i]):
            axis.imshow(rows[i][k], cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], origin="lower")
            axis.set_title(f"{name} = {requests[i, k, i].item():.3g}", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[i][0].set_ylabel(PLANES[planes[i]], fontsize=8)
    folder = Path(output_dir)
    save_figure(figure, folder / "sweep.png", dpi=100)

    low, high = WINDOW
    frames = []
    for k in [*range(steps), *range(steps - 2, 0, -1)]:  # there and back
        grey = np.concatenate([np.pad(row[k][::-1], 1, constant_values=high) for row in rows], axis=1)
        picture = Image.fromarray(((grey.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8))
        frames.append(picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST))
    with replacing(folder / "sweep.gif") as partial:
        frames[0].save(partial, format="GIF", save_all=True, append_images=frames[1:], duration=250, loop=0)
    logger.info("saved to %s", folder)

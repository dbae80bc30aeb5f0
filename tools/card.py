"""The model card of the Hugging Face hub, from the bundle's metadata and what its weights scored.

``make card`` writes it to ``bundle/README.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from scripts.evaluation.lines import Line
from scripts.evaluation.table import LABELS

NAME = "spheres_latent_diffusion"  # of the folder that MONAI's tools know the bundle by

BODY = """
# {name}

{description}

![Generated volumes](docs/figures/generated.png)

- Version: {version}, built with MONAI {monai_version} and PyTorch {pytorch_version}
- Task: {task}
- Intended use: {intended_use}
- Data: {data_source}
- The whole story: [docs/README.md](docs/README.md)

## Results

{num_samples} generated volumes beside as many real spheres, and the limits that they are held to, whatever the sign
(`configs/evaluate.json`).

| statistic | volumes | real spheres | limit | |
| --- | --- | --- | --- | --- |
{volumes}

Reconstruction of {test_size} held-out spheres; a name in `_oracle` is what a perfect denoiser scores, one in `_ratio`
the model's score over it.

| metric | value |
| --- | --- |
{reconstruction}

## How to use

Every command: [docs/README.md](docs/README.md). Every key: [docs/settings.md](docs/settings.md).

```bash
pip install {packages}
cd {folder}
python -m monai.bundle run --config_file configs/inference.json --num_samples 4
```

From Python, in the folder that holds `{folder}`:

```python
import torch
from monai.bundle import load

generator = load(
    "{folder}",
    bundle_dir=".",
    workflow_type="inference",
    device="cpu",
    args_file={{"bundle_root": "{folder}"}},
)
volumes = generator(torch.randn({noise}))
```

## Limitations

- It knows synthetic spheres alone, and has seen no medical image.
- It makes volumes of {size} voxels.
{failed}

## References

{references}

## Licence

Apache 2.0, see [LICENSE](LICENSE). {copyright}.
"""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _results(fidelity: Mapping[str, Any]) -> list[EvalResult]:
    scores = [("unconditional-image-generation", name, line["value"]) for name, line in fidelity["volumes"].items()]
    scores += [("image-to-image", name, value) for name, value in fidelity["reconstruction"].items()]
    return [
        EvalResult(
            task_type=task,
            dataset_type="synthetic",
            dataset_name="synthetic spheres",
            metric_type=name,
            metric_name=LABELS.get(name, name),
            metric_value=value,
        )
        for task, name, value in scores
    ]


def list_packages(metadata: Mapping[str, Any]) -> list[str]:
    """List the packages that a bundle's metadata name, with their versions, as pip takes them."""
    versions = {"torch": metadata["pytorch_version"]}
    versions |= {name: metadata[f"{name}_version"] for name in ("monai", "numpy")}
    return [f"{name}=={version}" for name, version in (versions | metadata["required_packages_version"]).items()]


def make_card(bundle_root: str | Path) -> ModelCard:
    """Make the card of a bundle.

    Args:
        bundle_root: folder of the bundle; its ``configs/metadata.json`` and ``models/fidelity.json`` are read.

    Returns:
        The card: metadata for the hub with every score, and a page.
    """
    metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text())
    fidelity = json.loads((Path(bundle_root) / "models" / "fidelity.json").read_text())
    data = ModelCardData(
        license="apache-2.0",
        library_name="monai",
        pipeline_tag="unconditional-image-generation",
        tags=["monai", "3d", "latent-diffusion", "synthetic-data"],
        model_name=metadata["name"],
        eval_results=_results(fidelity),
    )
    lines, real = ({name: Line.from_dict(line) for name, line in fidelity[key].items()} for key in ("volumes", "real"))
    volumes = [
        _row(
            LABELS.get(name, name),
            f"{line.value:.4f}",
            f"{real[name].value:.4f}" if name in real else "",
            line.bound,
            "" if line.limit is None else "holds" if line.ok else "**fails**",
        )
        for name, line in lines.items()
    ]
    failed = [
        f"- Beyond its limit: {LABELS.get(name, name)}, {line.value:.4f}, where the limit is {line.bound}."
        for name, line in lines.items()
        if not line.ok
    ]
    io = metadata["network_data_format"]
    noise, output = io["inputs"]["image"], io["outputs"]["pred"]
    page = BODY.format(
        **{
            key: value
            for key, value in metadata.items()
            if key not in ("references", "required_packages_version", "network_data_format")
        },
        **{key: fidelity["settings"][key] for key in ("num_samples", "test_size")},
        folder=NAME,
        volumes="\n".join(volumes),
        reconstruction="\n".join(_row(name, f"{value:.4f}") for name, value in fidelity["reconstruction"].items()),
        packages=" ".join(list_packages(metadata)),
        noise=", ".join(map(str, [2, noise["num_channels"], *noise["spatial_shape"]])),
        size=" x ".join(map(str, output["spatial_shape"])),
        failed="\n".join(failed) or "- It holds every limit above, which are not all there is to know.",
        references="\n".join(f"{i}. {reference}" for i, reference in enumerate(metadata["references"], start=1)),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{page}")


if __name__ == "__main__":
    root = Path(__file__).parents[1] / "bundle"
    make_card(root).save(root / "README.md")

"""The generator as files: the same numbers as in Python, loaded where this repository can not be imported."""

from pathlib import Path

import pytest
import torch
from conftest import BUNDLE, CONFIGS, make_workflow, run_process, run_workflow
from monai.bundle import ckpt_export

from scripts.tools.exports import UnrolledGenerator

STEPS = 3

# A process that knows nothing of this repository; it draws the texture of ten volumes from a fixed seed, then another.
LOAD = """
import importlib.util
import sys

import torch

assert importlib.util.find_spec("scripts") is None
path, noise, result = sys.argv[1:]
noise = torch.load(noise)
model = torch.jit.load(path) if path.endswith(".ts") else torch.export.load(path).module()
torch.manual_seed(0)
with torch.no_grad():
    torch.save([model(noise), model(noise), model(noise[:1])], result)
"""
LOAD_ONNX = """
import importlib.util
import sys

import onnxruntime
import torch

assert importlib.util.find_spec("scripts") is None
path, noise, result = sys.argv[1:]
noise = torch.load(noise)
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
outputs = [session.run(["voxels"], {"noise": x.numpy()})[0] for x in (noise, noise, noise[:1])]
torch.save([torch.from_numpy(output) for output in outputs], result)
"""


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(3, 32, 2, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def generator():
    """The released weights, at few steps so that exporting is quick."""
    workflow = make_workflow("inference", precision="float32", num_inference_steps=STEPS, device="cpu")
    return workflow.parser.get_parsed_content("network_def").eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The files that the documented commands write."""
    folder = tmp_path_factory.mktemp("exports")
    for use_trace in (True, False):  # the zoo's CI asks without
        ckpt_export(
            net_id="network_def",
            filepath=str(folder / f"model_{use_trace}.ts"),
            ckpt_file=str(BUNDLE / "models" / "model.pt"),
            meta_file=str(CONFIGS / "metadata.json"),
            config_file=str(CONFIGS / "inference.json"),
            bundle_root=str(BUNDLE),
            precision="float32",
            num_inference_steps=STEPS,
            use_trace=use_trace,
        )
    run_workflow("inference", "inference_export", output_dir=str(folder), num_inference_steps=STEPS)
    return folder


def run_export(program: str, path: Path, noise: torch.Tensor, folder: Path) -> list[torch.Tensor]:
    torch.save(noise, folder / "noise.pt")
    files = [str(folder / name) for name in ("noise.pt", "result.pt")]
    run_process("python", "-c", program, str(path), *files, folder=folder)
    return torch.load(folder / "result.pt")


@pytest.mark.parametrize("name", ["model_True.ts", "model_False.ts", "model.pt2"])
def test_export_matches_python(name, exported, generator, noise, tmp_path):
    """The same volumes as from Python, with another texture in each call."""
    first, second, one = run_export(LOAD, exported / name, noise, tmp_path)
    torch.manual_seed(0)
    for volumes, latents in ((first, noise), (second, noise), (one, noise[:1])):
        torch.testing.assert_close(volumes, generator(latents), atol=1e-4, rtol=0)
    # the same spheres, another texture
    assert torch.equal(first == 0, second == 0) and not torch.equal(first, second)


def test_onnx_voxel_distribution(exported, generator, noise, tmp_path):
    first, second, one = run_export(LOAD_ONNX, exported / "model.onnx", noise, tmp_path)
    assert torch.equal(first, second) and first.shape == (3, 3, 64, 64, 64)
    torch.testing.assert_close(one, first[:1], atol=1e-3, rtol=1e-3)
    # with the draw that its documentation gives, the generator's volumes
    texture = torch.randn(3, 1, 64, 64, 64)
    p, mean, std = first.chunk(3, dim=1)
    volumes, expected = torch.where(p > 0.5, mean + std * texture, 0.0), generator(noise, texture)
    differs = (volumes != 0) != (expected != 0)  # voxels whose odds are even but for rounding
    assert differs.float().mean() < 1e-5
    torch.testing.assert_close(volumes[~differs], expected[~differs], atol=2e-3, rtol=0)


@pytest.mark.parametrize("overlay", ["diffusion", "ddpm"])
def test_unrolled_loop_is_inferers(overlay, diffusion_weights, noise):
    """The loop that is exported is the inferer's, for every scheduler."""
    workflow = make_workflow(
        "inference",
        *(["diffusion", "ddpm"] if overlay == "ddpm" else ["diffusion"]),
        model_path=diffusion_weights["model_path"],
        num_train_timesteps=20,
        num_inference_steps=20 if overlay == "ddpm" else 4,
        precision="float32",
        device="cpu",
    )
    generator = workflow.parser.get_parsed_content("network_def").eval()
    torch.manual_seed(0)
    expected = generator(noise)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(UnrolledGenerator(generator)(noise), expected)

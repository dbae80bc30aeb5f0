"""Every overlay over every config that the table of the settings names, at smoke size."""

import pytest
import torch
from conftest import CONFIGS, find_mistake, make_workflow, run_workflow
from documents import read_overlays

PAIRS = read_overlays()
# These have tests of their own: test_exports.py, test_generative.py, test_scans.py.
ELSEWHERE = {"inference_export", "inference_convert", "generative", "tutorial", "evaluate_scans"}


def test_table_names_every_overlay():
    configs = {"train_autoencoder", "train_diffusion", "inference", "evaluate", "data", "metadata", "smoke"}
    assert {overlay for _, overlay in PAIRS} == {path.stem for path in CONFIGS.glob("*.json")} - configs


@pytest.fixture(scope="module")
def deterministic(tmp_path_factory) -> dict[str, str]:
    """Weights of both stages with the tutorials' autoencoder."""
    root = tmp_path_factory.mktemp("deterministic")
    run_workflow("train_autoencoder", "train_autoencoder_l1", "smoke", output_dir=str(root))
    autoencoder = str(root / "model_autoencoder.pt")
    run_workflow(
        "train_diffusion", "deterministic", "smoke", output_dir=str(root / "diffusion"), autoencoder_path=autoencoder
    )
    return {"autoencoder_path": autoencoder, "model_path": str(root / "diffusion" / "model.pt")}


@pytest.mark.parametrize(
    ("config", "overlay"), sorted((config, overlay) for config, overlay in PAIRS if overlay not in ELSEWHERE)
)
def test_overlay_runs(config, overlay, smoke, deterministic, tmp_path):
    weights = deterministic if "deterministic" in overlay else {name: str(path) for name, path in smoke.items()}
    keys = {"train_diffusion": ["autoencoder_path"], "inference": ["model_path"]}
    keys["evaluate"] = ["autoencoder_path", "model_path"]
    settings = {key: weights[key] for key in keys.get(config, [])}
    if overlay == "train_autoencoder_decoder":
        settings["autoencoder_path"] = weights["autoencoder_path"]
    if overlay == "ddpm":
        settings |= {"num_inference_steps": 20, "num_train_timesteps": 20}
    run_workflow(config, overlay, "smoke", output_dir=str(tmp_path), **settings)
    assert {path.name for path in tmp_path.rglob("*.*")} & {
        "model_autoencoder.pt",
        "model.pt",
        "samples.csv",
        "fidelity.json",
    }


def test_decoder_keeps_latents(smoke, tmp_path):
    """Training the decoder leaves the latents where they were."""
    path = str(smoke["autoencoder_path"])
    run_workflow(
        "train_autoencoder", "train_autoencoder_decoder", "smoke", autoencoder_path=path, output_dir=str(tmp_path)
    )
    before, after = torch.load(path), torch.load(tmp_path / "model_autoencoder.pt")
    for name, value in before.items():
        decodes = name.startswith(("decoder", "post_quant_conv"))
        assert torch.equal(value, after[name]) or decodes, name
    assert not all(torch.equal(value, after[name]) for name, value in before.items())


def test_ddpm_in_fewer_steps(smoke, tmp_path):
    weights = str(smoke["model_path"])
    message = find_mistake(
        lambda: make_workflow("inference", "ddpm", "smoke", output_dir=str(tmp_path), model_path=weights)
    )
    assert message.startswith("num_inference_steps=5: must be num_train_timesteps=1000")

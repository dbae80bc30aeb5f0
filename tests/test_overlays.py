"""Every overlay over every config that the table of the settings names, at smoke size."""

import pytest
from conftest import CONFIGS, SMALL, SMALL_BLOCKS, find_mistake, make_workflow, parse_config, read_config, run_workflow
from documents import read_overlays

from scripts.config import _check_names

PAIRS = read_overlays()
# These have tests of their own: test_exports.py, test_generative.py, test_scans.py, test_conditional.py.
ELSEWHERE = {"inference_export", "inference_convert", "generative", "tutorial", "evaluate_scans"}
ELSEWHERE |= {"conditional", "evaluate_conditional", "inference_sweep"}


def test_table_names_every_overlay():
    configs = {"train_autoencoder", "train_diffusion", "inference", "evaluate", "data", "metadata", "smoke"}
    overlays = {path.stem for path in CONFIGS.glob("*.json")} - configs
    # of several processes, which test_distributed.py runs
    assert {overlay for _, overlay in PAIRS} == {name for name in overlays if not name.startswith("multi_gpu")}


@pytest.mark.parametrize(("config", "overlay"), sorted(PAIRS))
def test_overlay_names_known_keys(config, overlay):
    """Without smoke.json, which allows keys that are known elsewhere."""
    _check_names(parse_config(config, overlay).get())


@pytest.fixture(scope="module")
def deterministic(tmp_path_factory) -> dict[str, str]:
    """Weights of both stages with the tutorials' autoencoder."""
    root = tmp_path_factory.mktemp("deterministic")
    settings = {**SMALL, "epochs": 1}
    run_workflow("train_autoencoder", "train_autoencoder_l1", "smoke", **settings, output_dir=str(root))
    path = str(root / "model_autoencoder.pt")
    run_workflow(
        "train_diffusion",
        "deterministic",
        "smoke",
        **settings,
        output_dir=str(root / "diffusion"),
        autoencoder_path=path,
    )
    return {"autoencoder_path": path, "model_path": str(root / "diffusion" / "model.pt")}


@pytest.mark.parametrize(
    ("config", "overlay"), sorted((config, overlay) for config, overlay in PAIRS if overlay not in ELSEWHERE)
)
def test_overlay_runs(config, overlay, small_weights, diffusion_weights, deterministic, tmp_path):
    keys = {"train_autoencoder": [], "train_diffusion": ["autoencoder_path"], "inference": ["model_path"]}
    keys["evaluate"] = ["autoencoder_path", "model_path"]
    kinds = {"diffusion": diffusion_weights, "ddpm": diffusion_weights}
    weights = deterministic if "deterministic" in overlay else kinds.get(overlay, small_weights)
    settings = SMALL | {key: weights[key] for key in keys[config]}
    # a model is sampled with the timesteps that it was trained with, by DDPM in as many steps
    overlays, steps = [overlay], 5
    if overlay == "ddpm":
        overlays, steps = ["diffusion", "ddpm"], 20
    if overlay == "large":
        settings |= SMALL_BLOCKS
    if overlay in kinds:
        settings |= {"num_train_timesteps": 20, "num_inference_steps": steps}
    settings = {key: value for key, value in settings.items() if key in read_config(config)}
    run_workflow(config, *overlays, "smoke", output_dir=str(tmp_path), **settings)
    written = {path.name for path in tmp_path.rglob("*.*")}
    assert written & {"model_autoencoder.pt", "model.pt", "samples.csv", "fidelity.json"}


def test_ddpm_in_fewer_steps(diffusion_weights, tmp_path):
    settings = {"output_dir": str(tmp_path), "model_path": diffusion_weights["model_path"]}
    message = find_mistake(lambda: make_workflow("inference", "diffusion", "ddpm", "smoke", **settings))
    assert message.startswith("num_inference_steps=5: must be num_train_timesteps=1000")


@pytest.mark.parametrize(("overlays", "weights"), [(["diffusion"], "small_weights"), ([], "diffusion_weights")])
def test_weights_of_other_process(overlays, weights, request, tmp_path):
    """Weights of a rectified flow are not sampled as a diffusion's, nor the other way round."""
    path = request.getfixturevalue(weights)["model_path"]
    message = find_mistake(lambda: make_workflow("inference", *overlays, "smoke", model_path=path, image_size=32))
    assert message.startswith("sampler=") and "rectified flow" in message and "diffusion" in message

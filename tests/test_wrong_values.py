"""A user's mistake gets one line that names the key, the value and what is allowed, before any work starts."""

import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, CONFIGS, SMALL, find_mistake, make_workflow, run_process, run_workflow

from scripts.data.preprocessing import ScanPreprocessing
from scripts.data.spheres import SphereLaw
from scripts.data.volumes import FolderDataset
from scripts.evaluation.measurement import measure_dataset
from scripts.evaluation.validity import explain_invalid

STAGES = ("train_autoencoder", "train_diffusion")
SAMPLING = ("inference", "evaluate")
ALL = (*STAGES, *SAMPLING, "data")
POSITIVE = "must be a positive integer"
SEED = "from 0 to 4294967295"
NAN, INF = float("nan"), float("inf")


def mistake(configs, tmp_path, **overrides) -> str:
    """The line for a mistake in ``config`` or ``config+overlay``, which is found before there is a folder."""
    output = tmp_path / "out"
    message = find_mistake(
        lambda: make_workflow(*configs.split("+"), "smoke", **{"output_dir": str(output), **overrides})
    )
    assert not output.exists(), "work had started"
    return message


def each(configs, *values):
    """The same wrong values in several configs."""
    return [(config, *value) for config in configs for value in values]


WRONG = [
    # keys that name nothing
    *each(ALL, ("bogus", 1, "no such key")),
    ("train_autoencoder", "epoch", 2, "did you mean epochs?"),
    ("train_diffusion", "encode_batchsize", 2, "did you mean encode_batch_size?"),
    ("inference", "num_sample", 3, "did you mean num_samples?"),
    ("evaluate", "test_siez", 3, "did you mean test_size?"),
    ("data", "benchmarksize", 3, "did you mean benchmark_size?"),
    ("inference", "epoch", 3, "no such key"),
    ("train_autoencoder", "law#rmax", 20, "did you mean r_max?"),
    ("train_autoencoder", "loss#klweight", 1, "did you mean kl_weight?"),
    ("train_autoencoder", "autoencoder_def#channel", 1, "did you mean channels?"),
    ("train_diffusion", "diffusion_def#num_channels", [32], "no such argument"),
    ("inference", "writer#spaceing", 1, "did you mean spacing?"),
    ("train_autoencoder", "autoencoder_def#_target_", "AutoencoderKLL", "no such class"),
    ("train_autoencoder", "loss#_target_", "scripts.model.losses.Loss", "no such class"),
    # counts
    *each(STAGES, *[("epochs", value, POSITIVE) for value in (0, -1, 2.5, "many", True, [1], NAN)]),
    *each(STAGES, ("train_size", 0, POSITIVE), ("val_size", "x", POSITIVE), ("val_interval", 0, POSITIVE)),
    *each(STAGES, ("train_batch_size", 0, POSITIVE), ("train_batch_size", 17, "at most train_size=16")),
    *each(STAGES, ("accumulation_steps", 0, POSITIVE)),
    *each(STAGES, ("keep_checkpoints", 0, "null (every one stays) or a positive integer")),
    ("train_diffusion", "encode_batch_size", 0, POSITIVE),
    ("train_diffusion", "num_train_timesteps", 2.5, POSITIVE),
    *each(SAMPLING, *[("num_samples", value, POSITIVE) for value in (0, -1, 1.5)]),
    *each(SAMPLING, ("sample_batch_size", 0, POSITIVE), ("preview_size", 0, POSITIVE)),
    *each(SAMPLING, ("network_batch_size", 0, POSITIVE), ("decode_window", 0, "or a positive integer")),
    *each(SAMPLING, ("decode_window", 3, "at most 2, the latents' size")),
    *each(SAMPLING, ("num_inference_steps", 1001, "at most num_train_timesteps=1000")),
    *each(("evaluate",), *[(key, 0, POSITIVE) for key in ("test_size", "diversity_size", "classifier_epochs")]),
    *each(("data",), ("benchmark_size", 1.5, POSITIVE), ("preview_size", 0, POSITIVE)),
    # numbers
    *each(STAGES, *[("lr", value, "must be a number above 0") for value in (0, -1e-3, NAN, INF, "fast", True)]),
    *[("train_autoencoder", "kl_weight", value, "of at least 0") for value in (-1, NAN, "1")],
    *[("train_diffusion", "ema_span", value, "above 0 and below 0.28") for value in (0, 0.5, "x")],
    *each(("train_autoencoder", "evaluate"), *[("data_range", value, "above 0") for value in (0, -10, "x")]),
    *each(ALL, *[("seed", value, SEED) for value in (-1, 1.5, 99999999999999999999, "x")]),
    *each(ALL, ("num_workers", -1, "at least 0"), ("num_workers", 500, "four for each of the")),
    *each(STAGES, ("resume", "maybe", "auto, true or false"), ("resume", 1, "auto, true or false")),
    ("train_autoencoder", "resume", True, "holds no checkpoint"),
    ("train_autoencoder", "activation_checkpointing", 1, "true or false"),
    ("train_autoencoder", "lr_scheduler#warmup", 2, "from 0 to 1"),
    ("train_diffusion", "lr_scheduler#warmup", -1, "from 0 to 1"),
    ("train_autoencoder", "optimizer#betas", [2, 3], "Invalid beta parameter"),
    ("evaluate", "score#tolerance", -1, "of at least 0"),
    # expressions
    ("train_autoencoder", "epochs", "$1 / 0", "division by zero"),
    ("train_autoencoder", "epochs", "$two", "name 'two' is not defined"),
    ("train_autoencoder", "epochs", "@two", "`@two` is not defined"),
    # machine and places
    *each(ALL, ("device", "gpu", "not on this machine"), ("device", "auto", "cpu or cuda:0")),
    ("inference", "device", "cuda:77", "cpu"),
    *each(ALL, ("precision", "fp16", "auto, float32, bf16, float16"), ("precision", 16, "auto, float32, bf16")),
    *each(ALL, ("output_dir", "/proc/none", "made and written to"), ("output_dir", 2024, "made and written to")),
    *each(STAGES, ("ckpt_dir", "/proc/none", "made and written to")),
    *each((*STAGES, "data"), ("dataset_dir", "/none/scans", "no such folder"), ("dataset_dir", 3, "a datalist")),
    ("evaluate", "dataset_dir", "/none/scans", "no such folder"),
    # volumes
    *each(ALL, ("image_size", 0, POSITIVE), ("image_size", 64.0, POSITIVE)),
    ("train_autoencoder", "train#batch_size", 4, "no such key"),
    *each((*STAGES, *SAMPLING), ("image_size", 40, "a multiple of 32"), ("image_size", 2048, "GiB of memory")),
    ("train_autoencoder", "image_size", 1024, "1520.0 GiB of memory"),
    *each(STAGES, ("spacing", 1, "three numbers above 0"), ("spacing", [1, 1, 0], "three numbers above 0")),
    *each(STAGES, ("window", [1], "the lower first"), ("window", [5, 1], "the lower first")),
    *each(STAGES, ("crop", "left", "center or foreground"), ("normalize", "maybe", "true or false")),
    *each(("data",), ("channel", -1, "at least 0"), ("split_seed", -1, SEED)),
    *each(
        ("train_autoencoder", "data"),
        ("law#r_max", 40, "at most 32.0 voxels"),
        ("law#r_min", 0, "above 0"),
        ("law#a_min", 1, "must not exceed"),
        ("law#b_min", -1, "must not be negative"),
        ("law#r_max", "wide", "a finite number"),
        ("law#size", 63.5, POSITIVE),
    ),
    # networks
    ("train_autoencoder", "loss#mean_weight", -1, "at least 0"),
    ("train_autoencoder", "loss#normal_weight", "x", "at least 0"),
    *each(
        STAGES,
        ("autoencoder_def#channels", [8, 16], "the stride must be 16"),
        ("autoencoder_def#channels", [32, 64, -64], "must be positive integers"),
        ("autoencoder_def#channels", "many", "must be positive integers"),
        ("autoencoder_def#norm_num_groups", 7, "all channels being multiple of norm_num_groups"),
        ("autoencoder_def#attention_levels", [False], "same size of attention_levels"),
        ("autoencoder_def#latent_channels", 0, POSITIVE),
        ("autoencoder_def#spatial_dims", 2, "must be 3"),
        ("autoencoder_def#in_channels", 1, "must be 3"),
        ("autoencoder_def#out_channels", 3, "must be 192"),
    ),
    ("train_diffusion", "encode_size", 0, POSITIVE),
    ("train_diffusion", "encode_size", 17, "at most train_size=16"),
    ("train_diffusion", "diffusion_def#channels", [97], "multiple of norm_num_groups"),
    ("train_diffusion", "diffusion_def#in_channels", 5, "must be 32"),
    ("inference", "diffusion_def#out_channels", 5, "must be 32"),
    ("inference", "latent_shape", [4, 4], "four positive integers"),
    ("inference", "latent_shape", [32, 8, 8, 8], "[2, 2, 2]"),
    ("train_diffusion", "latent_stride", 16, "must be 32"),
    ("inference", "num_train_timesteps", 10, "must be 1000"),
    # conditions
    ("inference", "ask", "r=20", "names and numbers"),
    ("inference", "requests", 3, "a CSV or JSON file"),
    ("inference", "requests", "spheres.csv", "these networks know no conditions"),
    ("inference", "guidance", -1, "of at least 0"),
    ("inference", "guidance", 1.5, "must be 1"),
    *each(("train_diffusion", "inference", "evaluate"), ("conditions", "r", "a list of names")),
    ("train_diffusion", "conditions", ["r", "r"], "none of them twice"),
    ("train_diffusion", "conditions", ["r"], "with configs/conditional.json"),
    ("train_diffusion+conditional", "conditions", [3], "a list of names"),
    ("inference+conditional+inference_sweep", "sweep_steps", 0, POSITIVE),
    ("evaluate+conditional+evaluate_conditional", "num_samples", 0, POSITIVE),
    # overlays
    ("train_autoencoder+train_autoencoder_gan", "adversarial_weight", -1, "at least 0"),
    ("train_autoencoder+train_autoencoder_gan", "adversarial_start", 3, "from 0 to 1"),
    ("train_autoencoder+train_autoencoder_gan", "accumulation_steps", 2, "must be 1"),
    ("train_autoencoder+train_autoencoder_gan", "discriminator_lr", 0, "above 0"),
    ("train_autoencoder+train_autoencoder_gan", "discriminator_def#in_channels", 0, POSITIVE),
    ("train_autoencoder+train_autoencoder_l1", "kl_weight", -1, "at least 0"),
    ("train_autoencoder+train_autoencoder_l1", "autoencoder_def#in_channels", 3, "must be 1"),
    ("train_diffusion+deterministic", "autoencoder_def#out_channels", 3, "must be 64"),
    ("train_diffusion+diffusion", "num_inference_steps", 7, "divide num_train_timesteps=1000"),
    ("inference+diffusion", "num_inference_steps", 300, "divide num_train_timesteps=1000"),
    ("inference+ddpm", "num_inference_steps", 5, "must be num_train_timesteps=1000"),
    ("train_diffusion+generative", "diffusion_def#num_channels", [97], "multiple of norm_num_groups"),
    ("train_autoencoder+generative", "autoencoder_def#channels", [8], "no such argument"),
    ("train_autoencoder+tutorial", "image_size", 40, "a multiple of 16"),
    ("train_autoencoder+tutorial", "image_size", 1024, "7200.0 GiB of memory"),
    ("train_autoencoder+train_autoencoder_gan", "image_size", 1024, "7200.0 GiB of memory"),
    ("train_autoencoder+large", "image_size", 160, "a multiple of 64"),
    ("inference+inference_convert", "output_path", "/proc/none/model.pt", "made and written to"),
    ("inference+inference_export", "precision", "half", "auto, float32, bf16, float16"),
    ("evaluate+evaluate_scans", "dataset_dir", "", "no such folder"),
    ("evaluate+evaluate_scans", "split_seed", -1, SEED),
    ("evaluate+evaluate_deterministic", "score#tolerance", NAN, "at least 0"),
    ("train_autoencoder+multi_gpu_train_autoencoder", "train_batch_size", 0, POSITIVE),
    ("train_diffusion+multi_gpu_train_diffusion", "lr", 0, "above 0"),
    ("inference+multi_gpu_inference", "sampler#shift", 0, "above 0"),
    ("evaluate+multi_gpu_evaluate", "sampler#shift", "2", "above 0"),
]


@pytest.mark.parametrize(("configs", "key", "value", "allowed"), WRONG)
def test_wrong_value(configs, key, value, allowed, tmp_path):
    message = mistake(configs, tmp_path, **{key: value})
    # a component names its own arguments, without the id of the component
    assert f"{key.rpartition('#')[2]}={value!r}" in message.partition(": ")[0]
    assert allowed in message


def test_every_overlay_is_tried():
    tried = {name for configs, *_ in WRONG for name in configs.split("+")}
    assert tried | {"smoke", "metadata"} == {path.stem for path in CONFIGS.glob("*.json")}


def test_keys_of_another_config(tmp_path):
    """What smoke.json sets for other configs limits nothing in this one."""
    make_workflow("data", "smoke", train_batch_size=32, output_dir=str(tmp_path / "out"))


def test_channels_of_an_expression(tmp_path):
    channels = {"autoencoder_def#channels": "$[8, 16, 16]"}
    make_workflow("train_autoencoder", "smoke", **channels, output_dir=str(tmp_path / "out"))
    assert "for 1 halvings" in mistake("train_autoencoder", tmp_path, **{"autoencoder_def#channels": "$[8] * 2"})


def test_conversion_of_conditional_weights(tmp_path):
    message = mistake("inference+conditional+inference_convert", tmp_path)
    assert message.startswith("conditions: must be empty") and "conditional.json" in message


def test_batch_in_passes(tmp_path):
    message = mistake("train_autoencoder", tmp_path, train_batch_size=6, accumulation_steps=4)
    assert message.startswith("train_batch_size=6: must be a multiple of 4")


def test_law_without_noise(tmp_path):
    message = mistake("train_autoencoder", tmp_path, **{"law#b_min": 0, "law#b_max": 0})
    assert message.startswith("b_max=0: must be above 0")


def test_publish_beside_a_folder(folder, tmp_path):
    """Where a folder is scored no weights are read, and none are published."""
    settings = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "run_id": "publish"}
    workflow = make_workflow("evaluate", "smoke", **settings)
    workflow.parser["bundle_root"] = str(tmp_path)
    assert find_mistake(workflow.run).startswith("dataset_dir: must be empty to publish")
    assert not (tmp_path / "models").exists()


def test_foreign_checkpoint(tmp_path):
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"model": {}}, folder / "checkpoint_epoch=1.pt")
    settings = {**SMALL, "output_dir": str(tmp_path / "out")}
    message = find_mistake(lambda: make_workflow("train_autoencoder", "smoke", **settings))
    assert message.startswith("ckpt_dir: ") and "is no checkpoint of this version" in message


def test_file_instead_of_folder(tmp_path):
    (tmp_path / "file").touch()
    message = mistake("train_autoencoder", tmp_path, ckpt_dir=str(tmp_path / "file" / "checkpoints"))
    assert message.startswith("ckpt_dir=")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
def test_precision_of_device(tmp_path):
    """A precision that the device lacks is named."""
    message = mistake("train_autoencoder", tmp_path, precision="float16")
    assert message.startswith("precision='float16'") and "float32" in message


def test_first_mistake_first(tmp_path):
    """Of two mistakes the one that stands first in the config is told."""
    message = mistake("train_autoencoder", tmp_path, **{"lr": 0, "epochs": 0, "loss#mean_weight": -1})
    assert message.startswith("epochs=0")


# Files


class Runs:
    """What a pickle may hold: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def released() -> dict[str, torch.Tensor]:
    return torch.load(BUNDLE / "models" / "model.pt")


def with_nan() -> dict[str, torch.Tensor]:
    weights = released()
    next(iter(weights.values())).view(-1)[0] = NAN
    return weights


BAD_WEIGHTS = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "no such file"),
    "empty": (lambda path: path.touch(), "not a readable file of weights"),
    "text": (lambda path: path.write_text("weights"), "not a readable file of weights"),
    "cut off": (
        lambda path: path.write_bytes((BUNDLE / "models" / "model.pt").read_bytes()[:10_000]),
        "not a readable file of weights",
    ),
    "code": (lambda path: torch.save({"a": Runs(path.parent / "ran")}, path), "something other than tensors"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "ran"))), "other than tensors"),
    "no state dict": (lambda path: torch.save({"epoch": 3}, path), "not a state dict"),
    "nan": (lambda path: torch.save(with_nan(), path), "1 of its tensors hold NaN or infinity"),
    "another network": (
        lambda path: path.write_bytes((BUNDLE / "models" / "model_autoencoder.pt").read_bytes()),
        "does not fit the network of this config: lacks",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_unusable_weights(case, tmp_path):
    """Weights that can't be used are named; nothing in them runs, and nothing unsafe is advised."""
    make, reason = BAD_WEIGHTS[case]
    path = tmp_path / "model.pt"
    make(path)
    message = mistake("inference", tmp_path, model_path=str(path))
    assert message.startswith(f"model_path={str(path)!r}: ") and reason in message
    assert "weights_only" not in message and "trust" not in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("config", ["train_diffusion", "evaluate"])
def test_unusable_autoencoder(config, tmp_path):
    message = mistake(config, tmp_path, autoencoder_path=str(BUNDLE / "models" / "model.pt"))
    assert message.startswith("autoencoder_path=") and "does not fit" in message


def test_checkpoint_that_would_run_code(tmp_path, capsys):
    """It is set aside and never run."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"model": Runs(tmp_path / "ran")}, folder / "checkpoint_epoch=1.pt")
    make_workflow("train_autoencoder", "smoke", output_dir=str(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["damaged-checkpoint_epoch=1.pt"]
    told = capsys.readouterr().out
    assert "set aside" in told and "weights_only" not in told and "trust" not in told
    assert not (tmp_path / "ran").exists()


def volume(shape=(20, 20, 20), fill=None, kind=np.float32):
    if fill is not None:
        return np.full(shape, fill, kind)
    values = np.random.default_rng(0).normal(100, 30, shape)
    return np.where(np.random.default_rng(1).random(shape) < 0.5, values, 0).astype(kind)


def save(path: Path, values: np.ndarray, **header) -> None:
    image = nibabel.Nifti1Image(values, np.eye(4))
    for name, value in header.items():
        image.header[name] = value
    if "sform_code" in header:
        image = nibabel.Nifti1Image(values, None, image.header)
    nibabel.save(image, path)


def cut_off(path: Path) -> None:
    save(path, volume())
    path.write_bytes(path.read_bytes()[:10_000])


NO_AXES = {f"srow_{axis}": [0, 0, 0, 0] for axis in "xyz"}
BAD_VOLUMES = {
    "zeros": (lambda path: save(path, volume(fill=0)), "nothing other than background"),
    "constant": (lambda path: save(path, volume(fill=5)), "one value alone, 5"),
    "nan": (lambda path: save(path, volume(fill=NAN)), "no value that is finite"),
    "beyond float32": (lambda path: save(path, volume(fill=1e300, kind=np.float64)), "no value that is finite"),
    "complex": (lambda path: save(path, volume(kind=np.complex64)), "must be real numbers"),
    "one slice": (lambda path: save(path, volume((20, 20, 1))), "one slice is none"),
    "picture": (lambda path: save(path, volume((20, 20))), "must be a volume"),
    "sform of zeros": (lambda path: save(path, volume(), sform_code=1, **NO_AXES), "no usable orientation"),
    "NaN voxel sizes": (
        lambda path: save(path, volume(), sform_code=0, qform_code=1, pixdim=[1, NAN, NAN, NAN, 0, 0, 0, 0]),
        "no usable orientation",
    ),
    "cut off": (cut_off, "can't be read as NIfTI"),
    "text": (lambda path: path.write_text("volume"), "can't be read as NIfTI"),
}


@pytest.mark.parametrize("case", BAD_VOLUMES)
def test_unusable_volume(case, tmp_path):
    """A volume that can't be used is named before the training starts."""
    make, reason = BAD_VOLUMES[case]
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"):  # one at least is for training
        make(scans / name)
    message = mistake("train_autoencoder", tmp_path, dataset_dir=str(scans), image_size=32, train_batch_size=1)
    assert message.startswith(f"dataset_dir: {scans}/") and reason in message


@pytest.mark.parametrize("crop", ["center", "foreground"])
def test_foreground_lost_in_resampling(crop, tmp_path):
    """Single voxels, which a coarser grid has no room for, leave nothing to train on."""
    values = volume(fill=0)
    values[2:18:4, 2:18:4, 2:18:4] = np.arange(1, 65).reshape(4, 4, 4)
    save(tmp_path / "a.nii.gz", values)
    scan = ScanPreprocessing(32, spacing=(4, 4, 4), crop=crop)
    message = find_mistake(lambda: scan({"image": str(tmp_path / "a.nii.gz")}))
    assert "a.nii.gz holds nothing other than background" in message and "spacing" in message


@pytest.mark.parametrize("configs", ["train_autoencoder", "evaluate+evaluate_scans"])
def test_range_of_raw_values(configs, tmp_path):
    """Values that stay as they are have to fit the range that SSIM and PSNR are told."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in "abcd":
        save(scans / f"{name}.nii.gz", volume())
    settings = {"dataset_dir": str(scans), "image_size": 32, "normalize": False}
    settings |= {"train_batch_size": 1} if "train" in configs else {}
    assert mistake(configs, tmp_path, **settings).startswith("data_range=10: the values of dataset_dir go from")
    make_workflow(*configs.split("+"), "smoke", **settings, data_range=200, output_dir=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("values", "warning"),
    [(volume() - 1000, "The key window maps another background to 0"), (volume() > 0, "they stay as they are")],
    ids=["CT", "mask"],
)
def test_odd_volume_warns(values, warning, tmp_path, caplog):
    save(tmp_path / "a.nii.gz", values.astype(np.float32))
    item = ScanPreprocessing(32)({"image": str(tmp_path / "a.nii.gz")})
    assert item["image"].isfinite().all()
    assert str(tmp_path / "a.nii.gz") in caplog.text and warning in caplog.text


def test_folder_without_volumes(tmp_path):
    """A folder that is missing, empty, or of other or damaged volumes is named."""
    folder = tmp_path / "volumes"
    assert mistake("evaluate", tmp_path, dataset_dir=str(folder)).startswith(f"dataset_dir={str(folder)!r}: no such")
    folder.mkdir()
    assert "holds no file" in mistake("evaluate", tmp_path, dataset_dir=str(folder))
    save(folder / "short.nii.gz", volume((64, 64, 32)))
    message = mistake("evaluate", tmp_path, dataset_dir=str(folder))
    assert "short.nii.gz has the shape (64, 64, 32)" in message and "(64, 64, 64)" in message
    save(folder / "short.nii.gz", volume((64, 64, 64)))
    (folder / "short.nii.gz").write_bytes((folder / "short.nii.gz").read_bytes()[:100_000])
    assert "short.nii.gz can't be read as NIfTI" in find_mistake(lambda: FolderDataset(folder, 64)[0])


def test_folder_of_volumes_not_finite(tmp_path):
    """A generated volume that is not finite is measured as it is, so that it counts as not valid."""
    for name, fill in (("a", NAN), ("b", 1.0)):
        values = volume((64, 64, 64), fill=fill)
        values[0, 0, 0] = INF
        save(tmp_path / f"{name}.nii.gz", values)
    found = measure_dataset(FolderDataset(tmp_path, 64))
    assert [reason.partition(":")[0] for reason in explain_invalid(found, SphereLaw())] == ["not finite"] * 2


# What comes from files stays where it is and what it is


def test_names_stay_in_output_dir(tmp_path):
    """The names of somebody's volumes are read from, and never written to."""
    (tmp_path / "scans").mkdir()
    (tmp_path / "here").mkdir()
    names = [f"../scans/..{i}<b>.nii.gz" for i in range(4)]
    for name in names:
        save(tmp_path / "here" / name, volume())
    datalist = tmp_path / "here" / "list.json"
    datalist.write_text(str({"training": [{"image": name, "id": "../../x"} for name in names]}).replace("'", '"'))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    output = tmp_path / "out"
    run_workflow("data", "smoke", run_id="preview", dataset_dir=str(datalist), image_size=32, output_dir=str(output))
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after - before == {output / "preview.png"}


# The command line


def command(config, *options):
    files = f"['{CONFIGS / config}.json','{CONFIGS / 'smoke.json'}']"
    words = ["-m", "monai.bundle", "run", *options, "--config_file", files, "--image_size", "32"]
    return run_process("python", *words, folder=BUNDLE, check=False)


@pytest.mark.parametrize(
    ("config", "options", "line"),
    [
        ("train_autoencoder", ["--epoch", "2"], "error: epoch=2: no such key in this config; did you mean epochs?"),
        ("train_autoencoder", ["--lr", "None"], "error: lr=None: MONAI would leave it out"),
        ("inference", ["--model_path", "none.pt"], "error: model_path='none.pt': no such file"),
        ("train_autoencoder", ["training"], "error: 'training' is nothing that this config runs: must be run."),
        (
            "train_diffusion",
            ["--diffusion_def#channels", "[97]"],
            "error: diffusion_def#channels=[97], diffusion_def#norm_num_groups=32: DiffusionModelUNet expects",
        ),
        ("data", ["preview", "--meta_file", "none.json"], "error: meta_file='none.json': no such file"),
        ("train_autoencoder", ["--lr", "1e10"], "error: the loss is nan in epoch 1, step 2: training stopped."),
    ],
)
def test_error_on_command_line(config, options, line, tmp_path):
    """A mistake ends the command with status 1 and one line, without a traceback."""
    result = command(config, *options, "--output_dir", str(tmp_path / "out"))
    assert result.returncode == 1
    errors = [told for told in result.stderr.splitlines() if "error" in told.lower()]
    assert len(errors) == 1 and errors[0].startswith(line), result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "exception" not in result.stdout.lower()
    # the training of the last case had begun
    assert (tmp_path / "out").exists() == ("1e10" in options)
    assert not list(tmp_path.rglob("*.pt"))

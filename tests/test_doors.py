"""The doors that other tools come in by: MLflow, a federated client, load, an archive, the Hugging Face hub."""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from conftest import BUNDLE, CONFIGS, make_workflow, run_workflow
from ignite.engine import Events
from mlflow import MlflowClient
from monai.bundle import create_workflow, download, load
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from tools.archive import write_archive
from tools.card import NAME, make_card

ROOT = BUNDLE.parent
METADATA = json.loads((CONFIGS / "metadata.json").read_text())
FIDELITY = json.loads((BUNDLE / "models" / "fidelity.json").read_text())
# An eighth of the volume in float32: seconds, on the same path of code.
SMALL = {"image_size": 32, "precision": "float32", "train_size": 16, "val_size": 2}
STAGES = ("train_autoencoder", "train_diffusion")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the bundle's copy and archive, as ``make bundle`` writes them."""
    folder = tmp_path_factory.mktemp("dist")
    write_archive(BUNDLE, folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """Where MONAI's own download put the archive."""
    folder = tmp_path_factory.mktemp("bundles")
    url = (dist / f"{NAME}_v{METADATA['version']}.zip").as_uri()
    download(NAME, url=url, bundle_dir=str(folder), progress=False)
    return folder


@pytest.fixture(scope="module")
def small_autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    run_workflow("train_autoencoder", "smoke", **SMALL, epochs=1, output_dir=str(folder))
    return str(folder / "model_autoencoder.pt")


@pytest.fixture
def bundle_stays():
    """The test leaves no file in the bundle."""

    def files():
        return {path for path in BUNDLE.rglob("*") if "__pycache__" not in path.parts and "runs" not in path.parts}

    before = files()
    yield
    assert files() == before


def needs(name, small_autoencoder):
    return {"autoencoder_path": small_autoencoder} if name == "train_diffusion" else {}


def tracked(folder):
    """The one run of a tracking store, and the history of each metric: values by step."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns.db")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith((folder / "mlruns").as_uri())
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return run, {name: {point.step: point.value for point in points} for name, points in history.items()}


@pytest.mark.parametrize(
    ("configs", "loss"),
    [
        (("train_autoencoder",), "loss"),
        (("train_autoencoder", "train_autoencoder_gan"), "reconstruction_loss"),
        (("train_diffusion",), "loss"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_mlflow_is_told_each_loss_rate_and_metric_of_a_training(
    configs, loss, small_autoencoder, tmp_path, bundle_stays
):
    folder = f"$'{tmp_path}'"  # an expression, as the configs' own, for MONAI to find the config that it saved
    more = needs(configs[0], small_autoencoder)
    workflow = make_workflow(*configs, "smoke", **SMALL, **more, output_dir=folder, tracking="mlflow")
    losses, metrics = {}, {}
    trainer, evaluator = workflow.trainer, workflow.evaluator

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep_loss():
        losses[trainer.state.iteration] = trainer.state.output[loss].item()

    @evaluator.on(Events.COMPLETED)
    def keep_metrics():
        metrics[evaluator.state.epoch] = dict(evaluator.state.metrics)

    workflow.run()
    workflow.finalize()
    run, found = tracked(tmp_path)
    assert len(losses) == 4 and found["train_loss"] == losses
    assert "train_autoencoder_gan" in configs or len(found["lr_group_0"]) == 4
    assert set(metrics) == {1, 2}
    for epoch, values in metrics.items():
        for name, value in values.items():
            assert found[name][epoch] == pytest.approx(value), name
    assert run.data.params["max_epochs"] == "2"
    (artifact,) = (tmp_path / "mlruns").rglob("config_*.json")
    assert json.loads(artifact.read_text())["image_size"] == 32


def test_mlflow_is_told_of_evaluation_and_inference(tmp_path, bundle_stays):
    workflow = make_workflow("evaluate", "smoke", output_dir=str(tmp_path / "evaluate"), tracking="mlflow")
    workflow.evaluator.run()
    _, found = tracked(tmp_path / "evaluate")
    assert found == {name: {1: pytest.approx(value)} for name, value in workflow.evaluator.state.metrics.items()}

    run_workflow("inference", "smoke", num_samples=2, output_dir=str(tmp_path / "inference"), tracking="mlflow")
    assert tracked(tmp_path / "inference")[0].data.params["epoch_length"] == "1"
    assert (tmp_path / "inference" / "samples.csv").exists()


def test_data_takes_tracking_too(tmp_path, bundle_stays):
    run_workflow("data", "smoke", run_id="preview", output_dir=str(tmp_path), tracking="mlflow")
    assert (tmp_path / "preview.png").exists() and list(tmp_path.glob("config_*.json"))


def copied(weights):
    return {name: value.clone() for name, value in weights.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_federated_client_trains_evaluates_and_returns_weights(
    stage, small_autoencoder, tmp_path, monkeypatch, bundle_stays
):
    monkeypatch.chdir(tmp_path)
    files = [f"configs/{stage}.json", "configs/smoke.json"]
    settings = {**SMALL, **needs(stage, small_autoencoder)}
    client = MonaiAlgo(
        bundle_root=str(BUNDLE),
        send_weight_diff=False,
        config_train_filename=files,
        train_kwargs={**settings, "bundle_root": str(BUNDLE), "seed": 7, "output_dir": "train"},
        config_evaluate_filename=files,
        eval_kwargs={**settings, "bundle_root": str(BUNDLE), "output_dir": "evaluate"},
    )
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site-1"})
    # the server's weights are not those that the client was made with
    server = {name: value + 0.01 for name, value in client.get_weights().weights.items()}
    for done in (1, 2):
        client.train(ExchangeObject(weights=copied(server)))
        answer = client.get_weights()
        assert answer.weight_type == WeightType.WEIGHTS
        assert answer.statistics["num_executed_iterations"] == 2 and client.trainer.state.epoch == done
        weights = copied(answer.weights)
        assert set(weights) == set(server) and any(not torch.equal(weights[name], server[name]) for name in server)
        if stage == "train_diffusion" and done == 1:
            # the average that this training validates: a step of 0.001 from the server's weights to those trained
            average = client.train_workflow.evaluator.network.state_dict()
            distance, passed = (sum((x[name] - server[name]).norm() for name in server) for x in (average, weights))
            assert 0 < distance < 0.01 * passed
        scored = client.evaluate(ExchangeObject(weights=weights)).metrics

        other = make_workflow(stage, "smoke", **settings, output_dir="other")
        other.evaluator.network.load_state_dict(weights)
        other.evaluator.run()
        assert scored == pytest.approx(other.evaluator.state.metrics, nan_ok=True)
        server = weights
    client.finalize()
    assert {path.name for path in tmp_path.iterdir()} == {"train", "evaluate", "other"}


def test_a_federated_client_scores_the_weights_it_is_handed_by_evaluate(tmp_path, bundle_stays):
    client = MonaiAlgo(
        bundle_root=str(BUNDLE),
        config_train_filename=["configs/train_autoencoder.json", "configs/smoke.json"],
        train_kwargs={"bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "train")},
        config_evaluate_filename=["configs/evaluate.json", "configs/smoke.json"],
        eval_kwargs={"bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "evaluate")},
        eval_workflow_name="infer",
    )
    client.initialize()
    released = torch.load(BUNDLE / "models" / "model_autoencoder.pt")
    good, bad = ({f"network.{name}": scale * value.float() for name, value in released.items()} for scale in (1, 0.5))
    dice = [client.evaluate(ExchangeObject(weights=weights)).metrics["dice"] for weights in (bad, good)]
    assert dice[0] < 0.9 < dice[1]


def test_a_federation_may_end_a_client_s_training(tmp_path, bundle_stays):
    client = MonaiAlgo(
        bundle_root=str(BUNDLE),
        config_train_filename=["configs/train_autoencoder.json", "configs/smoke.json"],
        train_kwargs={**SMALL, "bundle_root": str(BUNDLE), "output_dir": str(tmp_path)},
        config_evaluate_filename=None,
    )
    client.initialize()
    client.trainer.add_event_handler(Events.ITERATION_COMPLETED, client.finalize)
    client.train(ExchangeObject(weights=copied(client.trainer.network.state_dict())))
    assert client.trainer.state.iteration == 1
    assert client.get_weights().weight_type == WeightType.WEIGHT_DIFF


def test_the_archive_holds_the_bundle_s_files_and_nothing_else(dist, tmp_path):
    path = dist / f"{NAME}_v{METADATA['version']}.zip"
    names = zipfile.ZipFile(path).namelist()
    tracked = subprocess.run(["git", "ls-files"], cwd=BUNDLE, capture_output=True, text=True, check=True)
    assert set(names) == {f"{NAME}/{name}" for name in [*tracked.stdout.splitlines(), "README.md"]}
    assert names == sorted(names)
    assert f'name = "{NAME.replace("_", "-")}"' in (ROOT / "pyproject.toml").read_text()
    assert write_archive(BUNDLE, tmp_path).read_bytes() == path.read_bytes()


def test_the_unpacked_archive_generates_elsewhere(installed):
    arguments = ["run", "--config_file", "configs/inference.json", "--num_samples", "2", "--num_inference_steps", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder = installed / NAME
    subprocess.run([sys.executable, "-m", "monai.bundle", *arguments], cwd=folder, env=environment, check=True)
    assert {path.name for path in (folder / "runs" / "inference").iterdir()} >= {"samples.csv", "sphere_00001.nii.gz"}


@pytest.mark.parametrize("name", ["train_autoencoder", "train_diffusion", "inference", "evaluate", "data"])
def test_a_workflow_of_each_config_is_created_in_the_unpacked_archive(name, installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = installed / NAME
    kind = None if name == "data" else "train" if name.startswith("train") else "infer"
    workflow = create_workflow(
        config_file=str(root / "configs" / f"{name}.json"),
        workflow_type=kind,
        bundle_root=str(root),
        output_dir=str(tmp_path / "out"),
    )
    assert kind is None or workflow.device.type in ("cpu", "cuda")


def test_load_returns_the_generator_with_the_released_weights(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = {"bundle_root": str(installed / NAME)}
    loaded = load(NAME, bundle_dir=installed, workflow_type="inference", device="cpu", args_file=root)
    ours = make_workflow("inference", device="cpu").network_def
    expected = ours.state_dict()
    assert set(loaded.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    noise, texture = torch.randn(1, 4, 4, 4, 4), torch.randn(1, 1, 64, 64, 64)
    assert torch.equal(loaded(noise, texture), ours(noise, texture))


def test_the_card_repeats_what_was_measured():
    _, front, page = str(make_card(BUNDLE)).split("---\n", maxsplit=2)
    data = yaml.safe_load(front)
    assert (data["license"], data["library_name"]) == ("apache-2.0", "monai")
    assert data["pipeline_tag"] == "unconditional-image-generation" and "monai" in data["tags"]
    (index,) = data["model-index"]
    volumes, reconstruction = (
        {metric["type"]: metric["value"] for metric in result["metrics"]} for result in index["results"]
    )
    assert index["name"] == METADATA["name"]
    assert volumes == {name: line["value"] for name, line in FIDELITY["volumes"].items()}
    assert reconstruction == FIDELITY["reconstruction"]

    assert METADATA["description"] in page and METADATA["intended_use"] in page
    assert all(reference in page for reference in METADATA["references"])
    assert (
        len(re.findall(r"\*\*fails\*\*", page)) == len(re.findall("Beyond its limit", page)) == len(FIDELITY["failed"])
    )
    for name in FIDELITY["failed"]:
        assert re.search(rf"Beyond its limit.* {FIDELITY['volumes'][name]['value']:.4f}", page)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page):
        assert (BUNDLE / link).is_file(), link


def test_the_card_s_python_runs(installed, monkeypatch):
    monkeypatch.chdir(installed)
    (program,) = re.findall(r"```python\n(.*?)```", (installed / NAME / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    exec(program, names)
    assert names["volumes"].shape == (2, 1, 64, 64, 64)


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that takes an upload: files as they come, and tags of what is there."""

    files: dict[str, bytes]
    tags: dict[str, set[str]]
    private: list[bool]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = {}
        if self.path.startswith("/api/repos/create"):
            self.private.append(json.loads(body).get("visibility") == "private")
            answer = {"url": f"http://{self.headers['Host']}/me/spheres"}
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            answer = {"files": files}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/spheres/commit/{'0' * 40}", "commitOid": "0" * 40}
        elif "/tag/" in self.path:
            self.tags[json.loads(body)["tag"]] = set(self.files)
        self.answer(answer)

    def do_GET(self):
        self.answer({})

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_the_documented_push_brings_the_hub_every_file_the_card_and_the_version(dist, tmp_path):
    commands = [
        shlex.split(line)
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith(("hf upload", "python -m fire"))
    ]
    assert len(commands) == 2
    hub = type("EmptyHub", (Hub,), {"files": {}, "tags": {}, "private": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "dist").mkdir()
    path = dist / f"{NAME}_v{METADATA['version']}.zip"
    zipfile.ZipFile(path).extractall(tmp_path / "dist")
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": "hf_none",
        "HF_HOME": str(tmp_path / "home"),
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
    }
    try:
        for command in commands:
            program = [sys.executable, *command[1:]] if command[0] == "python" else command
            subprocess.run(program, cwd=tmp_path, env=environment, check=True, capture_output=True)
    finally:
        server.shutdown()
        server.server_close()
    archive = zipfile.ZipFile(path)
    assert hub.files == {name.removeprefix(f"{NAME}/"): archive.read(name) for name in archive.namelist()}
    assert {"LICENSE", "README.md", "configs/metadata.json", "configs/inference.json", "models/model.pt"} <= set(
        hub.files
    )
    assert hub.files["README.md"].decode() == str(make_card(BUNDLE))
    assert hub.tags == {METADATA["version"]: set(hub.files)}
    assert all(hub.private)
    assert not any(Path(name).is_absolute() for name in hub.files)

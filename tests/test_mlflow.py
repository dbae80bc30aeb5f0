"""What MLflow is told of a run, with ``--tracking mlflow``."""

import pytest
from conftest import make_workflow, read_json, run_workflow
from ignite.engine import Events
from mlflow import MlflowClient


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
def test_training(configs, loss, small_settings, tmp_path, bundle_stays):
    """Each loss, learning rate and metric of a training, and its config."""
    folder = f"$'{tmp_path}'"  # an expression, as the configs' own, for MONAI to find the config that it saved
    settings = small_settings(configs[0], output_dir=folder, tracking="mlflow")
    workflow = make_workflow(*configs, "smoke", **settings)
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
    assert read_json(artifact)["image_size"] == 32


def test_evaluation_and_inference(tmp_path, bundle_stays):
    workflow = make_workflow("evaluate", "smoke", output_dir=str(tmp_path / "evaluate"), tracking="mlflow")
    workflow.evaluator.run()
    _, found = tracked(tmp_path / "evaluate")
    assert found == {name: {1: pytest.approx(value)} for name, value in workflow.evaluator.state.metrics.items()}

    run_workflow("inference", "smoke", num_samples=2, output_dir=str(tmp_path / "inference"), tracking="mlflow")
    assert tracked(tmp_path / "inference")[0].data.params["epoch_length"] == "1"
    assert (tmp_path / "inference" / "samples.csv").exists()


def test_data(tmp_path, bundle_stays):
    """The config of the data takes the key too."""
    run_workflow("data", "smoke", run_id="preview", output_dir=str(tmp_path), tracking="mlflow")
    assert (tmp_path / "preview.png").exists() and list(tmp_path.glob("config_*.json"))

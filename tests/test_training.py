"""Both stages of training: a step, a validation, an epoch, a resume, and what must stop or be skipped."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import assert_same_training
from conftest import STAGES, find_mistake, make_workflow, run_workflow
from ignite.engine import Events
from monai.utils.enums import AdversarialKeys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from scripts.training.resume import EventFiles
from scripts.training.stability import GradientClipper


@pytest.fixture
def overrides(tmp_path, small_settings):
    """Settings of a small training, of one epoch unless told otherwise, in a folder of its own."""

    def make(stage: str, folder: str = "out", **more):
        return small_settings(stage, **{"epochs": 1, "output_dir": str(tmp_path / folder), **more})

    return make


def weights_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first, second):
    return all(torch.equal(value.cpu(), second[name].cpu()) for name, value in first.items())


@pytest.mark.parametrize("stage", STAGES)
def test_step_moves_weights(stage, overrides):
    # two volumes of the full grid
    sizes = {"image_size": 64, "train_size": 2, "train_batch_size": 2}
    trainer = make_workflow(stage, "smoke", **overrides(stage, **sizes)).trainer
    before = weights_of(trainer.network)
    trainer.run()
    assert trainer.state.iteration == 1
    assert torch.isfinite(trainer.state.output["loss"])
    assert trainer.state.skipped_steps == 0
    assert not same(before, trainer.network.state_dict())


def test_diffusion_freezes_autoencoder(overrides, small_autoencoder):
    workflow = make_workflow("train_diffusion", "smoke", **overrides("train_diffusion"))
    workflow.trainer.run()
    assert same(torch.load(small_autoencoder), workflow.parser.get_parsed_content("autoencoder_def").state_dict())


@pytest.mark.parametrize("stage", STAGES)
def test_validation_metrics(stage, overrides):
    """A validation gives every metric and leaves the weights."""
    workflow = make_workflow(stage, "smoke", **overrides(stage))
    evaluator = workflow.evaluator
    before = weights_of(evaluator.network)
    evaluator.run()
    assert same(before, evaluator.network.state_dict())
    metrics = evaluator.state.metrics
    expected = {"val_loss"} if stage == "train_diffusion" else {"ssim", "mse", "mae", "psnr", "dice", "nll", "a_rmse"}
    assert expected <= set(metrics)
    assert all(isinstance(value, float) for value in metrics.values())


def test_ratios_to_perfect_denoiser(overrides):
    evaluator = make_workflow("train_autoencoder", "smoke", **overrides("train_autoencoder")).evaluator
    evaluator.run()
    metrics = evaluator.state.metrics
    assert metrics["ssim_ratio"] == pytest.approx(metrics["ssim"] / metrics["ssim_oracle"])
    assert metrics["mse_ratio"] == pytest.approx(metrics["mse"] / metrics["mse_oracle"])
    assert metrics["mse_oracle"] < metrics["mse"]


def test_validation_repeatable(overrides):
    evaluator = make_workflow("train_diffusion", "smoke", **overrides("train_diffusion")).evaluator
    losses = []
    for _ in range(2):
        evaluator.run()
        losses.append(evaluator.state.metrics["val_loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stage", STAGES)
def test_epoch_writes_files(stage, overrides):
    """An epoch leaves checkpoint, best and final weights, and TensorBoard's data."""
    settings = overrides(stage)
    workflow = run_workflow(stage, "smoke", **settings)
    folder = Path(settings["output_dir"])
    checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
    assert "checkpoint_epoch=1.pt" in checkpoints
    assert sum(name.startswith("best_model") for name in checkpoints) == 1
    final = torch.load(folder / ("model.pt" if stage == "train_diffusion" else "model_autoencoder.pt"))
    if stage == "train_diffusion":
        assert final["scale_factor"] == pytest.approx(workflow.parser.get_parsed_content("train#dataset").scale_factor)
        ema = workflow.parser.get_parsed_content("ema").ema_model.state_dict()
        assert same(ema, {name.removeprefix("diffusion_model."): value for name, value in final.items()})

    saved = torch.load(folder / "checkpoints" / "checkpoint_epoch=1.pt")
    wanted = {"model", "optimizer", "lr_scheduler", "trainer", "best", "random", "record", "events"}
    assert set(saved) == wanted | ({"ema", "latents"} if stage == "train_diffusion" else set())
    assert saved["trainer"]["iteration"] == 2

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    metrics = {f"validation/{name}" for name in workflow.evaluator.state.metrics}
    train = {"loss", "epoch_loss", "learning_rate", "volumes_per_s", "skipped_steps"}
    assert {f"train/{name}" for name in train} | metrics <= set(events.Tags()["scalars"])
    assert all("/" in tag for kind in ("scalars", "images") for tag in events.Tags()[kind])
    assert {"slices/input", "slices/reconstruction", "slices/sample"} <= set(events.Tags()["images"])


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_overviews(stage, smoke):
    """The layout of charts, and settings beside metrics, without a run of their own."""
    folder = smoke[stage.removeprefix("train_")] / "tensorboard"
    assert [path.name.split(".")[0] for path in folder.iterdir()] == ["events"]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = events.Tags()["scalars"]

    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert len(charts) >= 4
    for chart in charts:
        assert all(any(re.match(tag, scalar) for scalar in scalars) for tag in chart.multiline.tag), chart.title

    page = {tag: HParamsPluginData.FromString(content) for tag, content in events.PluginTagToContent("hparams").items()}
    settings = page[SESSION_START_INFO_TAG].session_start_info.hparams
    assert settings["epochs"].number_value == 2 and settings["precision"].string_value
    assert ("kl_weight" in settings) == (stage == "train_autoencoder")
    listed = page[EXPERIMENT_TAG].experiment
    assert {"epochs", "kl_weight"} <= {hparam.name for hparam in listed.hparam_infos}
    assert {metric.name.tag for metric in listed.metric_infos} & set(scalars)
    assert page[SESSION_END_INFO_TAG].session_end_info.status == Status.STATUS_SUCCESS

    losses = [event.value for event in events.Scalars("train/loss")]
    epochs = [event.value for event in events.Scalars("train/epoch_loss")]
    steps = len(losses) // len(epochs)
    assert epochs == pytest.approx([sum(losses[i * steps : (i + 1) * steps]) / steps for i in range(len(epochs))])


@pytest.mark.parametrize("stage", STAGES)
def test_training_without_validation(stage, overrides):
    settings = overrides(stage, val_interval=5)
    run_workflow(stage, "smoke", **settings)
    folder = Path(settings["output_dir"])
    tags = EventAccumulator(str(folder / "tensorboard")).Reload().Tags()
    assert "train/epoch_loss" in tags["scalars"] and not tags["images"]
    assert "Slices" not in (folder / "report.html").read_text()


@pytest.mark.parametrize(("stage", "lr", "epochs"), [("train_autoencoder", 4e-4, 8), ("train_diffusion", 1e-3, 10)])
def test_loss_falls(stage, lr, epochs, overrides):
    # One fixed seed; the first and the last quarter of the steps differ by far more than a step's noise.
    trainer = make_workflow(stage, "smoke", **overrides(stage, epochs=epochs, lr=lr, val_interval=epochs)).trainer
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item()))
    trainer.run()
    quarter = len(losses) // 4
    assert sum(losses[-quarter:]) < 0.9 * sum(losses[:quarter])


@pytest.mark.parametrize(
    "configs",
    [("train_autoencoder",), ("train_diffusion",), ("train_autoencoder", "train_autoencoder_gan")],
    ids="+".join,
)
def test_resume_is_exact(configs, overrides):
    """A resumed training gives the weights of one that was never stopped."""
    stage = configs[0]
    name = "model.pt" if stage == "train_diffusion" else "model_autoencoder.pt"
    whole = overrides(stage, "whole", epochs=2)
    run_workflow(*configs, "smoke", **whole)

    stopped = overrides(stage, "stopped", epochs=2)
    workflow = make_workflow(*configs, "smoke", **stopped)

    class PowerCut(Exception):
        pass

    def cut(engine):
        if engine.state.iteration == 3:  # at the first step of the second epoch
            raise PowerCut

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, cut)
    with pytest.raises(Exception) as stop:  # MONAI's parser wraps what the run raises
        workflow.run()
    assert "PowerCut" in repr(stop.getrepr())
    newest = Path(stopped["output_dir"]) / "checkpoints" / "checkpoint_epoch=2.pt"
    newest.write_bytes(b"what a kill in the middle of a write leaves")

    resumed = run_workflow(*configs, "smoke", **stopped, resume=True)
    assert resumed.trainer.state.epoch == 2
    assert resumed.trainer.state.gradient_norm > 0 == resumed.trainer.state.skipped_steps
    expected = torch.load(Path(whole["output_dir"]) / name)
    assert same(expected, torch.load(Path(stopped["output_dir"]) / name))


@pytest.mark.parametrize(
    ("stage", "name", "more"),
    [
        ("train_autoencoder", "model_autoencoder.pt", {"activation_checkpointing": True}),
        # latents of 1^3 leave the default's groups of channels three values, which multiply what rounding does
        ("train_diffusion", "model.pt", {"diffusion_def#channels": [64], "diffusion_def#norm_num_groups": 4}),
    ],
)
def test_accumulated_batch(stage, name, more, overrides):
    """A batch in two passes trains as one in one pass does: schedule, average of the weights, curves, checkpoints."""
    whole, parts = (overrides(stage, folder, epochs=2, **more) for folder in ("whole", "parts"))
    norm = run_workflow(stage, "smoke", **{**whole, "activation_checkpointing": False}).trainer.state.gradient_norm
    trainer = run_workflow(stage, "smoke", **parts, accumulation_steps=2).trainer
    assert trainer.state.iteration == 4 and trainer.state.skipped_steps == 0
    assert trainer.state.gradient_norm == pytest.approx(norm, rel=1e-2)
    assert_same_training(*(Path(settings["output_dir"]) for settings in (parts, whole)), name, 1e-3)


def test_resume_of_finished_training(overrides):
    """Resuming a finished training trains no more."""
    settings = overrides("train_autoencoder", epochs="$2 - 1")
    run_workflow("train_autoencoder", "smoke", **settings)
    final = Path(settings["output_dir"]) / "model_autoencoder.pt"
    before = torch.load(final)
    again = run_workflow("train_autoencoder", "smoke", **settings, resume=True)
    assert again.trainer.state.iteration == 2
    assert same(before, torch.load(final))


def test_resume_in_other_precision(overrides):
    """A training carries on with a gradient scaler that its checkpoint does not have, and without one that it has."""
    settings = overrides("train_autoencoder")
    for epochs, scaled in ((1, False), (2, True), (3, False)):
        changes = {"epochs": epochs, "train#trainer#amp": scaled, "resume": epochs > 1}
        trainer = run_workflow("train_autoencoder", "smoke", **{**settings, **changes}).trainer
        assert trainer.state.iteration == 2 * epochs


def test_curves_of_another_training(tmp_path):
    """A resume cuts its own curves, and sets others aside that it finds in their folder."""
    for name in ("events.out.tfevents.own", "events.out.tfevents.other"):
        (tmp_path / name).write_text("12345")
    with SummaryWriter(tmp_path) as writer:
        EventFiles(writer).load_state_dict({"events.out.tfevents.own": 3})
    assert (tmp_path / "events.out.tfevents.own").read_text() == "123"
    assert (tmp_path / "earlier" / "events.out.tfevents.other").read_text() == "12345"


def test_resume_of_nothing(overrides):
    """With nothing to carry on from, ``auto`` starts a training and ``true`` refuses to."""
    settings = overrides("train_autoencoder", train_size=4)
    message = find_mistake(lambda: make_workflow("train_autoencoder", "smoke", **settings, resume=True))
    assert message.startswith("resume=True") and "no checkpoint" in message
    assert run_workflow("train_autoencoder", "smoke", **settings).trainer.state.iteration == 1


def test_resume_of_other_settings(overrides):
    """A folder of another training is refused, and the differing key named; nothing in it changes."""
    settings = overrides("train_autoencoder", train_size=4)
    run_workflow("train_autoencoder", "smoke", **settings)
    folder = Path(settings["output_dir"])
    before = {path: path.read_bytes() for path in folder.rglob("*.pt")}
    for changes, allowed in (
        ({"lr": 1e-3}, "resume=true"),  # carries on, if asked to
        ({"train_size": 16, "resume": True}, "Another output_dir"),
        ({"optimizer#_target_": "torch.optim.AdamW", "resume": True}, "Another output_dir"),
        ({"resume": False}, "choose another output_dir"),
    ):
        message = find_mistake(lambda c=changes: make_workflow("train_autoencoder", "smoke", **{**settings, **c}))
        assert message.startswith("resume=") and allowed in message
        assert all(key in message for key in changes)
    assert {path: path.read_bytes() for path in folder.rglob("*.pt")} == before


def test_resume_with_other_options(overrides):
    """A training that is asked to carry on does so with the options of its optimizers that are set now."""
    configs = ("train_autoencoder", "train_autoencoder_gan", "smoke")
    settings = overrides("train_autoencoder", train_size=8)
    run_workflow(*configs, **settings)
    now = {"epochs": 2, "resume": True, "discriminator_lr": 1e-5, "optimizer#betas": [0.5, 0.9]}
    parser = run_workflow(*configs, **{**settings, **now}).parser
    group = parser.get_parsed_content("discriminator_optimizer").param_groups[0]
    assert group["lr"] == 1e-5
    group = parser.get_parsed_content("optimizer").param_groups[0]
    assert list(group["betas"]) == [0.5, 0.9] and group["lr"] < 1e-6  # at the end of the schedule


def test_learning_rate(overrides):
    """The rate warms up and decays, and follows the longer course after a resume with more epochs."""

    def rates(**more):
        workflow = make_workflow("train_autoencoder", "smoke", **overrides("train_autoencoder", **more))
        optimizer, seen = workflow.parser.get_parsed_content("optimizer"), []
        workflow.trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda: seen.append(optimizer.param_groups[0]["lr"])
        )
        workflow.run()
        return seen

    steps = {"image_size": 32, "train_size": 20, "train_batch_size": 1, "val_interval": 10, "lr": 1e-3}
    first = rates(**steps)
    assert len(first) == 20
    assert first[0] == pytest.approx(1e-4) and first[2] == pytest.approx(1e-3)
    assert first[2] > first[10] > first[-1]
    more = rates(**steps, epochs=2, resume=True)
    assert len(more) == 20
    assert 0.3e-3 < more[0] < 0.7e-3  # half way down the longer cosine
    assert more[-1] < 0.1e-3


def test_gradient_not_finite(overrides):
    """A gradient that is not finite costs one step and no weight."""
    trainer = make_workflow("train_autoencoder", "smoke", **overrides("train_autoencoder")).trainer

    def poison(engine):
        if engine.state.iteration == 1:
            next(engine.network.parameters()).register_hook(lambda gradient: gradient * float("nan"))

    def heal(engine):
        next(engine.network.parameters())._backward_hooks.clear()

    before = weights_of(trainer.network)
    after_first = []
    trainer.add_event_handler(Events.ITERATION_STARTED, poison)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, heal)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda: after_first.append(same(before, trainer.network.state_dict()))
    )
    trainer.run()
    assert after_first == [True]
    assert trainer.state.skipped_steps == 1
    assert not same(before, trainer.network.state_dict())
    assert all(torch.isfinite(value).all() for value in trainer.network.state_dict().values())


def test_loss_not_finite(overrides):
    """A loss that is not finite stops the training and leaves the last good checkpoint."""
    settings = overrides("train_autoencoder", epochs=3)
    workflow = make_workflow("train_autoencoder", "smoke", **settings)
    loss = workflow.parser.get_parsed_content("loss")

    def poison(engine):
        if engine.state.epoch == 2:
            loss.weights["support"] = float("nan")

    workflow.trainer.add_event_handler(Events.EPOCH_STARTED, poison)
    with pytest.raises(Exception) as stop:
        workflow.run()
    assert isinstance(stop.value.__cause__, FloatingPointError)
    assert "epoch 2, step 3" in str(stop.value.__cause__) and "checkpoint_epoch=1.pt" in str(stop.value.__cause__)
    folder = Path(settings["output_dir"])
    assert not (folder / "model_autoencoder.pt").exists()
    saved = torch.load(folder / "checkpoints" / "checkpoint_epoch=1.pt")
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert not (folder / "checkpoints" / "checkpoint_epoch=2.pt").exists()


def test_adversarial_start(overrides):
    """Generator and discriminator learn from one another after a share of the steps."""
    configs = ("train_autoencoder", "train_autoencoder_gan", "smoke")
    settings = overrides("train_autoencoder", train_size=4, train_batch_size=1, epochs=1, adversarial_start=0.5)
    workflow = make_workflow(*configs, **settings)
    state, seen = workflow.trainer.state, []
    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(state.output))
    workflow.run()
    for loss in (AdversarialKeys.GENERATOR_LOSS, AdversarialKeys.DISCRIMINATOR_LOSS):
        assert [float(step[loss]) > 0 for step in seen] == [False, False, True, True]


def test_discriminator_not_finite(overrides):
    """A loss of the discriminator that is not finite stops the training too."""
    configs = ("train_autoencoder", "train_autoencoder_gan", "smoke")
    workflow = make_workflow(*configs, **overrides("train_autoencoder", train_size=8, discriminator_lr=1e30, epochs=3))
    with pytest.raises(Exception) as stop:
        workflow.run()
    assert isinstance(stop.value.__cause__, FloatingPointError)


def test_best_weights(overrides):
    settings = overrides("train_autoencoder", epochs=3)
    workflow = make_workflow("train_autoencoder", "smoke", **settings)
    seen = {}
    evaluator = workflow.evaluator
    evaluator.add_event_handler(
        Events.COMPLETED, lambda: seen.update({evaluator.state.metrics["ssim"]: weights_of(evaluator.network.network)})
    )
    workflow.run()
    (best,) = (Path(settings["output_dir"]) / "checkpoints").glob("best_model_ssim=*.pt")
    assert same(seen[max(seen)], torch.load(best))


def test_clipping_with_scaler():
    """Clipping sees the gradient without the scale, and a bad step lowers the scale."""
    # float16 needs a scaler, and CI has no GPU: the same scaler on the CPU
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state = SimpleNamespace(skipped_steps=0)
    engine = SimpleNamespace(optimizer=optimizer, scaler=scaler, loss_function=None, state=state)
    clip = GradientClipper(max_norm=0.5)

    scaler.scale(3 * weight[0] + 4 * weight[1]).backward()
    clip(engine)
    assert engine.state.gradient_norm == pytest.approx(5.0)
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == pytest.approx([1 - 0.3, 1 - 0.4])

    optimizer.zero_grad()
    before = weight.clone()
    scaler.scale((weight * float("inf")).sum()).backward()
    clip(engine)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight, before)
    assert engine.state.skipped_steps == 1
    assert scaler.get_scale() == 512.0

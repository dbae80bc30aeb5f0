"""The bundle as a client of MONAI's federated learning."""

import pytest
import torch
from conftest import BUNDLE, SMALL, STAGES, make_workflow
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject


def copied(weights):
    return {name: value.clone() for name, value in weights.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_client_rounds(stage, small_settings, tmp_path, monkeypatch, bundle_stays):
    """A client trains from the server's weights, returns its own, and evaluates those it is handed."""
    monkeypatch.chdir(tmp_path)
    files = [f"configs/{stage}.json", "configs/smoke.json"]
    settings = small_settings(stage)
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
            # the average that this training validates: it has forgotten the weights from before the client's steps
            average = client.train_workflow.evaluator.network.state_dict()
            average = {name: value.cpu() for name, value in average.items()}
            distance, passed = (sum((x[name] - weights[name]).norm() for name in server) for x in (average, server))
            assert 0 < distance < 0.1 * passed
        scored = client.evaluate(ExchangeObject(weights=weights)).metrics

        other = make_workflow(stage, "smoke", **settings, output_dir="other")
        other.evaluator.network.load_state_dict(weights)
        other.evaluator.run()
        assert scored == pytest.approx(other.evaluator.state.metrics, nan_ok=True)
        server = weights
    client.finalize()
    assert {path.name for path in tmp_path.iterdir()} == {"train", "evaluate", "other"}


def test_client_scores_by_evaluate(tmp_path, bundle_stays):
    """With ``evaluate.json`` a client scores the weights that it is handed, not those of a file."""
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


def test_client_is_ended(tmp_path, bundle_stays):
    """A federation may end a client's training, whose weights it still gets."""
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

"""Files of weights and checkpoints."""

import pytest
import torch
from torch import nn

from scripts.checks import SettingError
from scripts.weights import find_weights, load_weights, save_weights


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_save_and_load(network, tmp_path):
    save_weights(network, tmp_path / "new" / "model.pt")
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert load_weights(other, tmp_path / "new" / "model.pt", "model_path") is other
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.pt"]


def test_save_in_float16(tmp_path):
    """Half precision rounds the parameters and keeps the buffers."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network[1].running_mean.fill_(1 / 3)
    save_weights(network, tmp_path / "model.pt", dtype=torch.float16)
    other = load_weights(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), tmp_path / "model.pt", "model_path")
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, network[0].weight.half().float())
    assert torch.equal(other[1].running_mean, network[1].running_mean)


def test_load_missing_file(network, tmp_path):
    with pytest.raises(SettingError, match=r"^model_path='.*none\.pt': no such file"):
        load_weights(network, tmp_path / "none.pt", "model_path")


def test_load_truncated_file(network, tmp_path):
    path = tmp_path / "model.pt"
    save_weights(network, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SettingError, match=r"^model_path='.*model\.pt': not a readable file of weights"):
        load_weights(network, path, "model_path")


def test_load_something_else(network, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(SettingError, match="not a state dict"):
        load_weights(network, tmp_path / "model.pt", "model_path")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4)), "lacks 1.weight"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)), "has 2.weight, which the network lacks"),
        (nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), r"0.weight has shape \(5, 3\), the network's \(4, 3\)"),
    ],
)
def test_load_mismatch(network, other, message, tmp_path):
    """A mismatch names the key or the shape, and changes nothing."""
    save_weights(other, tmp_path / "model.pt")
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(SettingError, match=message):
        load_weights(network, tmp_path / "model.pt", "model_path")
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_interrupted_save(network, tmp_path, monkeypatch):
    """An interrupted save leaves the old file."""
    path = tmp_path / "model.pt"
    save_weights(network, path)
    before = path.read_bytes()

    def fail(_, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_weights(network, path)
    assert path.read_bytes() == before


def test_find_weights(tmp_path, caplog):
    """``auto`` is what was trained here, else the released file; the log says which, and how to have the other."""
    caplog.set_level("INFO")
    released, trained = (tmp_path / place / "model_autoencoder.pt" for place in ("models", "runs/autoencoder"))
    assert find_weights("auto", "autoencoder_path", tmp_path) == str(released)
    trained.parent.mkdir(parents=True)
    trained.touch()
    assert find_weights("auto", "autoencoder_path", tmp_path) == str(trained)
    assert str(trained) in caplog.messages[-1] and f"--autoencoder_path {released}" in caplog.messages[-1]
    assert find_weights("other.pt", "autoencoder_path", tmp_path) == "other.pt"

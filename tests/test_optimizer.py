"""The optimizer: orthogonal updates of kernels, Adam's of the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scripts.checks import SettingError
from scripts.training.optimizer import Muon, orthogonalize


def make_network():
    """Two convolutions, the last of which makes the output, and a matrix and a vector."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(4, 8, 3, padding=1),
        nn.SiLU(),
        nn.Flatten(2),
        nn.Linear(8, 8),
        nn.Unflatten(2, (2, 2, 2)),
        nn.Conv3d(8, 2, 1),
    )


def take_steps(network, optimizer, count):
    """Fit random targets."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        volumes = torch.randn(16, 4, 2, 2, 2, generator=generator)
        loss = (network(volumes) - volumes[:, :2].sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalize(shape):
    """The singular vectors stay, and the singular values come near 1."""
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-4
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    # what it returns in the basis of the singular vectors is a diagonal
    inside = u.T @ orthogonalize(matrix) @ v.T
    values = inside.diagonal()
    assert values.min() > 0.4 and values.max() < 1.25
    torch.testing.assert_close(inside, torch.diag(values), atol=1e-4, rtol=0)
    assert not orthogonalize(torch.zeros(shape)).any()


def test_kernels_and_the_rest():
    """The first kernel takes orthogonal steps as large as Adam's usually are; the rest does what Adam does."""
    network = make_network()
    twin = copy.deepcopy(network)
    before = network[0].weight.clone()
    rates = {"lr": 1e-2, "betas": (0.9, 0.99)}
    take_steps(network, Muon(network.parameters(), **rates), 1)
    take_steps(twin, torch.optim.Adam(twin.parameters(), **rates), 1)
    for name, weight in network.named_parameters():
        assert torch.equal(weight, twin.get_parameter(name)) != (name == "0.weight"), name
    update = (network[0].weight - before).detach().flatten(1)
    assert update.square().mean().sqrt() == pytest.approx(0.2e-2, rel=0.2)
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 2


def test_scaler():
    """A gradient scaler skips a step whose gradient is not finite, and nothing moves."""
    network = make_network()
    optimizer, scaler = Muon(network.parameters(), lr=1e-2), torch.amp.GradScaler("cpu")
    before = copy.deepcopy(network.state_dict())
    scaler.scale(network(torch.full((2, 4, 2, 2, 2), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert not optimizer.state_dict()["state"]


def test_state():
    """A state that is loaded goes on as if nothing had happened."""
    network = make_network()
    optimizer = Muon(network.parameters(), lr=1e-2)
    take_steps(network, optimizer, 3)
    other = copy.deepcopy(network)
    resumed = Muon(other.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(network, optimizer, 3)
    take_steps(other, resumed, 3)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_wrong_momentum():
    with pytest.raises(SettingError, match=r"optimizer#momentum=1\.5: must be"):
        Muon(make_network().parameters(), lr=1e-2, momentum=1.5)

"""The autoencoder's loss."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scripts.data.spheres import SphereDataset, SphereLaw
from scripts.model.distributions import ZeroInflatedNormal
from scripts.model.losses import EvidenceLowerBoundLoss

LAW = SphereLaw(size=32, r_min=10, r_max=16)


@pytest.fixture
def batch():
    items = [SphereDataset(4, LAW, signal=True)[i] for i in range(4)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def support_share(batch):
    """The share of voxels that are support: terms of the loss are means over all voxels."""
    return (batch["image"] != 0).float().mean()


def true_channels(batch):
    """The decoder's output that knows everything but the noise."""
    inside = (batch["image"] != 0).float()
    spread = torch.ones_like(inside)
    a, b = (batch[name].float().view(-1, 1, 1, 1, 1) * spread for name in ("a", "b"))
    return torch.cat([40 * inside - 20, a, b.log()], dim=1)


def test_loss_is_elbo(batch):
    """With weights of 1 the loss is the evidence lower bound."""
    channels = torch.randn(4, 3, 32, 32, 32)
    mean, deviation = torch.randn(4, 4, 3, 3, 3), torch.rand(4, 4, 3, 3, 3) + 0.1
    loss = EvidenceLowerBoundLoss()((channels, mean, deviation), batch["image"])
    likelihood = ZeroInflatedNormal.from_channels(channels).log_prob(batch["image"])
    divergence = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum() / batch["image"].numel()
    assert loss.item() == pytest.approx((divergence - likelihood.mean()).item(), rel=1e-5)


def test_moments_and_gradients_by_plain_formula(batch):
    """The moments, and every gradient, are those of the formula with the mask around each term."""
    channels = torch.randn(4, 3, 32, 32, 32, requires_grad=True)
    latents = torch.zeros(4, 1, 1, 1, 1), torch.ones(4, 1, 1, 1, 1)
    target, inside = batch["image"], (batch["image"] != 0).float()
    loss = EvidenceLowerBoundLoss(normal_weight=3.0, mean_weight=32.0, second_moment_weight=12.0)
    (gradient,) = torch.autograd.grad(loss((channels, *latents), target), channels)
    voxels = ZeroInflatedNormal.from_channels(channels)
    average = torch.nn.AvgPool3d(loss.block_size)
    errors = voxels.loc - target, voxels.loc**2 + voxels.scale**2 - target**2
    moments = loss._square_averages(average(inside), *(average(inside * error) for error in errors))
    for name, expected in zip(("mean", "second_moment"), moments, strict=True):
        assert loss.parts[name].item() == pytest.approx(expected.item(), rel=1e-5)
    normal = -(inside * Normal(voxels.loc, voxels.scale).log_prob(target)).mean()
    support = torch.nn.functional.binary_cross_entropy_with_logits(voxels.logits, inside)
    (plain,) = torch.autograd.grad(support + 3 * normal + 32 * moments[0] + 12 * moments[1], channels)
    torch.testing.assert_close(gradient, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())


def test_moments_vanish_at_truth(batch):
    loss = EvidenceLowerBoundLoss(mean_weight=1.0, second_moment_weight=1.0)
    latents = torch.zeros(4, 1, 1, 1, 1), torch.ones(4, 1, 1, 1, 1)
    loss((true_channels(batch), *latents), batch["image"])
    # parts of some hundred voxels: the error of a sample mean or second moment, squared
    share = support_share(batch)
    assert loss.parts["mean"] < 0.02 * share
    assert loss.parts["second_moment"] < 0.1 * share
    wrong = true_channels(batch)
    wrong[:, 1] += 0.5
    loss((wrong, *latents), batch["image"])
    assert loss.parts["mean"] > 0.2 * share


def test_rim_and_core(batch):
    """Too much in the core does not make up for too little at the rim, nor the other way round."""
    loss = EvidenceLowerBoundLoss(mean_weight=1.0)
    latents = torch.zeros(4, 1, 1, 1, 1), torch.ones(4, 1, 1, 1, 1)
    axis = torch.arange(32) + 0.5
    offsets = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")) - batch["c"].float().view(4, 3, 1, 1, 1)
    distance = offsets.square().sum(dim=1, keepdim=True).sqrt()
    inside = batch["image"] != 0
    core = inside & (distance < batch["r"].float().view(4, 1, 1, 1, 1) / 2 ** (1 / 3))
    faded = true_channels(batch)
    faded[:, 1:2] += 0.5 * core - 0.5 * (inside & ~core)
    error = ((faded[:, 1:2] - true_channels(batch)[:, 1:2]) * inside).sum(dim=(1, 2, 3, 4)) / inside.sum(
        dim=(1, 2, 3, 4)
    )
    assert error.abs().max() < 0.05
    loss((faded, *latents), batch["image"])
    assert loss.parts["mean"] > 0.05 * support_share(batch)


def test_sides(batch):
    """Too much on one side of the ball does not make up for too little on the other."""
    latents = torch.zeros(4, 1, 1, 1, 1), torch.ones(4, 1, 1, 1, 1)
    tilted = true_channels(batch)
    for index, x in enumerate(batch["c"][:, 0].float()):
        tilted[index, 1] += 0.5 * torch.sign(torch.arange(32) + 0.5 - x).view(32, 1, 1)
    found = {}
    for window_size in (8, 32):
        loss = EvidenceLowerBoundLoss(mean_weight=1.0, window_size=window_size)
        loss((tilted, *latents), batch["image"])
        found[window_size] = loss.parts["mean"] / support_share(batch)
    assert found[8] > 0.1
    assert found[32] < 0.02


def test_parts_add_up(batch):
    weights = {"kl_weight": 0.1, "normal_weight": 3.0, "mean_weight": 8.0, "second_moment_weight": 2.0}
    loss = EvidenceLowerBoundLoss(**weights)
    prediction = torch.randn(4, 3, 32, 32, 32), torch.randn(4, 4, 3, 3, 3), torch.rand(4, 4, 3, 3, 3)
    total = loss(prediction, batch["image"])
    parts = loss.parts
    expected = parts["support"] + sum(weight * parts[name.removesuffix("_weight")] for name, weight in weights.items())
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_empty_volume():
    prediction = torch.zeros(1, 3, 8, 8, 8), torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
    assert torch.isfinite(EvidenceLowerBoundLoss(mean_weight=1.0)(prediction, torch.zeros(1, 1, 8, 8, 8)))


def test_negative_weight():
    with pytest.raises(ValueError, match="kl_weight=-1"):
        EvidenceLowerBoundLoss(kl_weight=-1)


@pytest.mark.parametrize("window_size", [6, 0, -4, 16.0, "16"])
def test_windows_of_whole_blocks(window_size):
    with pytest.raises(ValueError, match=rf"window_size={window_size!r}: must be a multiple of block_size=4"):
        EvidenceLowerBoundLoss(window_size=window_size)

"""The decoder's distribution over voxels."""

import pytest
import torch
from scipy import stats

from scripts.model.distributions import ZeroInflatedNormal


@pytest.fixture
def voxels():
    return ZeroInflatedNormal(
        torch.tensor([-1.0, 0.5, 3.0]), torch.tensor([0.2, -0.4, 1.0]), torch.tensor([0.5, 1.0, 2.0])
    )


def test_log_prob_of_both_parts(voxels):
    value = 0.7
    for i in range(3):
        p, loc, scale = voxels.probs[i].item(), voxels.loc[i].item(), voxels.scale[i].item()
        expected = p * stats.norm.pdf(value, loc, scale)
        assert voxels.log_prob(torch.tensor(value))[i].exp().item() == pytest.approx(expected, rel=1e-5)
        assert voxels.log_prob(torch.tensor(0.0))[i].exp().item() == pytest.approx(1 - p, rel=1e-5)


def test_moments_match_samples(voxels):
    n = 200_000
    samples = voxels.sample((n,))
    assert samples.shape == (n, 3)
    # four standard errors of each figure; the fourth moments are below 60
    assert torch.allclose(samples.mean(0), voxels.mean, atol=4 * (voxels.variance.max().item() / n) ** 0.5)
    assert torch.allclose(samples.var(0), voxels.variance, atol=4 * (60 / n) ** 0.5)
    assert torch.allclose((samples != 0).float().mean(0), voxels.probs, atol=4 * 0.5 / n**0.5)


def test_draw_and_mode_in_background(voxels):
    """A draw and the mode are exactly 0 where background is likelier."""
    noise = torch.tensor([1.0, 1.0, -2.0])
    assert voxels.draw(noise).tolist() == pytest.approx([0.0, -0.4 + 1.0, 1.0 - 2 * 2.0])
    assert voxels.mode.tolist() == pytest.approx([0.0, -0.4, 1.0])


def test_log_prob_of_extreme_channels():
    channels = torch.tensor([[-200.0, 0.0, 90.0], [200.0, 5.0, -90.0]])[:, :, None]
    voxels = ZeroInflatedNormal.from_channels(channels)
    assert torch.isfinite(voxels.log_prob(torch.zeros(2, 1, 1))).all()
    assert torch.isfinite(voxels.log_prob(torch.ones(2, 1, 1))).all()


def test_channels_read_in_float32():
    voxels = ZeroInflatedNormal.from_channels(torch.zeros(2, 3, 4, 4, 4, dtype=torch.bfloat16))
    assert voxels.loc.dtype == torch.float32
    assert voxels.batch_shape == (2, 1, 4, 4, 4)
    assert (voxels.scale == 1).all()


def test_channels_wrong_number():
    with pytest.raises(ValueError, match="3 channels"):
        ZeroInflatedNormal.from_channels(torch.zeros(1, 2, 4, 4, 4))

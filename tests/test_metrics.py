"""The metrics of validation, beside MONAI's own."""

import pytest
import torch
from monai.metrics import SSIMMetric

from scripts.evaluation.metrics import SeparableSSIMMetric


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((2, 1, 24, 20, 16), {"spatial_dims": 3, "win_size": 7, "data_range": 10.0}),
        ((2, 3, 16, 16, 16), {"spatial_dims": 3, "win_size": (3, 4, 5), "kernel_sigma": (0.8, 1.5, 2.0)}),
        ((3, 1, 32, 24), {"spatial_dims": 2}),
    ],
)
def test_ssim_is_monais(shape, settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    y = x + 0.3 * torch.randn(shape, generator=generator)
    scores = []
    for metric in (SSIMMetric(**settings), SeparableSSIMMetric(**settings)):
        metric(x, y)
        metric(y.movedim(1, -1).contiguous().movedim(-1, 1), x)  # channels last, as networks return them
        scores.append(metric.get_buffer())
    assert 0.05 < scores[0].min() < scores[0].max() < 0.999  # neither trivial
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-5)


def test_ssim_other_dimensions():
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"must have 5 dimensions, got the shape \(1, 1, 8, 8\)"):
        SeparableSSIMMetric(spatial_dims=3)(image, image)


def test_ssim_other_windows():
    with pytest.raises(ValueError, match="kernel_type='uniform': must be 'gaussian'"):
        SeparableSSIMMetric(spatial_dims=3, kernel_type="uniform")

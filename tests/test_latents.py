"""The latents that the diffusion model is trained on, and the noise that it starts from."""

import pytest
import torch
from conftest import BUNDLE, run_process
from torch import nn
from torch.utils.data import DataLoader

from scripts.data.latents import EncodedLatents, LatentNoise


class Halves(nn.Module):
    """An encoder whose latents are known: mean x / 2, deviation 0.3."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        return x * self.weight, torch.full_like(x, 0.3)


@pytest.fixture
def volumes():
    return torch.randn(64, 1, 4, 4, 4)


@pytest.fixture
def dataset(volumes):
    return [{"image": volume} for volume in volumes]


def test_scale_factor_over_all(volumes, dataset):
    """The latents have the deviation 1: the posterior's means, without its noise."""
    latents = EncodedLatents(dataset, Halves())
    assert latents.scale_factor == pytest.approx(1 / (volumes / 2).std().item())
    scaled = torch.stack([latents[i]["image"] for i in range(len(latents))])
    assert torch.allclose(scaled, volumes / volumes.std(), atol=1e-6)


def test_encode_once(volumes, dataset):
    autoencoder = Halves()
    loader = DataLoader(EncodedLatents(dataset, autoencoder), batch_size=8)
    first, second = (torch.cat([batch["image"] for batch in loader]) for _ in range(2))
    assert autoencoder.calls == len(volumes) / 8 and torch.equal(first, second)


def test_validation_latents_scaled(dataset):
    """Validation latents have the training's scale."""
    training = EncodedLatents(dataset[:32], Halves())
    latents = EncodedLatents(dataset, Halves(), scaled_as=training)
    assert latents.scale_factor == training.scale_factor
    assert latents[5]["index"] == 5 and not torch.equal(latents[5]["image"], latents[6]["image"])


def test_reference_drawn_from_latents(dataset):
    """A draw is of the scaled latents, each as likely as another, and another draw is of others."""
    latents = EncodedLatents(dataset, Halves())
    scaled = torch.stack([latents[i]["image"] for i in range(len(latents))]).flatten(1)
    torch.manual_seed(0)
    drawn = latents.draw(6400).flatten(1)
    assert not torch.equal(drawn[:8], latents.draw(8).flatten(1))
    differences = torch.cdist(drawn, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    assert differences.min(dim=1).values.max() < 1e-3
    # 100 of each are expected, with a standard error of 10
    counts = torch.bincount(differences.argmin(dim=1), minlength=len(latents))
    assert counts.min() > 50 and counts.max() < 150


def test_encoding_is_lazy(dataset):
    """Encoding waits for the first latent, and then fills the scale in."""
    autoencoder = Halves()
    latents = EncodedLatents(dataset, autoencoder)
    scale = latents.scale
    assert len(latents) == 64 and autoencoder.calls == 0 and scale.isnan()
    state = torch.random.get_rng_state()
    latents.latents  # noqa: B018
    assert torch.equal(state, torch.random.get_rng_state())  # a resumed training draws what it would have drawn
    latents[0]
    assert scale.item() == pytest.approx(latents.scale_factor)


def test_noise_by_seed_and_index():
    noise = LatentNoise(4, (4, 4, 4, 4), (1, 8, 8, 8), seed=3)
    longer = LatentNoise(100, (4, 4, 4, 4), (1, 8, 8, 8), seed=3)
    other = LatentNoise(4, (4, 4, 4, 4), (1, 8, 8, 8), seed=4)
    for key in ("image", "texture"):
        assert torch.equal(noise[2][key], longer[2][key])
        assert not torch.equal(noise[2][key], noise[3][key])
        assert not torch.equal(noise[2][key], other[2][key])
    assert noise[2]["index"] == 2
    assert noise[0]["image"].dtype == torch.float32


def test_noise_end():
    with pytest.raises(IndexError):
        LatentNoise(2, (1, 2, 2, 2), (1, 4, 4, 4))[2]


ENCODE = """
import sys
import psutil
from monai.bundle import create_workflow

root, weights, output = sys.argv[1:]
workflow = create_workflow(
    config_file=f"{root}/configs/train_diffusion.json",
    bundle_root=root,
    workflow_type="train",
    output_dir=output,
    autoencoder_path=weights,
    train_size=320,
    train_batch_size=32,
)
from scripts.data.latents import EncodedLatents

resident, volumes = [], workflow.parser.get_parsed_content("train#volumes")

class Watched(list):
    def __getitem__(self, index):
        if index % 8 == 0:
            resident.append(psutil.Process().memory_info().rss)
        return volumes[index]

autoencoder = workflow.parser.get_parsed_content("autoencoder")
EncodedLatents(Watched(range(320)), autoencoder, conditions=("r", "a")).latents
print(resident[-1] - resident[7])
"""


def test_encoding_memory(smoke, tmp_path):
    # What is kept of a batch of 8 volumes is 16 kB; it once took up to 20 MB a batch, 800 MB here. The heap of a fresh
    # process fragments as a user's does; this one's, after other tests, need not.
    arguments = map(str, (BUNDLE, smoke["autoencoder_path"], tmp_path))
    output = run_process("python", "-c", ENCODE, *arguments, folder=tmp_path).stdout
    assert int(output.splitlines()[-1]) < 200e6

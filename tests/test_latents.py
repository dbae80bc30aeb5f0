"""The latents that the diffusion model is trained on, and the noise that it starts from."""

import pytest
import torch
from conftest import BUNDLE, run_process
from monai.networks.schedulers import RFlowScheduler
from torch import nn
from torch.utils.data import DataLoader

from scripts.data.latents import EncodedLatents, LatentNoise
from scripts.model.diffusion import VelocityPrepareBatch


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
    latents = EncodedLatents(dataset, Halves())
    draws = volumes / 2 + 0.3 * torch.randn(200, *volumes.shape)
    assert latents.scale_factor == pytest.approx(1 / draws.std().item(), rel=0.01)
    items = [latents[i] for _ in range(50) for i in range(len(latents))]
    scaled = torch.stack([item["image"] + item["deviation"] * torch.randn_like(item["deviation"]) for item in items])
    assert scaled.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("fixed", [False, True])
def test_encode_once_draw_afresh(volumes, dataset, fixed):
    """Latents are drawn anew for each batch of a training; those of a validation are always the same draw."""
    autoencoder = Halves()
    loader = DataLoader(EncodedLatents(dataset, autoencoder), batch_size=8)
    prepare = VelocityPrepareBatch(RFlowScheduler(num_train_timesteps=1000), 1000, fixed=fixed)
    first, second = ([prepare(batch, "cpu")[0] for batch in loader] for _ in range(2))
    assert autoencoder.calls == len(volumes) / 8
    assert torch.equal(torch.cat(first), torch.cat(second)) == fixed
    # the latents' own draws and no others: their deviation around the mean is the posterior's, at the common scale
    mean = torch.cat([batch["image"] for batch in loader])
    deviation = torch.cat([batch["deviation"] for batch in loader])
    assert ((torch.cat(first) - mean) / deviation).std().item() == pytest.approx(1, abs=0.05)


def test_validation_latents_scaled(dataset):
    """Validation latents have the training's scale."""
    training = EncodedLatents(dataset[:32], Halves())
    latents = EncodedLatents(dataset, Halves(), scaled_as=training)
    assert latents.scale_factor == training.scale_factor
    assert latents[5]["index"] == 5 and not torch.equal(latents[5]["image"], latents[6]["image"])


def test_encoding_is_lazy(dataset):
    """Encoding waits for the first latent, and then fills the scale in."""
    autoencoder = Halves()
    latents = EncodedLatents(dataset, autoencoder)
    scale = latents.scale
    assert len(latents) == 64 and autoencoder.calls == 0 and scale.isnan()
    state = torch.random.get_rng_state()
    latents.posterior  # noqa: B018
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

EncodedLatents(Watched(range(320)), workflow.parser.get_parsed_content("autoencoder")).posterior
print(resident[-1] - resident[7])
"""


def test_encoding_memory(smoke, tmp_path):
    # What is kept of a batch of 8 volumes is 16 kB; it once took up to 20 MB a batch, 800 MB here. The heap of a fresh
    # process fragments as a user's does; this one's, after other tests, need not.
    arguments = map(str, (BUNDLE, smoke["autoencoder_path"], tmp_path))
    output = run_process("python", "-c", ENCODE, *arguments, folder=tmp_path).stdout
    assert int(output.splitlines()[-1]) < 200e6

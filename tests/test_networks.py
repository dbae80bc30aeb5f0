"""The networks as the configs define them, and the autoencoder and generator around them."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import parse_config
from monai.inferers import DiffusionInferer
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler

from scripts import distributed
from scripts.checks import SettingError
from scripts.environment import has_bf16
from scripts.evaluation.metrics import SeparableSSIMMetric
from scripts.model.autoencoder import VolumeAutoencoder
from scripts.model.convolution import SmallConv3d, speed_up
from scripts.model.diffusion import AutocastInferer, VelocityPrepareBatch, average_posterior
from scripts.model.generator import FixedBatchInferer, VolumeGenerator
from scripts.model.sampler import AdamsBashforthScheduler


@pytest.fixture(scope="module")
def autoencoder() -> VolumeAutoencoder:
    return parse_config("train_autoencoder", device="cpu").get_parsed_content("network")


@pytest.fixture(scope="module")
def unet() -> DiffusionModelUNet:
    network = parse_config("inference").get_parsed_content("diffusion_def")
    # MONAI starts the last layer of each block at zero, so that a new network returns 0 and knows no time
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_autoencoder_outputs(autoencoder):
    """A distribution over each voxel, and that of the latents."""
    assert isinstance(autoencoder.network, AutoencoderKL)
    channels, mean, deviation = autoencoder(torch.randn(2, 1, 64, 64, 64))
    assert channels.shape == (2, 3, 64, 64, 64)
    assert mean.shape == deviation.shape == (2, 32, 2, 2, 2)
    assert (deviation > 0).all()


def test_autoencoder_gradients(autoencoder):
    autoencoder.zero_grad()
    channels, mean, deviation = autoencoder(torch.randn(1, 1, 64, 64, 64))
    (channels.square().mean() + mean.square().mean() + deviation.square().mean()).backward()
    # finite, not non-zero: normalisation over a whole volume may take a bias's effect away
    missing = [name for name, parameter in autoencoder.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in autoencoder.parameters())


@pytest.mark.parametrize("overlays", [(), ("generative",)])
def test_activation_checkpointing(overlays):
    """The same gradients, of activations that are not kept for them."""
    x = torch.zeros(2, 1, 64, 64, 64)
    x[..., 10:50, 20:60, 5:45] = torch.randn(40, 40, 40)

    def step(activation_checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        parser = parse_config("train_autoencoder", *overlays, activation_checkpointing=activation_checkpointing)
        torch.manual_seed(0)
        network, loss, kept = *map(parser.get_parsed_content, ("network", "loss")), {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction = network(x)
        weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        loss(prediction, x).backward()
        activations = sum(size for place, size in kept.items() if place not in weights)
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None], activations

    gradients, most = step(False)
    same, less = step(True)
    assert all(torch.equal(*pair) for pair in zip(gradients, same, strict=True))
    assert less < 0.2 * most


def test_encoder_channels(autoencoder):
    """The encoder sees value, centred absolute value and support, as means over blocks."""
    seen = []
    handle = autoencoder.network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.zeros(1, 1, 64, 64, 64)
    x[..., :30] = torch.randn(1, 1, 64, 64, 30)
    with torch.no_grad():
        autoencoder.encode(x)
    handle.remove()
    value, absolute, support = seen[0].unbind(1)
    assert value.shape == (1, 16, 16, 16)
    # the last block of the support is half full
    assert torch.allclose(value[0, 1, 2, 3], x[0, 0, 4:8, 8:12, 12:16].mean())
    assert torch.equal(support[0, 0, 0], torch.tensor([1.0] * 7 + [0.5] + [0.0] * 8))
    assert (absolute[support == 0] == 0).all()
    # 122,880 values: a standard error of 0.0017
    assert abs(absolute[support > 0].mean()) < 0.01


def decode_in_windows(window: int | None) -> torch.Tensor:
    """Decode random latents of 8^3 by a small decoder with layers at full size, in windows or as a whole."""
    small = {"autoencoder_def#channels": [8, 16, 32], "autoencoder_def#norm_num_groups": 8}
    parser = parse_config("inference", "tutorial", decode_window=window, **small)
    torch.manual_seed(0)
    decoder = parser.get_parsed_content("autoencoder").requires_grad_(False)
    return decoder.decode(torch.randn(1, 8, 8, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_decoding_in_windows():
    """A window as large as the latents is the whole; smaller ones are other voxels, in their places."""
    whole = decode_in_windows(None)
    assert whole.shape == (1, 3, 32, 32, 32)
    torch.testing.assert_close(decode_in_windows(8), whole, atol=1e-4, rtol=1e-4)
    parts = decode_in_windows(6)
    assert 0.5 < torch.corrcoef(torch.stack([whole.flatten(), parts.flatten()]))[0, 1] < 0.99


def test_large_volumes():
    """With ``large.json`` the latents of 128^3 voxels are those of 64^3."""
    parser = parse_config("inference", "large")
    assert parser.get_parsed_content("latent_shape") == [32, 2, 2, 2]
    with torch.no_grad():
        decoded = parser.get_parsed_content("autoencoder").decode(torch.randn(1, 32, 2, 2, 2))
    assert decoded.shape == (1, 3, 128, 128, 128)


def test_new_posterior_is_quiet(autoencoder):
    """The posterior of a new autoencoder has a small deviation."""
    with torch.no_grad():
        _, deviation = autoencoder.encode(torch.randn(1, 1, 64, 64, 64))
    assert deviation.median() < 0.2


def test_reconstruction_repeatable(autoencoder):
    x = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        assert torch.equal(autoencoder.reconstruct(x), autoencoder.reconstruct(x))


def test_bf16_close_to_float32(autoencoder):
    x = torch.randn(1, 1, 32, 32, 32)  # a CPU without bf16 is slow
    with torch.no_grad():
        exact = autoencoder.reconstruct(x)
        short = VolumeAutoencoder(autoencoder.network, 4, 2, dtype=torch.bfloat16).reconstruct(x)
    assert short.dtype == torch.float32
    assert (exact - short).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="a CPU without bf16")
def test_bf16_gradients(autoencoder):
    """The gradients are finite where the lowest level is 2^3, on which PyTorch's own convolution fails in bf16."""
    network = VolumeAutoencoder(copy.deepcopy(autoencoder.network), 4, 2, dtype=torch.bfloat16)
    for _ in range(10):  # nine of ten such passes failed
        network.zero_grad()
        network(torch.randn(4, 1, 32, 32, 32))[0].square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 2, 2), (2, 1, 2), (3, 3, 3)])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_small_convolution(kernel_size, grid):
    """It is the usual convolution, with its gradients; in bf16 too, to three of its roundings."""
    usual = torch.nn.Conv3d(3, 5, kernel_size=kernel_size, padding=kernel_size // 2)
    small = speed_up(torch.nn.Sequential(copy.deepcopy(usual)))[0]
    assert type(small) is SmallConv3d and set(small.state_dict()) == set(usual.state_dict())
    x = torch.randn(4, 3, *grid)
    for network in (usual, small):
        network(x).square().sum().backward()
    torch.testing.assert_close(small(x), usual(x))
    torch.testing.assert_close(small.weight.grad, usual.weight.grad)
    torch.testing.assert_close(small.bias.grad, usual.bias.grad)
    with torch.no_grad():
        for network in (usual, small):
            network(x)
            network.weight.mul_(2)  # what was kept of the call before must not be used again
        torch.testing.assert_close(small(x), usual(x))
        torch.testing.assert_close(small(x), usual(x))
        exact = usual(x)
    close = {"rtol": 3 * 2**-8, "atol": 3 * 2**-8}
    for learns in (True, False):
        with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16):
            rounded = small(x)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, **close)
        if learns:
            gradients = [
                torch.autograd.grad(y.float().mean(), list(layer.parameters()))
                for layer, y in ((small, rounded), (usual, usual(x)))
            ]
            torch.testing.assert_close(*gradients, **close)
    with torch.no_grad():  # what was kept of a call in bf16 is not used in float32
        torch.testing.assert_close(small(x), exact)


def test_other_convolutions_stay():
    """Those that change a grid's size, or have another kernel or groups, are left as they are."""
    others = [
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 5, "padding": 1},
        {"kernel_size": 3, "padding": 1, "groups": 2},
    ]
    network = speed_up(torch.nn.Sequential(*(torch.nn.Conv3d(2, 2, **settings) for settings in others)))
    assert {type(layer) for layer in network} == {torch.nn.Conv3d}


def test_shortcuts_are_small_convolutions(unet):
    """Those of the residual blocks that join two inputs have a kernel of 1."""
    speed_up(unet)
    shortcuts = [module for name, module in unet.named_modules() if name.endswith("skip_connection.conv")]
    assert shortcuts and {type(module) for module in shortcuts} == {SmallConv3d}


def test_unet_shape_and_gradients(unet):
    z, t = torch.randn(2, 32, 2, 2, 2), torch.tensor([3, 700])
    prediction = unet(z, t)
    assert prediction.shape == z.shape
    prediction.square().mean().backward()
    silent = [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_unet_knows_timestep(unet):
    z = torch.randn(1, 32, 2, 2, 2)
    with torch.no_grad():
        early, late = unet(z, torch.tensor([0])), unet(z, torch.tensor([900]))
    assert (early - late).abs().mean() > 0.01 * early.abs().mean()


def test_inferer_noises_latents(unet):
    """The inferer noises latents that are scaled already, without an autoencoder."""
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195
    )
    inferer = AutocastInferer(DiffusionInferer(scheduler))
    z, noise, t = torch.randn(2, 32, 2, 2, 2), torch.randn(2, 32, 2, 2, 2), torch.tensor([10, 900])
    with torch.no_grad():
        prediction = inferer(z, unet, noise=noise, timesteps=t)
        expected = unet(scheduler.add_noise(z, noise, t), t)
        short = AutocastInferer(DiffusionInferer(scheduler), torch.bfloat16)(z, unet, noise=noise, timesteps=t)
    assert torch.equal(prediction, expected)
    assert short.dtype == torch.float32
    assert 0 < (short - expected).abs().mean() < 0.02 * expected.abs().mean()


SCHEDULERS = {
    "diffusion": DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction"),
    "rectified flow": RFlowScheduler(num_train_timesteps=1000),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_validation_noise_fixed(name):
    """Noise is the same in each validation, and timesteps are spread over all."""
    prepare = VelocityPrepareBatch(scheduler=SCHEDULERS[name], num_train_timesteps=1000, fixed=True)
    batch = {"image": torch.randn(8, 4, 4, 4, 4), "index": torch.arange(8)}
    first, second = prepare(batch), prepare(batch)
    assert torch.equal(first[1], second[1]) and torch.equal(first[3]["noise"], second[3]["noise"])
    alone = prepare({name: values[5:6] for name, values in batch.items()})
    assert torch.equal(alone[1], first[1][5:6]) and torch.equal(alone[3]["noise"], first[3]["noise"][5:6])
    _, _, _, more = prepare({"image": torch.zeros(256, 4, 1, 1, 1), "index": torch.arange(256)})
    counts = torch.bincount(more["timesteps"] * 8 // 1000)
    assert len(counts) == 8 and (counts - 32).abs().max() <= 2


@pytest.mark.parametrize("name", SCHEDULERS)
def test_training_noise_fresh(name):
    prepare = VelocityPrepareBatch(scheduler=SCHEDULERS[name], num_train_timesteps=1000)
    batch = {"image": torch.randn(500, 4, 1, 1, 1)}
    first, second = prepare(batch), prepare(batch)
    assert not torch.equal(first[3]["noise"], second[3]["noise"])
    # the mean of 500 uniform timesteps has a standard error of 13
    assert first[3]["timesteps"].float().mean().item() == pytest.approx(500, abs=65)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_velocity_leads_to_clean(name):
    """The target velocity leads from noisy latents back to clean ones."""
    scheduler = SCHEDULERS[name]
    images, velocity, _, more = VelocityPrepareBatch(scheduler=scheduler, num_train_timesteps=1000)(
        {"image": torch.randn(16, 4, 4, 4, 4)}
    )
    noisy = scheduler.add_noise(images, more["noise"], more["timesteps"])
    t = more["timesteps"].view(-1, 1, 1, 1, 1)
    if name == "diffusion":
        alpha = scheduler.alphas_cumprod[t.long()]
        clean = alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity
    else:
        clean = noisy + t / 1000 * velocity
    assert torch.allclose(clean, images, atol=1e-4)


@pytest.mark.parametrize("timestep", [0, 500, 999])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_averaged_target(name, timestep):
    """For normal data the posterior's mean is known: the average over references is it, with little of the variance."""
    torch.manual_seed(0)
    add_noise = SCHEDULERS[name].add_noise
    images, noise = torch.randn(2, 1000, 4, 1, 1, 1)
    timesteps = torch.full((len(images),), timestep)
    one = torch.ones(1, 1, 1, 1, 1)
    alpha, sigma = add_noise(one, 0 * one, timesteps[:1]), add_noise(0 * one, one, timesteps[:1])
    noisy = add_noise(images, noise, timesteps)
    # a reference of its own for each, so that their errors are independent
    pairs = [
        average_posterior(*item, SCHEDULERS[name], torch.randn(63, 4, 1, 1, 1))
        for item in zip(images.split(1), noise.split(1), timesteps.split(1), strict=True)
    ]
    mean, mean_noise = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert torch.allclose(add_noise(mean, mean_noise, timesteps), noisy, atol=1e-5)
    error, plain = ((values - alpha * noisy / (alpha**2 + sigma**2)).flatten() for values in (mean, images))
    if timestep == 0:
        assert torch.allclose(mean, images, atol=1e-2)
        return
    assert error.square().mean() < 0.2 * plain.square().mean()
    # 4 standard errors: of the bias, and of the part of it that grows with the noisy data
    for values in (error, error * noisy.flatten()):
        assert values.mean().abs() < 4 * values.std() / len(values) ** 0.5


def test_target_alike_by_several_processes(monkeypatch):
    """Processes that share a batch average over the same reference as one process would."""
    pool, images = torch.randn(300, 4, 1, 1, 1), torch.randn(12, 4, 1, 1, 1)
    prepare = VelocityPrepareBatch(
        SCHEDULERS["rectified flow"], 1000, reference=lambda count: pool[torch.randint(len(pool), (count,))]
    )

    def target(part: slice) -> torch.Tensor:
        torch.manual_seed(0)
        return prepare({"image": images[part]})[1]

    whole = target(slice(None))
    monkeypatch.setattr(distributed.idist, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed.idist, "get_rank", lambda rank=rank: rank)
        assert torch.allclose(target(slice(rank, None, 3)), whole[rank::3], atol=1e-5)


@pytest.mark.parametrize("size", [-1, 2.5, "many"])
def test_reference_of_whole_size(size):
    with pytest.raises(ValueError, match=f"reference_size={size!r}: must be a whole number, 0 or more"):
        VelocityPrepareBatch(SCHEDULERS["rectified flow"], 1000, reference_size=size)


@pytest.mark.parametrize("steps", [5, 10, 25, 50, 1000])
@pytest.mark.parametrize(
    ("overlays", "first"), [((), 1000), (("diffusion",), 999)], ids=["rectified flow", "diffusion"]
)
def test_sampler_timesteps_join(overlays, first, steps):
    """Each sampling step ends where the next begins."""
    # MONAI's DDIM goes from t to t - 1000 // steps; the overlay's offset makes its timesteps that far apart.
    parser = parse_config("inference", *overlays, num_inference_steps=steps)
    if not overlays:
        parser["sampler#shift"] = 1.0
    scheduler = parser.get_parsed_content("sampler")
    scheduler.set_timesteps(steps)
    stride = 1000 // steps
    assert scheduler.timesteps.tolist() == list(range(first, first - 1000, -stride))


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 5.0])
def test_shifted_timesteps(steps, shift):
    """The even times t become s t / (1 + (s - 1) t), from pure noise on, all different."""
    scheduler = AdamsBashforthScheduler(num_train_timesteps=1000, use_discrete_timesteps=False, shift=shift)
    scheduler.set_timesteps(steps)
    even = 1 - np.arange(steps) / steps
    assert np.allclose(scheduler.timesteps, 1000 * shift * even / (1 + (shift - 1) * even), rtol=1e-6)
    assert scheduler.timesteps[0] == 1000 and (scheduler.timesteps.diff() < 0).all()


def test_wrong_shift():
    for shift in (0, -1.0, "2", None, math.nan):
        with pytest.raises(SettingError, match="sampler#shift="):
            AdamsBashforthScheduler(shift=shift)
    with pytest.raises(SettingError, match="sampler#corrector='no': must be true or false"):
        AdamsBashforthScheduler(corrector="no")
    scheduler = AdamsBashforthScheduler(num_train_timesteps=1000, shift=2.0)  # whole timesteps
    scheduler.set_timesteps(100)
    with pytest.raises(SettingError, match="fall on one whole timestep"):
        scheduler.set_timesteps(1000)


def sample_gaussian(scheduler, steps) -> float:
    """Sample N(0, 0.2^2) by its true velocity, and return the error of the end point, which is known."""
    # Along x_t = (1 - t) x_1 + t x_0 the deviation is s(t) = sqrt((0.2 (1 - t))^2 + t^2), and the flow scales by it.
    scheduler.set_timesteps(steps)

    def velocity(noisy, timesteps, context=None):
        t = timesteps / 1000
        return noisy * (0.04 * (1 - t) - t) / (0.04 * (1 - t) ** 2 + t**2)

    start = torch.linspace(-3, 3, 64, dtype=torch.float64).view(1, 1, 4, 4, 4)
    end = DiffusionInferer(scheduler).sample(start, velocity, verbose=False)
    return float((end - 0.2 * start).abs().max())


@pytest.mark.parametrize(
    ("shift", "share", "corrector"), [(1.0, 0.02, True), (2.0, 0.05, True), (1.0, 0.2, False), (2.0, 0.2, False)]
)
def test_sampler_of_second_order(shift, share, corrector):
    """Half the step, a quarter of the error, where Euler's rule has half; and less error at equal calls."""
    kind = {"use_discrete_timesteps": False, "shift": shift, "corrector": corrector}
    scheduler = AdamsBashforthScheduler(num_train_timesteps=1000, **kind)
    errors = {steps: sample_gaussian(scheduler, steps) for steps in (100, 200)}
    assert 3.3 < errors[100] / errors[200] < 4.7
    euler = RFlowScheduler(num_train_timesteps=1000)
    assert errors[100] < share * sample_gaussian(euler, 100)
    assert 1.7 < sample_gaussian(euler, 100) / sample_gaussian(euler, 200) < 2.3


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_sampler_corrects_steps(steps):
    """A velocity linear in time is followed exactly: the correction takes back the error of Euler's first step."""
    scheduler = AdamsBashforthScheduler(num_train_timesteps=1000, use_discrete_timesteps=False, shift=2.0)
    scheduler.set_timesteps(steps)
    start = torch.randn(1, 2, 2, 2, 2, dtype=torch.float64)
    calls = []

    def velocity(noisy, timesteps, context=None):
        calls.append(float(timesteps))
        return 1 + timesteps / 250 + 0 * noisy

    end = DiffusionInferer(scheduler).sample(start, velocity, verbose=False)
    assert torch.allclose(end, start + 3, atol=1e-5)  # the mean of the velocity is its value at half the time
    assert len(calls) == steps


@pytest.mark.parametrize("name", ["train_diffusion", "inference", "evaluate"])
def test_corrector_without_conditions(name):
    """A model that knows conditions, and may be guided, is sampled without the corrector; so it was scored."""
    assert parse_config(name).get_parsed_content("sampler").corrector is True
    assert parse_config(name, "conditional").get_parsed_content("sampler").corrector is False


def test_sampler_goes_on_from_sample():
    """Latents that a caller changes between two steps stay changed."""
    scheduler = AdamsBashforthScheduler(num_train_timesteps=1000, use_discrete_timesteps=False)
    ends = []
    for shift in (0.0, 7.0):
        scheduler.set_timesteps(2)
        x = torch.ones(1, 1, 2, 2, 2)
        for scale, (begin, end) in zip((3, 5), ((1000.0, 500.0), (500.0, 0.0)), strict=True):
            x, _ = scheduler.step(scale * torch.ones_like(x), begin, x, end)
            x = x + shift
        ends.append(x)
    assert torch.allclose(ends[1], ends[0] + 14)


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_sampler_adds_in_longer_type(kinds):
    """Velocities of a shorter type than the latents, or of a longer one, are added without its rounding."""
    ends = []
    for velocity, latents in (kinds, (torch.float64, torch.float64)):
        scheduler = AdamsBashforthScheduler(num_train_timesteps=1000, use_discrete_timesteps=False)
        scheduler.set_timesteps(2)
        x = torch.ones(1, 1, 2, 2, 2, dtype=latents)
        for value, (begin, end) in zip((1, 1 + 2**-7), ((1000.0, 500.0), (500.0, 0.0)), strict=True):
            x, _ = scheduler.step(torch.full(x.shape, value, dtype=velocity), begin, x, end)
        ends.append(x)
    assert ends[0].dtype == torch.float32
    assert torch.allclose(ends[0].double(), ends[1], atol=1e-6, rtol=0)


def test_sampler_forgets_trajectory():
    """Each trajectory starts with Euler's step, after a finished one and after one that was broken off."""
    scheduler = AdamsBashforthScheduler(num_train_timesteps=1000, use_discrete_timesteps=False, shift=2.0)
    first = sample_gaussian(scheduler, 4)
    assert sample_gaussian(scheduler, 4) == first
    x, v = torch.ones(1, 1, 2, 2, 2), torch.full((1, 1, 2, 2, 2), 3.0)
    begin, following = scheduler.timesteps[:2]
    scheduler.step(v, begin, x, following)  # broken off here
    again, _ = scheduler.step(2 * v, begin, x, following)
    assert torch.allclose(again, x + 2 * v * (begin - following) / 1000)
    later, _ = scheduler.step(v, 500.0, 5 * x, 400.0)  # another broken off; this one starts elsewhere
    assert torch.allclose(later, 5 * x + 0.1 * v)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("overlays", [(), ("diffusion",)], ids=["rectified flow", "diffusion"])
def test_sampler_finds_data(overlays, steps):
    """With the true velocity a sampler ends at the data."""
    # of a distribution with a single point, whose velocity is known in closed form
    scheduler = parse_config("inference", *overlays, num_inference_steps=steps).get_parsed_content("sampler")
    scheduler.set_timesteps(steps)
    point = torch.randn(2, 4, 4, 4, 4)

    def velocity(noisy, timesteps, context=None):
        if not overlays:
            return (point - noisy) / (timesteps / 1000)
        alpha = scheduler.alphas_cumprod[timesteps.long()]
        noise = (noisy - alpha.sqrt() * point) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * point

    sample = DiffusionInferer(scheduler).sample(torch.randn_like(point), velocity, verbose=False)
    assert torch.allclose(sample, point, atol=1e-4)


@pytest.fixture(scope="module")
def generator(unet) -> VolumeGenerator:
    copied = copy.deepcopy(unet)  # for a generator's networks no longer learn
    network = parse_config("inference", num_inference_steps=3, diffusion_def=copied).get_parsed_content("network_def")
    # an untrained decoder calls every voxel about as likely foreground as not; make most of them foreground
    network.autoencoder.network.decoder.blocks[-1].conv.bias.data[:64] = 0.5  # the log-odds of a block's voxels
    return network


def test_generator_outputs(generator):
    volumes = generator(torch.randn(2, 32, 2, 2, 2))
    assert volumes.shape == (2, 1, 64, 64, 64)
    assert volumes.dtype == torch.float32
    assert 0 < (volumes == 0).float().mean() < 1


def test_generator_texture(generator):
    """The texture is a fresh draw unless it is given."""
    noise, texture = torch.randn(1, 32, 2, 2, 2), torch.randn(1, 1, 64, 64, 64)
    assert not torch.equal(generator(noise), generator(noise))
    assert torch.equal(generator(noise, texture), generator(noise, texture))


def test_generator_scale_factor(generator):
    """Sampling divides the latents by the scale factor of the weights."""
    noise, texture = torch.randn(1, 32, 2, 2, 2), torch.randn(1, 1, 64, 64, 64)
    seen = []
    handle = generator.autoencoder.network.post_quant_conv.register_forward_pre_hook(lambda _, z: seen.append(z[0]))
    state = generator.state_dict()
    generator(noise, texture)
    generator.load_state_dict({**state, "scale_factor": torch.tensor(4.0)})
    generator(noise, texture)
    handle.remove()
    generator.load_state_dict({**state, "scale_factor": torch.tensor(1.0)})
    assert torch.allclose(seen[0], 4 * seen[1], rtol=1e-5)


def test_fixed_batch():
    """The network always gets batches of the same size."""
    sizes = []

    def network(x, y):
        sizes.append(len(x))
        return x + y

    x, y = torch.randn(7, 2), torch.randn(7, 2)
    assert torch.equal(FixedBatchInferer(batch_size=3)(x, network, y), x + y)
    assert sizes == [3, 3, 3]


META = {"device": "$torch.device('meta')", "precision": "float32"}


def devices_in(found) -> set[str]:
    """Name the devices of all tensors in what a component returned, or holds."""
    if isinstance(found, torch.Tensor):
        return {found.device.type}
    if isinstance(found, dict):
        found = found.values()
    return set().union(*map(devices_in, found)) if not isinstance(found, str) and hasattr(found, "__iter__") else set()


# A tensor on `meta` has a device but no values, and an operation on tensors of two devices fails: so a component that
# makes a tensor of its own where it should not is found without a GPU.
@pytest.mark.parametrize(
    "overlays", [(), ("train_autoencoder_l1",), ("train_autoencoder_gan",), ("generative",)], ids="+".join
)
def test_first_stage_stays_on_device(overlays):
    """Network, loss, inferer, batches, post-processing and metrics of the first stage."""
    parser = parse_config("train_autoencoder", *overlays, **META)
    network = parser.get_parsed_content("network")
    item = {"image": torch.randn(2, 1, 32, 32, 32), "signal": torch.randn(2, 1, 32, 32, 32)}
    batch = {**item, "a": torch.zeros(2), "b": torch.ones(2)}
    images, targets = parser.get_parsed_content("train#prepare_batch")(batch, torch.device("meta"))
    prediction = network(images)
    loss = parser.get_parsed_content("loss")
    value = loss(prediction, targets)
    value.backward()
    assert devices_in([images, targets, prediction, value, getattr(loss, "parts", {})]) == {"meta"}
    assert devices_in(parameter.grad for parameter in network.parameters() if parameter.grad is not None) == {"meta"}
    channels = parser.get_parsed_content("validate#inferer")(images, network)
    scores = parser.get_parsed_content("validate#postprocessing")({**batch, "image": images, "pred": channels})
    derived = {name: scores[name] for name in scores.keys() - batch.keys()}
    assert devices_in(derived) == {"meta"}
    ssim = SeparableSSIMMetric(spatial_dims=3, win_size=7, data_range=10.0)
    assert devices_in(ssim._compute_metric(scores["reconstruction"], images)) == {"meta"}


@pytest.mark.parametrize("overlays", [(), ("diffusion",), ("ddpm",), ("generative",)], ids="+".join)
def test_second_stage_stays_on_device(overlays):
    """Network, inferer, batches and sampler of the second stage."""
    device = torch.device("meta")
    training = parse_config("train_diffusion", *overlays, **META)
    network, average = training.get_parsed_content("network"), training.get_parsed_content("ema")
    # as encoded: the latents stay in the host's memory
    training.get_parsed_content("train#dataset").encoded = torch.randn(8, 32, 2, 2, 2), torch.empty(8, 0)
    for side in ("train", "validate"):
        prepare = training.get_parsed_content(f"{side}#prepare_batch")
        batch = {"image": torch.randn(2, 32, 2, 2, 2), "index": torch.arange(2)}
        images, target, args, more = prepare(batch, device)
        prediction = training.get_parsed_content(f"{side}#inferer")(images, network, *args, **more)
        loss = training.get_parsed_content("loss")(prediction, target)
        assert devices_in([images, target, args, more, prediction, loss]) == {"meta"}
    loss.backward()
    assert devices_in(parameter.grad for parameter in network.parameters()) == {"meta"}
    assert devices_in(average.ema_model.state_dict()) == {"meta"}
    steps = {"num_inference_steps": 2, "num_train_timesteps": 2}
    sampling = parse_config("inference", *overlays, **steps, **META)
    generator = sampling.get_parsed_content("network_def").to(device)
    noise, texture = torch.zeros(3, 32, 1, 1, 1, device=device), torch.zeros(3, 1, 32, 32, 32, device=device)
    volumes = FixedBatchInferer(2)(noise, generator, texture)
    assert devices_in(volumes) == devices_in(generator.state_dict()) == {"meta"} and volumes.shape == texture.shape

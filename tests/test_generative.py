"""The monai-generative package as a backend: the same numbers, weights that pass both ways, every config."""

import pytest
import torch
from conftest import BUNDLE, SMALL, find_mistake, make_workflow, parse_config, read_json, run_workflow
from monai.engines import SupervisedTrainer
from monai.networks.blocks import SpatialAttentionBlock

from scripts.checks import SettingError
from scripts.tools.conversion import convert_weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The whole generator of both packages with the released weights, by the documented command."""
    core, generative = (
        parse_config("inference", "diffusion", *overlay, device="cpu").get_parsed_content("network_def").eval()
        for overlay in ((), ("generative",))
    )
    released, path = BUNDLE / "models" / "model.pt", tmp_path_factory.mktemp("converted") / "model.pt"
    run_workflow("inference", "inference_convert", model_path=str(released), output_path=str(path))
    for generator, file in ((core, released), (generative, path)):
        # monai-generative has no rectified flow: both sample these weights as a diffusion's, well or badly
        generator.load_state_dict(torch.load(file) | {"rectified_flow": torch.tensor(False)})
    return core, generative


def assert_equal_numbers(a: torch.Tensor, b: torch.Tensor) -> None:
    """Within 1e-5, of the largest value where that is above 1: a decoder's log-odds go up to a hundred."""
    torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(a.abs().max())), rtol=0)


def test_networks_agree(pair):
    core, generative = pair
    x = torch.randn(1, 3, 64, 64, 64)
    z, t = torch.randn(2, 32, 2, 2, 2), torch.tensor([3, 700])
    latents = torch.randn(2, 4, 4, 4, 4)
    with torch.no_grad():
        for a, b in zip(core.autoencoder.network.encode(x), generative.autoencoder.network.encode(x), strict=True):
            assert_equal_numbers(a, b)
        for decode in ("decode", "decode_stage_2_outputs"):
            a, b = (getattr(one.autoencoder.network, decode)(latents) for one in pair)
            assert_equal_numbers(a, b)
        a, b = core.diffusion_model(z, t), generative.diffusion_model(z, t)
    assert_equal_numbers(a, b)
    assert a.abs().mean() > 0.1, "a network that returns nothing agrees with every other"


def test_samplers_agree(pair):
    noise = torch.randn(2, 32, 2, 2, 2)
    latents = []
    for one in pair:
        inferer = one._make_inferer(one.scheduler, scale_factor=1.0)
        assert type(inferer).__module__.split(".")[0] == ("monai" if one is pair[0] else "generative")

        class Latents(torch.nn.Module):
            """Instead of a decoder, which would square the differences away."""

            def decode_stage_2_outputs(self, z):
                return z

        with torch.no_grad():
            latents.append(
                inferer.sample(
                    input_noise=noise,
                    autoencoder_model=Latents(),
                    diffusion_model=one.diffusion_model,
                    verbose=False,
                )
            )
    assert_equal_numbers(*latents)
    texture = torch.randn(2, 1, 64, 64, 64)
    volumes = [one(noise, texture) for one in pair]
    same = (volumes[0] != 0) == (volumes[1] != 0)
    assert (~same).float().mean() < 1e-5  # voxels whose odds are even but for rounding
    torch.testing.assert_close(volumes[0][same], volumes[1][same], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["model.pt", "model_autoencoder.pt"])
def test_convert_both_ways(name, tmp_path):
    """One command takes weights to the other package and back."""
    source = BUNDLE / "models" / name
    there, back = tmp_path / "there.pt", tmp_path / "back.pt"
    run_workflow("inference", "inference_convert", model_path=str(source), output_path=str(there))
    run_workflow("inference", "inference_convert", model_path=str(there), output_path=str(back))
    first, middle, last = (torch.load(path) for path in (source, there, back))
    assert set(middle) != set(first) == set(last)
    # one projection of each of the autoencoder's attentions is folded into another: the same function
    changed = {key for key in first if not torch.equal(first[key], last[key])}
    assert changed and all(".attn.to_v." in key or ".attn.out_proj." in key for key in changed)
    again = tmp_path / "again.pt"
    run_workflow("inference", "inference_convert", model_path=str(back), output_path=str(again))
    again = torch.load(again)
    assert all(torch.equal(middle[key], again[key]) for key in middle)


def test_convert_other_attention(tmp_path):
    """An attention without a counterpart is refused."""
    network = torch.nn.Sequential(SpatialAttentionBlock(3, 32, num_head_channels=16, norm_num_groups=1))
    path = tmp_path / "network.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(SettingError, match="an attention of 2 heads"):
        convert_weights(path, tmp_path / "out.pt", [(network, network)])


def test_convert_other_network(tmp_path):
    """Weights of another network are refused."""
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    out = tmp_path / "out.pt"
    message = find_mistake(
        lambda: run_workflow("inference", "inference_convert", model_path=str(path), output_path=str(out))
    )
    assert "fits neither MONAI's nor monai-generative's" in message
    assert not out.exists()


def test_backend_runs_all(tmp_path):
    """The other package trains, samples and evaluates."""
    sizes = {**SMALL, "epochs": 1, "train_size": 4}
    run_workflow("train_autoencoder", "generative", "smoke", output_dir=str(tmp_path / "stage_1"), **sizes)
    paths = {"autoencoder_path": str(tmp_path / "stage_1" / "model_autoencoder.pt")}
    workflow = run_workflow("train_diffusion", "generative", "smoke", output_dir=str(tmp_path), **sizes, **paths)
    for name in ("network_def", "autoencoder_def", "scheduler", "sampler", "diffusion_inferer"):
        assert type(workflow.parser.get_parsed_content(name)).__module__.startswith("generative."), name
    paths["model_path"] = str(tmp_path / "model.pt")
    run_workflow("evaluate", "generative", "smoke", output_dir=str(tmp_path), image_size=32, **paths)
    assert read_json(tmp_path / "fidelity.json")["settings"]["num_samples"] == 4
    del paths["autoencoder_path"]
    run_workflow("inference", "generative", "smoke", output_dir=str(tmp_path), image_size=32, **paths)
    # the weights, converted, generate the same volumes in MONAI's networks
    core = str(tmp_path / "core.pt")
    run_workflow("inference", "inference_convert", model_path=paths["model_path"], output_path=core)
    generators = [
        make_workflow("inference", *overlays, "smoke", model_path=path, precision="float32", device="cpu")
        for overlays, path in ((["generative"], paths["model_path"]), (["diffusion"], core))
    ]
    noise, texture = torch.randn(1, 32, 1, 1, 1), torch.randn(1, 1, 32, 32, 32)
    volumes = [one.parser.get_parsed_content("network_def").eval()(noise, texture) for one in generators]
    torch.testing.assert_close(*volumes, atol=1e-4, rtol=0)


def test_tutorial_sizes(tmp_path):
    """Networks of the tutorial's own sizes are built and take a step."""
    sizes = {"image_size": 16, "epochs": 1, "train_size": 1, "train_batch_size": 1, "val_size": 1, "device": "cpu"}
    path = str(tmp_path / "autoencoder.pt")
    for stage, weights in (("train_autoencoder", {}), ("train_diffusion", {"autoencoder_path": path})):
        folder = str(tmp_path / stage)
        workflow = make_workflow(stage, "tutorial", "smoke", output_dir=folder, **weights, **sizes)
        network, loader, optimizer, loss = map(
            workflow.parser.get_parsed_content, ("network", "train#dataloader", "optimizer", "loss")
        )
        trainer = SupervisedTrainer(  # without the handlers, whose checkpoints would be gigabytes
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss,
            prepare_batch=workflow.parser.get_parsed_content("train#prepare_batch"),
            inferer=workflow.parser.get_parsed_content("train#inferer"),
        )
        before = [parameter.detach().clone() for parameter in network.parameters()]
        trainer.run()
        assert trainer.state.iteration == 1
        assert not all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
        if stage == "train_autoencoder":
            torch.save(workflow.parser.get_parsed_content("network_def").state_dict(), path)
    count = {
        name: sum(p.numel() for p in workflow.parser.get_parsed_content(name).parameters())
        for name in ("network_def", "autoencoder_def")
    }
    assert count["network_def"] > 1.5e8 and count["autoencoder_def"] > 2e7

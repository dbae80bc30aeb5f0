"""The page that each workflow ends with: what is in it, and that it stands alone."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import BUNDLE, read_config, read_json, run_process

from scripts.checks import SettingError
from scripts.evaluation.table import LABELS
from scripts.report.page import pack_volume, render_report


def read(folder: Path) -> str:
    return (folder / "report.html").read_text()


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def unpack(volume: dict) -> np.ndarray:
    grey = np.frombuffer(gzip.decompress(base64.b64decode(volume["data"])), np.uint8).reshape(volume["shape"])
    return volume["low"] + grey * ((volume["high"] - volume["low"]) / 255)


@pytest.fixture
def scan(tmp_path):
    """Somebody's own volume: not a cube, anisotropic, its first axis from right to left."""
    values = np.random.default_rng(0).normal(100, 20, (12, 30, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.5, 0.5, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    return values


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_page_of_training(stage, smoke):
    page = read(smoke[stage])
    assert headings(page) == ["Curves", "Slices while it trained", "Settings", "Environment"]
    groups = re.findall(r'<img class="curve" src="data:image/svg\+xml;base64,([^"]+)" alt="curves of (\w+)"', page)
    drawn = {group: base64.b64decode(svg).decode() for svg, group in groups}
    assert list(drawn)[:2] == ["train", "validation"]
    assert "learning rate" in drawn["train"] and "epoch loss" in drawn["train"]
    assert ("ssim ratio" if stage == "autoencoder" else "val loss") in drawn["validation"]
    if stage == "autoencoder":
        assert "perfect denoiser" in drawn["validation"] and "kl" in drawn["loss_parts"]
    # two epochs, the last of them shown
    assert re.findall(r'data-epoch="(\d)"( hidden)?>', page) == [("1", " hidden"), ("2", "")]
    assert set(re.findall(r'alt="(\w+), epoch 2"', page)) == {"input", "reconstruction", "sample"}
    assert "train_batch_size" in page and "PyTorch" in page


def test_page_of_generation(generated):
    """Volumes, their table and, after an evaluation, their fidelity."""
    page = read(generated)
    assert headings(page) == [
        "Volumes",
        "Measured in each volume",
        "Fidelity to the true law",
        "Pictures",
        "Settings",
        "Environment",
    ]
    (packed,) = re.findall(r'<script type="application/json" id="packed">(.*?)</script>', page)
    volumes = json.loads(packed)["volumes"]
    assert [volume["name"] for volume in volumes] == [f"sphere_{i:05d}.nii.gz" for i in range(4)]
    for volume in volumes:
        expected = nibabel.load(generated / volume["name"]).get_fdata().clip(volume["low"], volume["high"])
        grey_level = (volume["high"] - volume["low"]) / 255
        np.testing.assert_allclose(unpack(volume), expected, atol=0.51 * grey_level)
    assert page.count('<img class="picture"') == 3

    fidelity = read_json(generated / "fidelity.json")
    for name, line in fidelity["volumes"].items():
        verdict = {True: ">ok<", False: ">FAILS<"}.get(line.get("ok"), "")
        label = LABELS[name].replace("'", "&#39;")
        row = next(row for row in page.split("<tr>") if f"<td>{label}</td>" in row)
        assert f"<td>{line['value']:.4f}</td>" in row and verdict in row, name
    assert page.count(">FAILS<") == len(fidelity["failed"]) > 0  # two epochs on 16 volumes


@pytest.mark.parametrize("config", ["train_autoencoder", "train_diffusion", "inference", "evaluate"])
def test_report_is_last_step(config):
    """The report comes last, so that its failure loses no work."""
    steps = read_config(config)["run"]
    assert steps[-1]["_target_"] == "scripts.report.page.write_report"


def test_page_loads_nothing(smoke, generated):
    for folder in (smoke["autoencoder"], smoke["diffusion"], generated):
        page = read(folder)
        links = re.findall(r'(?:src|href|action|data)="([^"]*)"', page)
        assert links and all(link.startswith(("data:", "#")) for link in links)
        assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)


def test_page_of_own_volumes(scan, tmp_path):
    page = render_report(tmp_path).read_text()
    assert headings(page) == ["Volumes"]
    volume = pack_volume(tmp_path / "scan.nii.gz")
    assert volume["shape"] == [12, 30, 20] and volume["spacing"] == [0.5, 0.5, 2.0]
    # x grows to the right, as the affine says
    np.testing.assert_allclose(unpack(volume), scan[::-1].clip(volume["low"], volume["high"]), atol=0.5)


def test_page_with_markup(scan, tmp_path):
    """A table of something else than spheres, with markup in a cell."""
    (tmp_path / "samples.csv").write_text("file,note\nscan.nii.gz,<b>5 & 6</b>\n")
    page = render_report(tmp_path).read_text()
    assert headings(page) == ["Volumes", "Measured in each volume"]
    assert "&lt;b&gt;5 &amp; 6&lt;/b&gt;" in page and "<b>5" not in page


def test_page_of_large_volumes(tmp_path):
    """Large volumes are thinned out, and only the first eight are shown."""
    values = np.zeros((200, 10, 10), np.float32)
    for i in range(9):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"volume_{i}.nii.gz")
    volume = pack_volume(tmp_path / "volume_0.nii.gz")
    assert volume["shape"] == [100, 5, 5] and volume["spacing"] == [2.0, 2.0, 2.0]
    assert volume["high"] > volume["low"] and not unpack(volume).any()
    assert render_report(tmp_path).read_text().count('"spacing"') == 8


def test_page_with_damaged_volume(scan, tmp_path, caplog):
    """A damaged volume is left out and the others are shown."""
    whole = (tmp_path / "scan.nii.gz").read_bytes()
    (tmp_path / "damaged.nii.gz").write_bytes(whole[: len(whole) // 2])
    page = render_report(tmp_path).read_text()
    assert '"scan.nii.gz"' in page and "damaged.nii.gz" not in page
    assert "damaged.nii.gz is not in the report" in caplog.text


def test_report_command(generated, tmp_path):
    """The command line writes the same page, and names a folder it can't use."""
    folder = tmp_path / "copy"
    shutil.copytree(generated, folder)
    (folder / "report.html").unlink()
    command = ("python", "-m", "scripts.report")
    run_process(*command, str(folder), folder=BUNDLE)
    assert read(folder) == read(generated)

    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "holds nothing"), ("none", "no such folder")):
        with pytest.raises(SettingError, match=words):
            render_report(tmp_path / name)
    result = run_process(*command, "none", folder=BUNDLE, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: output_dir='none': no such folder")


def test_page_escapes_what_files_say(scan, tmp_path):
    """Names and texts of files are text in the page, whatever they hold."""
    wild = "<script>alert(1)</script>"
    run = {"title": wild, "settings": {wild: wild}, "environment": {"device": wild, "precision": wild}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "samples.csv").write_text(f"file,{wild}\nscan.nii.gz,{wild}\n{wild.replace('/', '')},1\n")
    (tmp_path / "<b>.png").write_bytes(b"")
    page = render_report(tmp_path).read_text()
    assert page.count("<script>alert") == page.count("</script>alert") == page.count("<b>") == 0
    assert "&lt;script&gt;alert(1)" in page and "scan.nii.gz" in page


def test_page_keeps_to_its_folder(scan, tmp_path):
    """A table that names a file elsewhere does not bring it into the page."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "samples.csv").write_text("file\n../scan.nii.gz\n")
    page = render_report(inside).read_text()
    (packed,) = re.findall(r'id="packed">(.*?)</script>', page) or ['{"volumes": []}']
    assert json.loads(packed)["volumes"] == []

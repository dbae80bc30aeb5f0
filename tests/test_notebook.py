"""The Colab notebook: executed from top to bottom at toy sizes, on the CPU."""

import contextlib
import os
import shutil
import signal
from pathlib import Path

import nbformat
import pytest
from conftest import BUNDLE, ROOT, read_config
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = BUNDLE / "docs" / "spheres_latent_diffusion.ipynb"
SMOKE = """
overlays = ["configs/smoke.json"]
output_dir = {output_dir!r}
half = {{"image_size": 32}}
sizes = {{
    "cpu": {{
        **dict.fromkeys(sizes["cpu"], half),
        "samples": half | {{"inferer#batch_size": 2}},
        "evaluation": {{"sample#evaluator#inferer#batch_size": 2}},  # the released weights make balls of 64^3 alone
    }}
}}
"""


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Hide any GPU, keep what Jupyter and TensorBoard write in tmp_path, and leave no server behind."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(temporary))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # toy sizes are mostly imports; threads only wait for each other where other work runs beside the test
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    # the kernel takes its children with it when it ends in good order; what is listed here is left over
    for server in (temporary / ".tensorboard-info").glob("pid-*.info"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(server.stem.removeprefix("pid-")), signal.SIGTERM)


def execute(folder: Path, settings: str, last: str = "", without: str = "") -> nbformat.NotebookNode:
    """Run the notebook from ``folder``, with a cell of settings after its own, to its end or to the cell ``last``."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    names = [cell.id for cell in notebook.cells]
    parameters = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    if last:
        del notebook.cells[names.index(last) + 1 :]
    notebook.cells.insert(parameters + 1, nbformat.v4.new_code_cell(settings))
    notebook.cells = [cell for cell in notebook.cells if cell.id != without]
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except CellExecutionError as error:
        error.notebook = notebook
        raise
    return notebook


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """What was displayed of one kind: a MIME type, or ``text`` for what was printed."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind == "text":
        return [output.text for output in found if output.output_type == "stream"]
    return [output.data[kind] for output in found if kind in output.get("data", {})]


def test_notebook_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None), cell.id


def test_notebook_sizes_are_keys():
    settings = next(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.id == "settings")
    values = {}
    exec(settings, values)
    configs = {
        "preview": "data",
        "autoencoder": "train_autoencoder",
        "diffusion": "train_diffusion",
        "samples": "inference",
        "evaluation": "evaluate",
    }
    for size in values["sizes"].values():
        assert size.keys() == configs.keys()
        for name, keys in size.items():
            assert {key.partition("#")[0] for key in keys} <= read_config(configs[name]).keys()


def test_notebook_runs(tmp_path):
    out = tmp_path / "out"
    notebook = execute(NOTEBOOK.parent, SMOKE.format(output_dir=str(out)))

    executed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in executed)
    assert not [output for cell in executed for output in cell.outputs if output.output_type == "error"]

    # data, three kinds of slices in stage 1, samples of both models, reconstructions, fidelity, what was asked for
    assert len(outputs(notebook, "image/png")) == 9
    tensorboard, player = outputs(notebook, "text/html")
    assert "tensorboard-frame" in tensorboard
    assert "<input" in player and "data:image/png;base64" in player
    assert [table.count("sphere_") for table in outputs(notebook, "text/markdown")] == [4, 4, 0, 4]

    text = "".join(outputs(notebook, "text"))
    assert "device         cpu" in text
    assert "ssim_oracle" in text and "KS of r" in text
    assert '$ python -m monai.bundle run --config_file "[' in text
    for name in (
        "data/preview.png",
        "autoencoder/model_autoencoder.pt",
        "diffusion/model.pt",
        "samples_short/sphere_00003.nii.gz",
        "samples/samples.csv",
        "evaluate/fidelity.json",
        "asked/samples.csv",
    ):
        assert (out / name).exists(), name


def test_notebook_failing_command(tmp_path):
    """A command that fails stops the notebook."""
    settings = SMOKE.format(output_dir=str(tmp_path)) + 'size = {"preview": {"preview_size": -1}}'
    with pytest.raises(CellExecutionError, match="failed, for the reason printed above") as caught:
        execute(NOTEBOOK.parent, settings, without="self-check")  # which takes seconds, and sets `size`
    notebook = caught.value.notebook
    stopped = next(cell for cell in notebook.cells if cell.id == "data")
    assert "error: preview_size=-1" in "".join(outputs(notebook, "text"))
    following = notebook.cells[notebook.cells.index(stopped) + 1 :]
    assert not any(cell.get("execution_count") for cell in following)


def test_notebook_without_clone(tmp_path):
    """Outside of a clone it asks for the repository's address."""
    with pytest.raises(CellExecutionError, match="set its address in the settings"):
        execute(tmp_path, "", last="install")


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git clone")
def test_notebook_makes_clone(tmp_path):
    execute(tmp_path, f"repository = {str(ROOT)!r}", last="install")
    assert (tmp_path / "spheres" / "bundle" / "models" / "model.pt").exists()

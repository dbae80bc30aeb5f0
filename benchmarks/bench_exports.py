"""The exported files: how large they are, and how fast beside the same network in Python."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from bench_sampling import make_generator
from measure import RELEASED, Row, bundle_command, run_command, time_side_by_side


def bench_exports(rounds: int = 3) -> Iterator[Row]:
    """Export by the documented commands, then generate 16 volumes by each file and by the network, on the CPU."""
    folder = Path(tempfile.mkdtemp())
    files = {
        "TorchScript": folder / "model.ts",
        "exported program": folder / "model.pt2",
        "ONNX": folder / "model.onnx",
    }
    released = str(RELEASED / "model.pt")
    settings = {"output_dir": str(folder), "device": "cpu", "model_path": released}
    command = bundle_command("inference", "inference_export", **settings)
    program, onnx = (run_command([*command[:4], name, *command[4:]])[1] for name in ("program", "onnx"))
    ckpt_export = [*command[:3], "ckpt_export", "--filepath", str(files["TorchScript"]), "--use_trace", "True"]
    ckpt_export += ["--ckpt_file", released, "--config_file", "configs/inference.json"]
    ckpt_export += ["--meta_file", "configs/metadata.json", "--precision", "float32", "--device", "cpu"]
    seconds = {"TorchScript": run_command(ckpt_export)[1], "exported program": program, "ONNX": onnx}

    plain = make_generator(precision="float32", device="cpu")
    script, exported = torch.jit.load(files["TorchScript"]), torch.export.load(files["exported program"]).module()
    session = onnxruntime.InferenceSession(str(files["ONNX"]), providers=["CPUExecutionProvider"])
    noise = torch.randn(16, 32, 2, 2, 2)
    script(noise)  # TorchScript optimises in its first two calls; one more is everyone's warm-up
    times = time_side_by_side(
        {
            "Python": lambda: plain(noise),
            "TorchScript": lambda: script(noise),
            "exported program": lambda: exported(noise),
            "ONNX": lambda: session.run(None, {"noise": noise.numpy()}),
        },
        rounds,
    )
    for name, file in files.items():
        note = f"{file.name}, {file.stat().st_size / 1e6:.1f} MB, exported in {seconds[name]:.0f} s"
        what = f"a volume by {name}, beside Python in float32"
        yield Row("exports", what, "s", times[name] / 16, times["Python"] / 16, note=note)

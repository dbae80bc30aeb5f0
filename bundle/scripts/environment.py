"""The machine: what it is, and which device and precision suit it. ``python -m scripts.environment`` prints it."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import ignite.distributed as idist
import monai
import psutil
import torch
import torch.distributed as dist

from .checks import SettingError

PRECISIONS: Mapping[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
}

# Loggers that configs/logging.conf keeps quiet, beside the root's.
QUIET = ("monai.bundle.workflows", "monai.bundle.scripts")

logger = logging.getLogger(__name__)


def select_device(device: str | torch.device = "auto") -> torch.device:
    """Turn the key ``device`` into a device that is there.

    Args:
        device: ``auto`` (CUDA if there, else the CPU) or anything ``torch.device`` takes.

    Returns:
        The device.

    Raises:
        SettingError: when the name is unknown or the machine lacks the device.
    """
    if str(device) == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        selected = torch.device(device)
        torch.empty(0, device=selected)
    except (RuntimeError, AssertionError, TypeError) as error:
        allowed = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise SettingError(f"device={str(device)!r}: not on this machine; allowed here: {allowed}.") from error
    return selected


def has_bf16(device: torch.device) -> bool:
    """Tell whether ``device`` has arithmetic units for bfloat16, and does not merely emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(unit, False) for unit in ("amx_bf16", "avx512_bf16", "arm_bf16", "bf16"))
    return False


def select_dtype(precision: str, device: str | torch.device) -> torch.dtype:
    """Turn the key ``precision`` into the type of the networks' activations.

    Args:
        precision: ``auto`` (bf16 where the hardware has it, float16 on older GPUs, else float32), ``float32``,
            ``bf16`` or ``float16``.
        device: what it has to run on.

    Returns:
        The type.

    Raises:
        SettingError: when ``precision`` is unknown, or the device lacks it.
    """
    device = torch.device(device)
    available = ["float32"]
    if has_bf16(device):
        available.append("bf16")
    if device.type == "cuda":
        available.append("float16")
    if precision == "auto":
        precision = next((name for name in ("bf16", "float16") if name in available), "float32")
    if precision not in PRECISIONS:
        raise SettingError(f"precision={precision!r}: unknown; allowed: {', '.join(PRECISIONS)}.")
    if precision not in available:
        raise SettingError(
            f"precision={precision!r}: device {str(device)!r} lacks it; allowed here: auto, {', '.join(available)}."
        )
    return PRECISIONS[precision] or torch.float32


def autocast(x: torch.Tensor, dtype: torch.dtype) -> AbstractContextManager:
    """Make the context in which networks run on ``x`` with activations of ``dtype``; float32 leaves them as they are.

    MONAI's engines autocast for CUDA alone; here it holds on every device.
    """
    return nullcontext() if dtype == torch.float32 else torch.autocast(x.device.type, dtype=dtype)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensor, where it is glibc; elsewhere nothing changes.

    An activation of a batch of 64^3 volumes takes tens of megabytes. As it is, glibc hands each back to the kernel and
    gets fresh pages for the next, each zeroed on first use: a sixth of a training step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h, in bytes
            mallopt(parameter, 2**31 - 1)


def _driver_version() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "none"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "no answer"
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout else "no answer"


def describe(device: str | torch.device = "auto", precision: str = "auto") -> dict[str, str]:
    """Describe the environment: versions, hardware, and what was chosen of it.

    Args:
        device: as in ``select_device``.
        precision: as in ``select_dtype``.

    Returns:
        One line of text a subject, in the order to show them.
    """
    gib = 2**30
    chosen = select_device(device)
    dtype = select_dtype(precision, chosen)
    memory = psutil.virtual_memory()
    report = {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "MONAI": monai.__version__,
        "CUDA": str(torch.version.cuda or "none (a build of PyTorch for the CPU)"),
        "NVIDIA driver": _driver_version(),
        "CPU": f"{os.cpu_count()} cores, {memory.total / gib:.1f} GiB memory, {memory.available / gib:.1f} GiB free",
    }
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        report[f"GPU {index}"] = f"{gpu.name}, {gpu.total_memory / gib:.1f} GiB memory"
    if torch.cuda.device_count() == 0:
        report["GPU"] = "none"
    report["device"] = f"{chosen} (asked for: {device})"
    report["precision"] = f"{str(dtype).removeprefix('torch.')} (asked for: {precision})"
    return report


def log_environment(device: str | torch.device = "auto", precision: str = "auto") -> None:
    """Log ``describe``'s report, one subject a line."""
    lines = [f"  {subject:<14} {text}" for subject, text in describe(device, precision).items()]
    logger.info("environment\n%s", "\n".join(lines))


def _join(device: str | torch.device) -> None:
    """Join the other processes that torchrun started; the first alone says what it does."""
    if not dist.is_initialized():
        store, rank, processes = next(dist.rendezvous("env://"))
        # Processes that torchrun has restarted would find the addresses of those before (PyTorch 2.13)
        store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        cuda = torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(device)  # what NCCL and ignite then use
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=processes)
        idist.sync()
    # True of convolutions of one voxel, whose layout of channels is either; nothing is slower for it
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if idist.get_rank() > 0:
        logging.disable(logging.INFO)


def prepare(device: str | torch.device = "auto", precision: str = "auto", verbose: bool = False) -> None:
    """Make ready for a run, as each workflow does when it starts.

    It joins the other processes, if there are any, logs the environment, keeps freed memory, and keeps MLflow from
    reporting its use to its makers, unless the environment variable MLFLOW_DISABLE_TELEMETRY says that it may.

    Args:
        device: as in ``select_device``.
        precision: as in ``select_dtype``.
        verbose: whether to log everything, MONAI's and ignite's notes too; else what a user has to know.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _join(device)
    if verbose:
        for name in ("", *QUIET):
            logging.getLogger(name).setLevel(logging.INFO)
        log_environment(device, precision)
    else:
        report = describe(device, precision)
        logger.info("%s", "; ".join(f"{subject} {text.partition(' (')[0]}" for subject, text in report.items()))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    keep_freed_memory()


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    try:
        log_environment(*sys.argv[1:3])
    except SettingError as error:
        sys.exit(str(error))

"""Where ``make setup`` gets PyTorch from: on Linux without an NVIDIA driver, PyTorch's index of builds for the CPU.

PyPI's build for Linux brings CUDA's libraries, gigabytes that such a machine can't use. Prints pip's option, if any,
and a line on stderr about what it did. Runs before anything is installed.
"""

from __future__ import annotations

import shutil
import sys
import threading
import urllib.request
from pathlib import Path

SECONDS = 5  # how long to wait for the index


def is_reachable(url: str) -> bool:
    """Tell whether an index answers with its page of PyTorch."""
    answers = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{url}/torch/", timeout=SECONDS) as answer:
                answers.append(answer.status == 200)
        except (OSError, ValueError):
            pass

    # a thread, because the time limit does not hold while the name of the server is looked up
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return any(answers)


def has_driver() -> bool:
    """Tell whether there is an NVIDIA driver: loaded, or beside its tool."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def main(url: str) -> str:
    """Return the option for pip, empty if the default index serves."""
    if not sys.platform.startswith("linux") or has_driver():
        return ""
    if is_reachable(url):
        print(f"no NVIDIA driver: PyTorch for the CPU, from {url}", file=sys.stderr)
        return f"--extra-index-url {url}"
    print(f"no NVIDIA driver, but no answer from {url}: PyTorch from the default index", file=sys.stderr)
    return ""


if __name__ == "__main__":
    print(main(sys.argv[1].rstrip("/")))

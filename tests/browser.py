"""Headless Chromium and the real TensorBoard server, and the documents' pictures of them.

``python tests/browser.py --runs FOLDER --run FOLDER --figures FOLDER`` takes the pictures: TensorBoard with the
trainings below ``runs``, and the report of a run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# The whole of TensorBoard is loaded by its first page, on a machine that may be busy with the rest of the tests.
PATIENCE_MS = 60_000


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the Chromium that is installed, not one of playwright's own downloads."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        raise FileNotFoundError(
            f"no Chromium: none of {', '.join(CHROMIUM)} is on the path; `make browser` installs it"
        )
    with sync_playwright() as playwright:
        # a container has no sandbox to offer, and little shared memory
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextlib.contextmanager
def serve_tensorboard(folder: Path) -> Iterator[str]:
    """Run TensorBoard's server on the runs below a folder; its address is what the context gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while True:
            try:
                if urllib.request.urlopen(f"{address}/data/runs", timeout=5).read() != b"[]":
                    break
            except OSError:
                pass
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(f"TensorBoard does not answer: {server.communicate()[0].decode()}")
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def new_page(browser: Browser, height: int = 1000, **options) -> Page:
    """Open an empty page whose waits are patient."""
    page = browser.new_context(viewport={"width": 1440, "height": height}, **options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    return page


def save_picture(page: Page, path: Path) -> None:
    """Save what a page shows as a PNG of at most 256 colours, a third of the size."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def pin(plugin: str, tag: str, **more) -> dict:
    """Describe a card for TensorBoard's address, which can say what is pinned at the top."""
    return {"plugin": plugin, "tag": tag, **more}


def take_pictures(runs: Path, run: Path, figures: Path) -> None:
    """Save the documents' pictures.

    Args:
        runs: a folder with the trainings ``autoencoder`` and ``diffusion``, for TensorBoard.
        run: a folder with a ``report.html``.
        figures: where ``tensorboard.png`` and ``report.png`` go.
    """
    cards = [pin("scalars", tag) for tag in ("train/loss", "validation/ssim", "validation/val_loss")]
    cards += [
        pin("images", f"slices/{name}", runId="defaultExperimentId/diffusion/tensorboard", sample=0)
        for name in ("input", "reconstruction", "sample")
    ]
    with open_browser() as browser:
        with serve_tensorboard(runs) as address:
            page = new_page(browser, height=960)
            page.goto(f"{address}/?smoothing=0.2&pinnedCards={urllib.parse.quote(json.dumps(cards))}#timeseries")
            page.get_by_role("button", name="Close side pane").click()
            page.locator("image-card img").nth(2).wait_for()
            page.wait_for_timeout(3000)  # charts are drawn after their cards
            save_picture(page, figures / "tensorboard.png")
        page = new_page(browser, height=920)
        page.goto((run / "report.html").resolve().as_uri())
        page.locator("#gallery button").last.wait_for()
        page.wait_for_timeout(3000)  # volumes are unpacked after their buttons
        save_picture(page, figures / "report.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=take_pictures.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("runs", "run", "figures"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    take_pictures(**vars(parser.parse_args()))

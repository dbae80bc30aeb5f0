"""The bundle as one file for other machines, and as the folder that goes to a hub.

``make bundle`` writes both into ``dist``, as ``monai.bundle.download`` expects them:
``<name>_v<version>.zip``, whose top folder is ``<name>``.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

from .card import NAME, make_card

CONTENTS = ("LICENSE", "configs", "docs", "models", "scripts")  # not runs/, nor whatever else lies in the folder
IGNORED = shutil.ignore_patterns("__pycache__", ".*")


def copy_bundle(bundle_root: str | Path, copy: str | Path) -> None:
    """Copy a bundle, and nothing else that lies in its folder; an earlier copy is replaced."""
    bundle_root, copy = Path(bundle_root), Path(copy)
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in CONTENTS:
        if (bundle_root / name).is_dir():
            shutil.copytree(bundle_root / name, copy / name, ignore=IGNORED)
        else:
            shutil.copy(bundle_root / name, copy / name)


def write_archive(bundle_root: str | Path, folder: str | Path) -> Path:
    """Copy a bundle, with its model card as ``README.md``, and archive the copy.

    Nothing of the time or the place goes in: the same bundle gives the same archive.

    Args:
        bundle_root: folder of the bundle.
        folder: where to write ``<name>/`` and ``<name>_v<version>.zip``; an earlier copy is replaced.

    Returns:
        Path of the archive.
    """
    folder = Path(folder)
    copy = folder / NAME
    copy_bundle(bundle_root, copy)
    make_card(copy).save(copy / "README.md")

    version = json.loads((copy / "configs" / "metadata.json").read_text())["version"]
    path = folder / f"{NAME}_v{version}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(path for path in copy.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())  # dated 1980, whatever the file's time
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path


if __name__ == "__main__":
    print(write_archive(Path(__file__).parents[1] / "bundle", sys.argv[1]))

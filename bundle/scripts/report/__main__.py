"""Writes the report of a folder anew: ``python -m scripts.report FOLDER``."""

import logging
import sys

from ..checks import SettingError
from .page import render_report

if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python -m scripts.report FOLDER")
    try:
        render_report(sys.argv[1])
    except SettingError as mistake:
        sys.exit(f"error: {mistake}")

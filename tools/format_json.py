"""Formats the bundle's JSON for readers: what fits on a line of 120 characters stands on one.

``python tools/format_json.py FILE ...`` rewrites the files; with ``--check`` it only says which it would change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compact_json import Formatter

# The tool counts a line without its indentation and the name before it, which take at most 12 where it matters.
LONGEST = 108


def format_json(text: str) -> str:
    """Lay out JSON: a list or dictionary without another in it on one line if it fits, else an element a line."""
    formatter = Formatter(
        max_inline_length=LONGEST,
        max_inline_complexity=2,
        max_compact_list_complexity=0,
        table_dict_minimum_similarity=101,
        table_list_minimum_similarity=101,
        ensure_ascii=False,
        omit_trailing_whitespace=True,
    )
    return formatter.serialize(json.loads(text)) + "\n"


def main(arguments: list[str]) -> int:
    """Format the files that are named; returns how many differed."""
    files = [Path(name) for name in arguments if name != "--check"]
    differing = [path for path in files if format_json(path.read_text()) != path.read_text()]
    for path in differing:
        if "--check" in arguments:
            print(f"{path}: not as `make format` would write it")
        else:
            path.write_text(format_json(path.read_text()))
    return len(differing) if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

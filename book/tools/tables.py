"""What the scripts that add to a table of ``book/results`` share: a row stands for one run."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from semigen_lib.methods import METHODS
from semigen_lib.methods.method import MethodConfig


def settings_text(config: MethodConfig | str) -> str:
    """Return every setting of a config, or of a method's default one, to say what made a row."""
    if isinstance(config, str):
        config = METHODS[config].Config()
    return " ".join(f"{k}={v}" for k, v in dataclasses.asdict(config).items())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, none if there is no table yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Write the whole table beside the old one and put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(draft, path)

"""What the scripts that make a page of ``book/results/bench.json`` share: how they are run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def make_page(
    description: str,
    results: Path,
    page: Path,
    render: Callable[[Mapping], str],
    draw: Callable[[Mapping, Path], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Write a page and its figures, or, with ``--check``, only say whether the page is right."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="only say whether the page is right")
    options = parser.parse_args(arguments)
    bench = results / "bench.json"
    if not bench.exists():
        parser.exit(1, f"{page.name}: expected {bench}, got no such file (make bench)\n")
    figures = json.loads(bench.read_text())
    try:
        text = render(figures)
    except ValueError as error:
        parser.exit(1, f"{page.name}: {error}\n")
    if options.check:
        same = page.exists() and page.read_text() == text
        if not same:
            sys.stderr.write(f"{page}: expected the page of today's figures, got another\n")
        return int(not same)
    page.write_text(text)
    draw(figures, results)
    return 0

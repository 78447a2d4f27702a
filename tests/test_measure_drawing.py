"""The tables of chapter 8: a row for each run, and as many drawings as there are real images."""

import csv
from pathlib import Path

import measure_drawing
import pytest
import torch

from semigen_lib.data import ImageData, ImageSet


def test_a_row_takes_the_place_of_the_one_of_the_same_run_alone(tmp_path: Path) -> None:
    table = tmp_path / "drawing.csv"
    for method, n, seed, steps in (
        ("real", "10000", "0", ""),
        ("cgan", "100", "1", "7"),
        ("cgan", "100", "0", "7"),
        ("cgan", "10", "1", "7"),
        ("cgan", "100", "1", "8"),
    ):
        row = {"method": method, "n_labeled": n, "seed": seed, "steps": steps}
        measure_drawing.add_row(table, row)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(r["method"], r["n_labeled"], r["seed"], r["steps"]) for r in rows] == [
        ("cgan", "10", "1", "7"),
        ("cgan", "100", "0", "7"),
        ("cgan", "100", "1", "8"),
        ("real", "10000", "0", ""),
    ]
    assert tuple(rows[0]) == measure_drawing.COLUMNS


@pytest.mark.parametrize(("n_test", "per_class"), [((3, 5), 3), ((4000, 2600), 2500)])
def test_there_are_no_more_drawings_of_a_class_than_test_images(n_test, per_class) -> None:
    labels = torch.arange(2).repeat_interleave(torch.tensor(n_test))
    images = ImageSet(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    data = ImageData("made up", ("a", "b"), images, images)
    assert measure_drawing.drawings_of_each(data) == per_class


def test_other_images_need_a_table_of_their_own(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["measure_drawing.py", "RUN", "--data", "./letters"])
    with pytest.raises(SystemExit):
        measure_drawing.main()
    assert "--out: expected a table of its own for ./letters" in capsys.readouterr().err

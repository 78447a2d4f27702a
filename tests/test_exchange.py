"""What crosses to the probe and back: everything asked arrives, and nothing forged gets through."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from semigen_lib.grading.exchange import read_answers, write_questions
from semigen_lib.grading.tasks import Task
from semigen_lib.grading.worker import probe

MISSING = "expected an answer, got none"
N_CALLS = {"one": 2, "two": 1}


def task(grade_id: str, function: str) -> Task:
    return Task(grade_id, function, None, None, None, "call", 1e-4, 1.0)


def write(output: Path, told: object, arrays: dict | bytes | None = None) -> None:
    """Write answers as a worker would, or as a student might."""
    text = told if isinstance(told, str) else json.dumps(told)
    (output / "answers.json").write_text(text)
    if arrays is not None:
        content = arrays if isinstance(arrays, bytes) else safetensors.numpy.save(arrays)
        (output / "answers.safetensors").write_bytes(content)


def entry(name: str, problem: str = "", **outputs: str) -> dict:
    return {"task": name, "problem": problem, "outputs": outputs}


def test_questions_arrive_and_answers_come_back(tmp_path, capfd) -> None:
    cases = {
        "one": [
            {"x": np.arange(3.0), "n": np.int64(2)},
            {"x": np.float32(1) * np.ones(()), "n": 1},
        ],
        "two": [{"parts": [np.ones((2, 2)), "a", True], "nested": {"b": 1.5}}],
    }
    cells = [
        {"grade_id": "f", "source": "def f(x, n): return n * x"},
        {"grade_id": "g", "source": "def g(parts, nested): return parts[0] + nested['b']"},
        {"grade_id": "h", "source": "def h(:"},
    ]
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir(), output.mkdir()
    write_questions(inputs, cells, [task("one", "f"), task("two", "g")], cases)
    probe(inputs, output)
    answers, problems = read_answers(output, N_CALLS, MISSING)
    assert answers["one"][0]["value"].tolist() == [0, 2, 4]
    assert answers["one"][1]["value"].shape == ()
    assert answers["two"][0]["value"].tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert list(problems) == ["h"] and "SyntaxError" in problems["h"]


def test_no_right_answer_is_among_the_questions(tmp_path) -> None:
    write_questions(tmp_path, [], [task("one", "f")], {"one": [{"x": 3}]})
    asked = json.loads((tmp_path / "probe.json").read_text())
    (call,) = asked["calls"]
    assert call == {"task": "one", "function": "f", "driver": "call", "inputs": {"x": 3}}
    assert set(asked) == {"cells", "calls", "seconds"}
    assert {path.name for path in tmp_path.iterdir()} == {"probe.json", "inputs.safetensors"}


@pytest.mark.fault("integrity")
@pytest.mark.parametrize(
    "told",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"calls": 3, "cells": {}}',
        '{"calls": [3, null], "cells": {}}',
        '{"calls": [{"task": "one"}], "cells": {}}',
        {"calls": [], "cells": {}},
        {"calls": [], "cells": []},
        {"calls": [entry("one", value="nothing of this name")], "cells": {}},
        {"calls": [{"task": "one", "problem": "", "outputs": [1]}], "cells": {}},
        {"calls": [{"task": "one", "problem": "", "outputs": {"value": ["a"]}}], "cells": {}},
        {"calls": [entry("three", value="a")], "score": 10, "right": True, "cells": {}},
    ],
)
def test_forged_answers_are_missing_answers(told, tmp_path) -> None:
    write(tmp_path, told, {"a": np.ones(2)})
    answers, problems = read_answers(tmp_path, N_CALLS, MISSING)
    assert answers == {"one": [MISSING] * 2, "two": [MISSING]} and problems == {}


@pytest.mark.fault("integrity")
@pytest.mark.parametrize(
    "arrays",
    [None, b"", b"\xff" * 100, b"\x80\x04N.", safetensors.numpy.save({"a": np.ones(9)})[:-8]],
    ids=["none", "empty", "noise", "pickle", "cut"],
)
def test_forged_arrays_are_missing_answers(arrays, tmp_path) -> None:
    write(tmp_path, {"calls": [entry("one", value="a")], "cells": {}}, arrays)
    assert read_answers(tmp_path, N_CALLS, MISSING)[0]["one"] == [MISSING] * 2


@pytest.mark.fault("integrity")
def test_a_link_instead_of_answers_is_not_followed(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"calls": [entry("one", "read")], "cells": {}}))
    output = tmp_path / "out"
    output.mkdir()
    (output / "answers.json").symlink_to(secret)
    assert read_answers(output, N_CALLS, MISSING)[0]["one"] == [MISSING] * 2


def test_answers_too_many_are_left_and_problems_are_a_line(tmp_path) -> None:
    calls = [entry("one", "a\n" * 1000), *[entry("one", value="a")] * 9, entry("two", value="a")]
    write(tmp_path, {"calls": calls, "cells": {"c": "x" * 999}}, {"a": np.ones(2)})
    answers, problems = read_answers(tmp_path, N_CALLS, MISSING)
    assert len(answers["one"]) == 2 and "\n" not in answers["one"][0]
    assert answers["two"][0]["value"].tolist() == [1, 1]
    assert len(answers["one"][0]) <= 300 and len(problems["c"]) <= 300

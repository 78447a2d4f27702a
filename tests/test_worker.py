"""What runs inside: a notebook that goes on after a failure, answers that cost only themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import safetensors.numpy
from test_sandbox import MIB, MISSING, needs_sandbox

from semigen_lib.grading.sandbox import (
    Limits,
    Mount,
    Outcome,
    Sandbox,
    library_mounts,
    python_mounts,
    read_output,
)

pytestmark = pytest.mark.slow
fault = pytest.mark.fault("containment")
LIMITS = Limits(
    wall_seconds=240.0,
    memory_bytes=4096 * MIB,
    file_bytes=4 * MIB,
    output_bytes=32 * MIB,
    log_bytes=20_000,
    cpu_seconds=240,
)


def work(level: str, what: str, folder: Path, inputs: dict[str, bytes]) -> tuple[Outcome, Path]:
    """Run the worker on inputs; return how it ended and its output folder."""
    mounts = [*python_mounts(), *library_mounts("mnist", None)]
    for name, content in inputs.items():
        (folder / name).write_bytes(content)
        mounts.append(Mount(folder / name, f"/in/{name}"))
    output = folder / "output"
    output.mkdir()
    outcome = Sandbox(level).run(
        [sys.executable, "-m", "semigen_lib.grading.worker", what],
        mounts=mounts,
        output=output,
        limits=LIMITS,
        environment={"SEMIGEN_CELL_SECONDS": "5", "OMP_NUM_THREADS": "1"},
    )
    return outcome, output


def execute(folder: Path, *sources: str) -> tuple[Outcome, Path]:
    """Run a notebook of these cells in the sandbox."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    content = nbformat.writes(notebook).encode()
    return work("bubblewrap", "run", folder, {"notebook.ipynb": content})


# ---- run ----


@needs_sandbox
@fault
def test_a_run_goes_on_after_every_failure(tmp_path: Path) -> None:
    """An error, an exit that papermill takes for success, and a cell without an end."""
    outcome, output = execute(
        tmp_path,
        "print('first')",
        "1 / 0",
        "import sys; sys.exit(0)",
        "while True: pass",
        "print(7)",
    )
    assert outcome.status == "finished", outcome
    executed = nbformat.reads(read_output(output, "executed.ipynb", MIB).decode(), as_version=4)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cells[i].outputs[0].text for i in (0, 4)] == ["first\n", "7\n"]
    assert [cells[i].outputs[0].ename for i in (1, 2, 3)] == [
        *("ZeroDivisionError", "SystemExit", "KeyboardInterrupt")
    ]


@needs_sandbox
@fault
@pytest.mark.parametrize("seconds", [0, 1], ids=["at-once", "after-it-said-that-it-began"])
def test_a_dead_kernel_is_said_to_be_dead(tmp_path: Path, seconds: int) -> None:
    killer = f"import os, time; time.sleep({seconds}); os._exit(0)"
    outcome, output = execute(tmp_path, "print(1)", killer, "print(2)")
    assert outcome.status == "finished", outcome
    assert "DeadKernelError: Kernel died" in outcome.log, outcome.log
    executed = nbformat.reads(read_output(output, "executed.ipynb", MIB).decode(), as_version=4)
    assert [cell.outputs for cell in executed.cells[-1:]] == [[]], "nothing ran after it"


@needs_sandbox
@fault
def test_a_killed_worker_leaves_a_failed_run(tmp_path: Path) -> None:
    outcome, _ = execute(tmp_path, "import os; os.kill(os.getppid(), 9)")
    assert (outcome.status, outcome.returncode) == ("failed", 137)


@needs_sandbox
@fault
@pytest.mark.parametrize(
    ("source", "error"),
    [
        (
            "import os; os.remove('/out/executed.ipynb'); os.mkdir('/out/executed.ipynb')",
            "Is a dir",
        ),
        ("for _ in range(8): print('x' * 2**20)", "File too large"),
    ],
    ids=["folder-instead", "too-large"],
)
def test_an_output_that_cannot_be_written_is_an_error(
    tmp_path: Path, source: str, error: str
) -> None:
    outcome, _ = execute(tmp_path, source)
    assert outcome.status == "finished", outcome
    assert any(error in line for line in outcome.log.splitlines()), outcome.log


# ---- probe ----

CELLS = {
    "setup": "import os, time, torch\nif False:\n    %pip install nothing",
    "double": "def double(x):\n    x *= 2\n    return x",
    "broken": "1 / 0",
    "exits": "raise SystemExit(0)",
    "endless": "while True: pass",
    "rest": """
def hangs(x): time.sleep(1000)
def leaves(x): os._exit(0)
def hungry(x): return bytearray(3 * 2**30)
def half(x, odd):
    if odd: raise ValueError("expected an even case,\\ngot an odd one")
    return x.sum()
def forges(x):
    for name in os.listdir("/out" if os.path.isdir("/out") else "."):
        pass
    open(os.environ.get("SEMIGEN_OUT", "/out") + "/forges/0.safetensors", "w").write("no tensors")
    os._exit(0)
""",
}
CALLS = [
    *[("double", {"x": {"$tensor": "x"}})] * 2,
    *[(name, {"x": {"$tensor": "x"}}) for name in ("hangs", "leaves", "hungry", "forges")],
    ("missing", {}),
    *[("half", {"x": {"$tensor": "x"}, "odd": odd}) for odd in (False, True)],
]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """What the probe wrote about cells and calls of every kind."""
    asked = {
        "cells": [{"grade_id": n, "source": s, "answer": n != "setup"} for n, s in CELLS.items()],
        "calls": [
            {"task": name, "function": name, "driver": "call", "inputs": inputs}
            for name, inputs in CALLS
        ],
        "seconds": 3,
    }
    arrays = {"x": np.array([1.0, 2.0], dtype="float32")}
    inputs = {
        "probe.json": json.dumps(asked).encode(),
        "inputs.safetensors": safetensors.numpy.save(arrays),
    }
    level = "none" if MISSING else "bubblewrap"
    outcome, output = work(level, "probe", tmp_path_factory.mktemp("probe"), inputs)
    assert outcome.status == "finished", outcome
    answers = json.loads(read_output(output, "answers.json", MIB))
    return answers, safetensors.numpy.load(read_output(output, "answers.safetensors", MIB))


def test_every_cell_has_its_own_chance(probed: tuple[dict, dict]) -> None:
    problems = probed[0]["cells"]
    assert set(problems) == {"broken", "exits", "endless"}
    assert problems["broken"] == "ZeroDivisionError: division by zero"
    assert "within 3 seconds" in problems["endless"]


def test_answers_come_back_in_the_order_of_the_calls(probed: tuple[dict, dict]) -> None:
    answers, arrays = probed
    assert [call["task"] for call in answers["calls"]] == [name for name, _ in CALLS]
    assert set(arrays) == {key for c in answers["calls"] for key in c["outputs"].values()}
    assert [bool(call["outputs"]) for call in answers["calls"]] == [
        *(True, True, False, False, False, False, False, True, False)
    ]


def test_a_call_cannot_spoil_the_inputs_of_the_next(probed: tuple[dict, dict]) -> None:
    answers, arrays = probed
    for call in answers["calls"][:2]:
        assert np.array_equal(arrays[call["outputs"]["value"]], [2.0, 4.0])


@fault
@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("hangs", "within 3 seconds"),
        ("leaves", "end of the process (code 0)"),
        ("hungry", "MemoryError"),
        ("forges", "Safetensor"),
        ("missing", "nothing of this name"),
    ],
)
def test_a_task_costs_itself_only(probed: tuple[dict, dict], task: str, words: str) -> None:
    problem = next(call["problem"] for call in probed[0]["calls"] if call["task"] == task)
    assert words in problem and "\n" not in problem


def test_a_case_costs_itself_only(probed: tuple[dict, dict]) -> None:
    right, wrong = (call for call in probed[0]["calls"] if call["task"] == "half")
    assert right["problem"] == ""
    assert wrong["problem"] == "ValueError: expected an even case, got an odd one"

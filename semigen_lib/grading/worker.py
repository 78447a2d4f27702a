"""What runs inside the sandbox: ``python -m semigen_lib.grading.worker run``, or ``probe``.

``run`` executes the whole notebook with papermill and goes on after a failing cell. ``probe`` takes
the answer cells alone, calls what they define on the inputs it was given, and writes down what came
out. Neither knows what is right, and nothing that they write is believed: it is weighed outside.

Shown in: book/instructor.md
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semigen_lib.grading.drivers import Answer

__all__ = ["main", "probe", "run_notebook"]

CELL_SECONDS = 600  # of one cell of a notebook, unless the environment says otherwise


def main(arguments: Sequence[str]) -> None:
    """Do what the one argument names, in the folders of the sandbox."""
    inputs = Path(os.environ.get("SEMIGEN_IN", "/in"))
    output = Path(os.environ.get("SEMIGEN_OUT", "/out"))
    {"run": run_notebook, "probe": probe}[arguments[0]](inputs, output)


# ---- the whole notebook: no torch here, whose import is most of a small run's time ----


def run_notebook(inputs: Path, output: Path) -> None:
    """Execute ``notebook.ipynb`` and write ``executed.ipynb``, in which errors are outputs."""
    import papermill

    try:
        papermill.execute_notebook(
            inputs / "notebook.ipynb",
            output / "executed.ipynb",
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=int(os.environ.get("SEMIGEN_CELL_SECONDS", CELL_SECONDS)),
            allow_errors=True,
            interrupt_on_timeout=True,
        )
    except papermill.PapermillExecutionError:
        pass  # it names the last error of a cell
    except Exception as failure:  # the student's code shares this folder and can break any of it
        sys.stderr.write(f"{type(failure).__name__}: {' '.join(str(failure).split())}\n")


# ---- the answers alone ----


def probe(inputs: Path, output: Path) -> None:
    """Call what the answer cells define; write ``answers.json`` and ``answers.safetensors``.

    ``probe.json`` holds the cells, to be executed in one namespace, and the calls; a tensor among
    their inputs is ``{"$tensor": key}`` of ``inputs.safetensors``. ``answers.json`` holds a problem
    for each cell that failed and, in the order of the calls, a problem or the keys of the arrays::

        {"cells": {grade_id: problem},
         "calls": [{"task": grade_id, "problem": "", "outputs": {name: key}}]}

    The calls of a task are made in a process of its own: one that hangs, exits or eats memory costs
    itself only. What is done is on the disk before the next task begins.
    """
    import safetensors.numpy
    import torch

    from semigen_lib.checkpoint import write_atomically, write_json

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    asked = json.loads((inputs / "probe.json").read_bytes())
    arrays = safetensors.numpy.load_file(inputs / "inputs.safetensors")
    names, problems = _execute(asked["cells"], asked["seconds"])
    entries: list[dict[str, Any]] = []
    results: Answer = {}
    write_json(output / "answers.json", {"cells": problems, "calls": entries})
    for task, group in groupby(asked["calls"], key=lambda call: call["task"]):
        calls = [call | {"inputs": _with_arrays(call["inputs"], arrays)} for call in group]
        for answer in _answers(names, calls, asked["seconds"], output / task):
            problem, outputs = (answer, {}) if isinstance(answer, str) else ("", answer)
            keys = {name: f"{len(entries)}/{name}" for name in outputs}
            results |= {keys[name]: array for name, array in outputs.items()}
            entries.append({"task": task, "problem": problem, "outputs": keys})
        write_atomically(output / "answers.safetensors", safetensors.numpy.save(results))
        write_json(output / "answers.json", {"cells": problems, "calls": entries})


def _execute(
    cells: Sequence[Mapping[str, Any]], seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the namespace of the cells, and a problem for each that failed."""
    from semigen_lib.grading.drivers import one_line, plain_python

    names: dict[str, Any] = {"__name__": "__main__"}
    problems = {}
    for cell in cells:
        try:
            with _at_most(seconds):
                source = plain_python(cell["source"])
                exec(compile(source, cell["grade_id"], "exec", dont_inherit=True), names)
        except BaseException as error:  # SystemExit too: the next cell has its chance
            problems[cell["grade_id"]] = one_line(error)
    return names, problems


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"expected an end within {seconds:g} seconds, got none")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _with_arrays(value: Any, arrays: Answer) -> Any:
    """Return plain data with every ``{"$tensor": key}`` replaced by its array."""
    if isinstance(value, dict):
        if value.keys() == {"$tensor"}:
            return arrays[value["$tensor"]]
        return {name: _with_arrays(part, arrays) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_arrays(part, arrays) for part in value]
    return value


def _answers(
    names: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], seconds: float, folder: Path
) -> list[Answer | str]:
    """Make the calls of one task in a child and return what came of each."""
    folder.mkdir()
    child = multiprocessing.get_context("fork").Process(target=_call, args=(names, calls, folder))
    child.start()
    child.join(seconds)
    if child.is_alive():
        why = f"TimeoutError: expected an end within {seconds:g} seconds, got none"
    else:
        why = f"expected an answer, got the end of the process (code {child.exitcode})"
    child.kill()
    child.join()
    return [_read_answer(folder / str(index), why) for index in range(len(calls))]


def _call(names: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Make calls and write down each answer at once, as there may be no later."""
    import safetensors.numpy

    from semigen_lib.checkpoint import write_atomically, write_json
    from semigen_lib.grading.drivers import answer_case

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:  # half of it, so that the parent has the rest
        resource.setrlimit(resource.RLIMIT_DATA, (most // 2, most // 2))
    for index, call in enumerate(calls):
        answer = answer_case(names.get(call["function"]), call["driver"], call["inputs"])
        place = folder / str(index)
        if isinstance(answer, str):
            write_json(place.with_suffix(".json"), {"problem": answer})
        else:
            write_atomically(place.with_suffix(".safetensors"), safetensors.numpy.save(answer))


def _read_answer(place: Path, why: str) -> Answer | str:
    """Return what a child wrote about a call, or why it wrote nothing."""
    import safetensors.numpy

    from semigen_lib.grading.drivers import clip, one_line

    try:
        if place.with_suffix(".json").exists():
            return clip(json.loads(place.with_suffix(".json").read_bytes())["problem"])
        if place.with_suffix(".safetensors").exists():
            return safetensors.numpy.load_file(place.with_suffix(".safetensors"))
    except Exception as error:  # the child's code is the student's, and so are its files
        return one_line(error)
    return why


if __name__ == "__main__":
    main(sys.argv[1:])

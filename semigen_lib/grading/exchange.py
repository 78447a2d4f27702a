"""What crosses into the sandbox to ask for answers, and what is believed of what comes back.

The counterpart of ``worker.probe`` outside. Questions go in without the right answers. What comes
back was written by a process that ran the student's code, so it may be any bytes: it is read with
caps, as strict JSON and safetensors, and what has not the right form is a missing answer.

Shown in: book/instructor.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from semigen_lib.grading.drivers import Answer, clip
from semigen_lib.grading.sandbox import SandboxError, read_output
from semigen_lib.grading.tasks import Task

__all__ = ["TASK_SECONDS", "read_answers", "write_questions"]

TASK_SECONDS = 20  # for the calls of one task, and for each cell with answers
MAX_BYTES = 64_000_000  # of all answers together
# What reading forged JSON and safetensors raises; anything else is a fault of ours.
_FORGED = (
    *(AttributeError, KeyError, TypeError, ValueError, RecursionError),
    *(SandboxError, safetensors.SafetensorError),
)


def write_questions(
    folder: Path,
    cells: Sequence[Mapping[str, str]],
    tasks: Sequence[Task],
    cases: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Write ``probe.json`` and ``inputs.safetensors``.

    Parameters
    ----------
    folder
        An existing one.
    cells
        ``grade_id`` and ``source`` of what is run first, in order.
    tasks
        What is asked.
    cases
        By the ``grade_id`` of a task, the inputs of its calls.
    """
    arrays: Answer = {}
    calls = [
        {
            "task": task.grade_id,
            "function": task.function,
            "driver": task.driver,
            "inputs": _without_arrays(inputs, arrays),
        }
        for task in tasks
        for inputs in cases[task.grade_id]
    ]
    questions = {"cells": list(cells), "calls": calls, "seconds": TASK_SECONDS}
    (folder / "probe.json").write_text(json.dumps(questions))
    (folder / "inputs.safetensors").write_bytes(safetensors.numpy.save(arrays))


def _without_arrays(value: Any, arrays: Answer) -> Any:
    """Return plain data with every array replaced by the key under which it was put away."""
    if isinstance(value, np.ndarray):
        key = str(len(arrays))
        arrays[key] = np.ascontiguousarray(value).reshape(value.shape)
        return {"$tensor": key}
    if isinstance(value, dict):
        return {name: _without_arrays(part, arrays) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(part, arrays) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def read_answers(
    output: Path, n_calls: Mapping[str, int], missing: str
) -> tuple[dict[str, list[Answer | str]], dict[str, str]]:
    """Return answers as the worker wrote them, or as the student forged them.

    Parameters
    ----------
    output
        Of the sandbox's run.
    n_calls
        How many answers there should be, by the ``grade_id`` of a task.
    missing
        What is said of a missing answer.

    Returns
    -------
    tuple of dict
        For each task its answers, an array by name or a problem in a line; and for each cell that
        failed the problem.
    """
    try:
        told = json.loads(read_output(output, "answers.json", MAX_BYTES))
        entries = {task: [call for call in told["calls"] if call["task"] == task]
                   for task in n_calls}  # fmt: skip
        problems = {str(name): clip(str(text)) for name, text in told["cells"].items()}
    except _FORGED:
        entries, problems = {task: [] for task in n_calls}, {}
    try:
        arrays = safetensors.numpy.load(read_output(output, "answers.safetensors", MAX_BYTES))
    except _FORGED:
        arrays = {}
    answers = {}
    for task, n in n_calls.items():
        found = [_answer(entry, arrays, missing) for entry in entries[task][:n]]
        answers[task] = found + [missing] * (n - len(found))
    return answers, problems


def _answer(entry: Mapping[str, Any], arrays: Answer, missing: str) -> Answer | str:
    try:
        if entry["problem"]:
            return clip(str(entry["problem"]))
        return {str(name): arrays[key] for name, key in entry["outputs"].items()}
    except _FORGED:
        return missing

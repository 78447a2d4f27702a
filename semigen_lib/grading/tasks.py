"""What is asked of a student's function, how it is run, and how its answer is judged.

The hidden part of a tests cell *declares* a task: cases, a reference, and a function that names the
fault of a wrong answer. The grader reads the declaration with ``collect_tasks``, has the student's
function answer the cases inside the sandbox with ``run_driver``, where no expected value ever is,
and judges the answers outside. In a kernel (nbgrader's own autograder) ``examine`` judges at once.

A wrong answer for the tests of an assignment, a mutant, is a row of ``tests/mutants/A?.py``:
(grade_id of the tests cell, text of the reference solution, the text that replaces it, a word that
the message must have).

Shown in: book/instructor.md
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from semigen_lib.grading.drivers import (
    DRIVERS,
    KINDS,
    Answer,
    AnswerError,
    answer_case,
    clip,
    flatten,
    one_line,
    plain_python,
    run_driver,
)

__all__ = [
    "DRIVERS",
    "MEASURES",
    "AnswerError",
    "Task",
    "Verdict",
    "WeightsTask",
    "answer_case",
    "close",
    "collect_tasks",
    "examine",
    "examine_weights",
    "flatten",
    "hidden_source",
    "judge",
    "judge_cases",
    "known_faults",
    "make_cases",
    "one_line",
    "plain_python",
    "run_driver",
]

MEASURES = ("reconstruction_error", "test_error", "conditional_accuracy", "frechet_ratio")
BEGIN, END = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"
_declared: ContextVar[list | None] = ContextVar("declared", default=None)


class Verdict(NamedTuple):
    """Whether an answer is right, and if not, what is wrong with it, in one line."""

    right: bool
    message: str


@dataclass(frozen=True)
class Task:
    """A function that is asked for: right in every case, or not.

    Attributes
    ----------
    grade_id
        Of the tests cell that declares it.
    function
        Name of what the student defines.
    cases
        From a NumPy generator to inputs: dictionaries of arrays, numbers, strings, and lists of
        these; ``{"$mlp": {"weights": [...], "biases": [...]}}`` becomes a network.
    expected
        The reference. It is run by the same driver as the student's function.
    explain
        From (inputs, got, want), the latter as :func:`flatten` returns them, to one line that names
        the fault, or "".
    driver
        How the function is run, a key of ``DRIVERS``.
    tolerance
        Relative and absolute.
    points
        For being right.
    """

    grade_id: str
    function: str
    cases: Callable[[np.random.Generator], Iterable[dict[str, Any]]]
    expected: Callable
    explain: Callable[[dict[str, Any], Answer, Answer], str]
    driver: str
    tolerance: float
    points: float


@dataclass(frozen=True)
class WeightsTask:
    """Trained weights that are asked for, worth what they measure.

    Attributes
    ----------
    grade_id
        Of the tests cell that declares it.
    name
        Under which the notebook hands them in.
    measure
        One of ``MEASURES``.
    zero_at, full_at
        Values that are worth nothing and everything; a line between them, rising or falling.
    methods
        Names of the methods that are allowed.
    limits
        The largest value of a setting, by name.
    points
        For reaching ``full_at``.
    """

    grade_id: str
    name: str
    measure: str
    zero_at: float
    full_at: float
    methods: tuple[str, ...]
    limits: Mapping[str, float]
    points: float

    def score(self, values: Sequence[float]) -> float:
        """Return points for the median over the runs; a value that is not finite is worth none.

        Parameters
        ----------
        values
            One for each run, at least one; NaN for a run that handed nothing in.
        """
        shares = [(self.zero_at - value) / (self.zero_at - self.full_at) for value in values]
        shares = [min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0 for share in shares]
        return self.points * statistics.median(shares)


# ---- declaring ----


def examine(
    function: str,
    cases: Callable[[np.random.Generator], Iterable[dict[str, Any]]],
    expected: Callable,
    explain: Callable[[dict[str, Any], Answer, Answer], str],
    driver: str = "call",
    tolerance: float = 1e-4,
) -> None:
    """Declare a task, or, in a kernel, judge the function of that name at once.

    Parameters
    ----------
    function, cases, expected, explain, driver, tolerance
        As in :class:`Task`.

    Raises
    ------
    AssertionError
        In a kernel, if an answer is wrong.
    """
    if driver not in DRIVERS:
        raise ValueError(f"driver: expected one of {', '.join(DRIVERS)}, got {driver!r}")
    task = Task("", function, cases, expected, explain, driver, tolerance, 0.0)
    declared = _declared.get()
    if declared is not None:
        declared.append(task)
        return
    student = cases.__globals__.get(function)  # cases is defined where the student's function is
    inputs = make_cases(task, 0)
    verdict = judge_cases(task, inputs, [answer_case(student, driver, case) for case in inputs])
    assert verdict.right, verdict.message


def known_faults(
    faults: Mapping[str, Callable], driver: str = "call"
) -> Callable[[dict[str, Any], Answer, Answer], str]:
    """Return an ``explain`` that recognises wrong answers by making the same mistakes.

    Parameters
    ----------
    faults
        What is wrong, in words for the student, to a function that does it wrong in that way.
    driver
        Of the task.
    """

    def explain(inputs: dict[str, Any], got: Answer, want: Answer) -> str:
        for words, function in faults.items():
            wrong = answer_case(function, driver, inputs)
            if not isinstance(wrong, str) and not _difference(got, wrong, 1e-3):
                return words
        return ""

    return explain


def examine_weights(
    name: str,
    *,
    measure: str,
    zero_at: float,
    full_at: float,
    methods: Sequence[str],
    limits: Mapping[str, float],
) -> None:
    """Declare a task about trained weights.

    In a kernel nothing happens: hidden images and several seeds are needed, so there the visible
    checks of the cell decide.

    Parameters
    ----------
    name, measure, zero_at, full_at, methods, limits
        As in :class:`WeightsTask`.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure: expected one of {', '.join(MEASURES)}, got {measure!r}")
    if zero_at == full_at:
        raise ValueError(f"full_at: expected another value than zero_at, got {full_at}")
    declared = _declared.get()
    if declared is not None:
        task = WeightsTask("", name, measure, zero_at, full_at, tuple(methods), dict(limits), 0.0)
        declared.append(task)


def hidden_source(source: str) -> str:
    """Return what stands between the two marks of a tests cell; "" if it has none."""
    _, mark, rest = source.partition(BEGIN)
    return rest.partition(END)[0].strip("\n") if mark else ""


def collect_tasks(source: str, grade_id: str, points: float) -> list[Task | WeightsTask]:
    """Run the hidden part of a tests cell and return the tasks that it declares.

    Parameters
    ----------
    source
        Of the instructor's notebook. It is run as part of this program: never a student's.
    grade_id, points
        Of the cell.

    Raises
    ------
    ValueError
        If there is not exactly one task in it: points belong to a cell.
    """
    declared: list[Task | WeightsTask] = []
    token = _declared.set(declared)
    try:
        exec(compile(hidden_source(source), f"<{grade_id}>", "exec"), {"__name__": grade_id})
    except Exception as error:
        raise ValueError(
            f"{grade_id}: expected hidden tests that run, got {one_line(error)}"
        ) from error
    finally:
        _declared.reset(token)
    if len(declared) != 1:
        raise ValueError(f"{grade_id}: expected one task in the hidden tests, got {len(declared)}")
    return [dataclasses.replace(task, grade_id=grade_id, points=points) for task in declared]


def make_cases(task: Task, seed: int) -> list[dict[str, Any]]:
    """Return the inputs of all cases that a seed gives."""
    return list(task.cases(np.random.default_rng(seed)))


# ---- judging ----


def close(first: np.ndarray, second: np.ndarray, tolerance: float = 1e-3) -> bool:
    """Say whether two arrays have one shape and nearly the same finite values.

    Parameters
    ----------
    first, second
        Numbers, of any shape.
    tolerance
        Relative and absolute.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or not np.isfinite(first).all():
        return False
    return bool(np.allclose(first, second, rtol=tolerance, atol=tolerance))


def judge(task: Task, inputs: dict[str, Any], got: Answer | str, want: Answer) -> Verdict:
    """Compare an answer with the reference's.

    Parameters
    ----------
    task
        What was asked.
    inputs
        Of the case, for the explanation.
    got
        What the student's function returned, or a line that says why there is nothing.
    want
        What the reference returned.
    """
    explanation, fault = _faults(task, inputs, got, want)
    message = explanation or fault
    return Verdict(not message, f"{task.function}: {message}" if message else "")


def _faults(task: Task, inputs: dict[str, Any], got: Answer | str, want: Answer) -> tuple[str, str]:
    """Return the author's explanation of a wrong answer and the plain difference; "" if none."""
    if isinstance(got, str):
        return "", clip(got) or "no answer"
    fault = _difference(got, want, task.tolerance)
    if not fault:
        return "", ""
    try:
        return task.explain(inputs, got, want), fault
    except Exception:  # it was written with sound shapes in mind
        return "", fault


def judge_cases(
    task: Task, inputs: Sequence[dict[str, Any]], answers: Sequence[Answer | str]
) -> Verdict:
    """Judge a function by all its cases: right in each, or the commonest explanation.

    Parameters
    ----------
    task
        What was asked.
    inputs
        From :func:`make_cases`.
    answers
        One for each of them.
    """
    explanations, faults = [], []
    for case, got in zip(inputs, answers, strict=True):
        want = run_driver(task.expected, task.driver, case)
        explanation, fault = _faults(task, case, got, want)
        explanations += [explanation] if explanation else []
        faults += [fault] if fault else []
    if not faults:
        return Verdict(True, "")
    # One small case can fit a mistake that was not made; most of them do not.
    message = statistics.mode(explanations or faults[:1])
    return Verdict(False, f"{task.function}: {message}")


def _difference(got: Answer, want: Answer, tolerance: float) -> str:
    """Return what differs in one line; "" if nothing does."""
    if got.keys() != want.keys():
        return f"expected {_listed(want)}, got {_listed(got)}"
    for name, wanted in want.items():
        array = got[name]
        what = "" if name == "value" else f"{name.removeprefix('value.')}: "
        if array.dtype.kind != wanted.dtype.kind:
            kinds = (KINDS.get(a.dtype.kind, str(a.dtype)) for a in (wanted, array))
            return what + "expected {}, got {}".format(*kinds)
        if array.shape != wanted.shape:
            return f"{what}expected shape {wanted.shape}, got {array.shape}"
        if not np.isfinite(array).all():
            return f"{what}expected finite numbers, got {array[~np.isfinite(array)][0]}"
        if not close(array, wanted, tolerance if array.dtype.kind == "f" else 0):
            far = np.abs(array.astype(float) - wanted.astype(float)).ravel().argmax()
            return f"{what}expected {wanted.ravel()[far]:.5g}, got {array.ravel()[far]:.5g}"
    return ""


def _listed(answer: Answer) -> str:
    names = [clip(name.removeprefix("value."))[:30] for name in answer]  # a student's choice
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") or "nothing"

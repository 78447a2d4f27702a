"""The assignments are fair: right answers get everything, wrong ones nothing and a reason."""

import functools
import runpy
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from calibrate_assignments import MUTANTS as FOLDER
from calibrate_assignments import REFERENCE, Answer, digest_of, read_table

from semigen_lib.data import ImageData, to_float
from semigen_lib.grading.assignment import (
    ASSIGNMENTS,
    STUB,
    Assignment,
    examine_source,
    find_assignment,
    grade_id_of,
    is_answer,
    load_assignment,
    set_parameters,
)
from semigen_lib.grading.tasks import Task, WeightsTask

NAMES = ("A1", "A2", "A3", "A4", "A5")
WITH_FUNCTIONS = ("A1", "A2", "A3", "A4")
WITH_WEIGHTS = ("A2", "A4", "A5")
LEAST_RUNS = {"A2": 20, "A4": 20, "A5": 3}  # of the reference, behind a band; 20 are wanted
N_SEEDS = 20
fairness = pytest.mark.fault("fairness")


@functools.cache
def loaded(name: str) -> Assignment:
    """An assignment; do not write into it. Without its student version: nbgrader takes seconds."""
    return load_assignment(find_assignment(name), template={})


@functools.cache
def answers(name: str) -> dict[str, str]:
    return {
        grade_id_of(cell): cell.source for cell in loaded(name).notebook.cells if is_answer(cell)
    }


@functools.cache
def wrong_answers(name: str) -> dict:
    return runpy.run_path(str(FOLDER / f"{name}.py"))


MUTANTS = [
    pytest.param(name, *row, id=f"{name}-{row[0]}-{number}")
    for name in WITH_FUNCTIONS
    for number, row in enumerate(wrong_answers(name)["MUTANTS"])
]


# ---- functions ----


@fairness
@pytest.mark.parametrize("name", WITH_FUNCTIONS)
def test_the_reference_gets_full_marks_on_twenty_seeds(name) -> None:
    for seed in range(N_SEEDS):
        for task, verdict in examine_source(loaded(name), {}, seed).items():
            assert verdict.right, f"{task}, seed {seed}: {verdict.message}"


@fairness
@pytest.mark.parametrize("name", WITH_FUNCTIONS)
def test_the_untouched_file_gets_nothing_and_is_told_why(name) -> None:
    untouched = {cell: _without_solution(source) for cell, source in answers(name).items()}
    verdicts = examine_source(loaded(name), untouched)
    assert len(verdicts) == sum(isinstance(task, Task) for task in loaded(name).tasks)
    for task, verdict in verdicts.items():
        assert not verdict.right and "not answered yet" in verdict.message, task


def _without_solution(source: str) -> str:
    before, _, rest = source.partition("### BEGIN SOLUTION")
    return before + STUB + rest.partition("### END SOLUTION")[2]


@fairness
@pytest.mark.parametrize(("name", "task", "old", "new", "word"), MUTANTS)
def test_a_wrong_answer_is_refused_by_name(name, task, old, new, word) -> None:
    cells = [cell for cell, source in answers(name).items() if old in source]
    assert len(cells) == 1 and answers(name)[cells[0]].count(old) == 1, f"{old!r} is not there once"
    mutated = answers(name)[cells[0]].replace(old, new)
    assert mutated != answers(name)[cells[0]]
    verdict = examine_source(loaded(name), {cells[0]: mutated})[task]
    assert not verdict.right, "a wrong answer got full marks"
    assert word.lower() in verdict.message.lower(), verdict.message


@pytest.mark.parametrize("name", NAMES)
def test_there_are_five_wrong_answers_for_every_exercise(name) -> None:
    rows = wrong_answers(name)
    told = Counter(row[0] for row in rows["MUTANTS"] + rows.get("WEIGHTS", []))
    measured = [task for task in loaded(name).tasks if isinstance(task, WeightsTask)]
    for task in loaded(name).tasks:
        alike = [task.grade_id]
        if isinstance(task, WeightsTask):  # two measures of one hand-in are one exercise
            alike = [other.grade_id for other in measured if other.name == task.name]
        assert sum(told[grade_id] for grade_id in alike) >= 5, task.grade_id


# ---- weights ----


def measured(name: str, answer: Answer) -> list[dict[str, float | None]]:
    """What the runs of an answer measured, from the committed table."""
    digest = digest_of(loaded(name), answer)
    rows = [row for key, row in read_table().items() if key.split()[:2] == [name, digest]]
    assert rows, "not measured with the answers of today: book/tools/calibrate_assignments.py"
    return rows


def points(task: WeightsTask, values: dict[str, float | None]) -> float:
    value = values[task.grade_id]
    return task.score([float("nan") if value is None else value])


def weights_tasks(name: str) -> list[WeightsTask]:
    return [task for task in loaded(name).tasks if isinstance(task, WeightsTask)]


@fairness
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_every_measured_run_of_the_reference_gets_full_marks(name) -> None:
    rows = measured(name, REFERENCE)
    assert len(rows) >= LEAST_RUNS[name], "run book/tools/calibrate_assignments.py"
    for task in weights_tasks(name):
        for values in rows:
            assert points(task, values) == task.points, (task.grade_id, values)


WRONG_WEIGHTS = [
    pytest.param(name, *row, id=f"{name}-{row[0]}-{number}")
    for name in WITH_WEIGHTS
    for number, row in enumerate(wrong_answers(name)["WEIGHTS"])
]


@fairness
@pytest.mark.parametrize(("name", "grade_id", "old", "new"), WRONG_WEIGHTS)
def test_a_wrong_training_gets_at_most_half(name, grade_id, old, new) -> None:
    task = next(task for task in weights_tasks(name) if task.grade_id == grade_id)
    for values in measured(name, Answer(grade_id, old, new)):
        assert points(task, values) <= task.points / 2, values


@fairness
def test_the_mean_image_is_worth_nothing(mnist: ImageData) -> None:
    mean_image = to_float(mnist.train.images).mean(0)
    error = (to_float(mnist.test.images) - mean_image).square().mean().item()
    (task,) = weights_tasks("A2")
    assert task.score([error]) == 0


@fairness
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_chance_and_nothing_are_worth_nothing(name) -> None:
    chance = {"test_error": 0.9, "conditional_accuracy": 0.1}
    for task in weights_tasks(name):
        assert task.score([float("nan")]) == 0
        if task.measure in chance:
            assert task.score([chance[task.measure]]) == 0


# ---- whole notebooks ----


def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIGEN_EVIDENCE", str(tmp_path / "evidence"))
    monkeypatch.setenv("PYTHONPATH", str(ASSIGNMENTS.parents[1]))  # for the kernel


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_student_version_runs_to_its_end(name, tmp_path, monkeypatch) -> None:
    """Unanswered cells fail one by one; the kernel lives, and nothing is handed in."""
    import nbclient

    in_a_folder_of_its_own(tmp_path, monkeypatch)
    student = nbformat.from_dict(load_assignment(find_assignment(name)).template)
    client = nbclient.NotebookClient(student, timeout=300, allow_errors=True, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    code = [cell for cell in student.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    failed = {grade_id_of(cell) for cell in code if _error(cell)}
    graded = {grade_id_of(cell) for cell in code if cell.metadata.nbgrader["grade"]}
    assert failed >= graded, "the checks of an unanswered exercise passed"
    assert not failed & {"parameters", "setup", *answers(name)}
    assert not list(tmp_path.glob("evidence/*"))


def _error(cell: nbformat.NotebookNode) -> str:
    return next((f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"), "")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_instructors_version_runs_with_another_seed(name, tmp_path, monkeypatch) -> None:
    import papermill

    in_a_folder_of_its_own(tmp_path, monkeypatch)
    source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    nbformat.write(set_parameters(loaded(name).notebook, {"seed": 3}), source)
    papermill.execute_notebook(
        source, target, kernel_name="python3", cwd=str(tmp_path), progress_bar=False
    )
    nb = nbformat.read(target, as_version=4)
    assert all(cell.execution_count for cell in nb.cells if cell.cell_type == "code")
    handed_in = {path.stem for path in tmp_path.glob("evidence/*.safetensors")}
    assert handed_in == {task.name for task in weights_tasks(name)}


def test_every_assignment_is_here() -> None:
    assert {path.name.partition("_")[0] for path in ASSIGNMENTS.glob("*.ipynb")} == set(NAMES)

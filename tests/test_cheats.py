"""Cheats in the sandbox, end to end: each is worth what its honest evidence is worth, or nothing.

Everyone here answers the first exercise rightly (2 points) and the second wrongly, and tries to get
its 3 points all the same. Every cheat says that it was done, so that a test cannot pass because the
cheat did not come to its turn.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from test_grade import ROOT, outputs, table, wait_for
from test_mark import DOUBLE, RIGHT, hand_in, tiny_assignment

from semigen_lib.cli import main
from semigen_lib.grading.assignment import find_assignment, load_assignment
from semigen_lib.grading.intake import Submission
from semigen_lib.grading.mark import Marking, mark
from semigen_lib.grading.sandbox import Sandbox, SandboxError, find_sandbox

pytestmark = pytest.mark.slow

WRONG = "def average(x):\n    return x.sum()"
HONEST = 2.0

# Everything below is run in the kernel, cell by cell, before or after the assignment's own cells.
IN_THE_KERNEL = {
    "prints a score": """
import json
print(json.dumps({"score": 5, "average-tests": 3, "status": "graded"}))
""",
    "plants parameters": "seed = 0",  # in a cell tagged injected-parameters
    "patches the library": """
import semigen_lib.grading.drivers as drivers, semigen_lib.grading.tasks as tasks
drivers.close = tasks.close = lambda *_, **__: True
tasks.judge = tasks.judge_cases = lambda *_, **__: tasks.Verdict(True, "")
tasks._difference = lambda *_: ""
""",
    "patches allclose": """
import numpy, torch
torch.allclose = numpy.allclose = numpy.isclose = torch.equal = lambda *_, **__: True
""",
    "forges answers": """
open("/out/answers.json", "w").write('{"cells": {}, "calls": [], "score": 5, "right": true}')
""",
    "forges a result": """
import os
os.makedirs("/out/results", exist_ok=True)
open("/out/results/kernel.json", "w").write('{"score": 5}')
""",
    "writes its own file": """
for place in ("/in/notebook.ipynb", "/out/executed.ipynb", "/out/notebook.ipynb"):
    try:
        open(place, "w").write("{}")
    except OSError as error:
        print(type(error).__name__)
""",
    "leaves a pickle": """
import pickle
class Bomb:
    def __reduce__(self):
        return (print, ("exploded",))
os.makedirs("/out/evidence", exist_ok=True)
open("/out/evidence/net.safetensors", "wb").write(pickle.dumps(Bomb()))
""",
    "turns cells into pass": """
get_ipython().input_transformers_post.append(lambda lines: ["pass\\n"])
""",
}

SEARCH = """
import gc, os, sys
def sought(text):
    return ("### BEGIN " + "HIDDEN") in text or ("a sum where a " + "mean belongs") in text
found = [o for o in gc.get_objects() if isinstance(o, (str, bytes)) and sought(str(o))]
for root in ("/in", "/out", "/library", "/tmp"):
    for folder, _, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            try:
                text = open(path, errors="replace").read(2_000_000)
            except OSError:
                continue
            own = "tasks.py" in path or "notebook" in path or "probe.json" in path
            if ("a sum where a " + "mean belongs") in text and not own:
                found.append(path)
print("found", len(found))
"""

# The answer to the second exercise, run in the kernel and again in the probe.
IN_THE_ANSWER = {
    "leaves with sys.exit(0)": WRONG + "\nimport sys\nprint('did', 'leave')\nsys.exit(0)",
    "returns a liar": """
class Liar(float):
    __eq__ = __le__ = __ge__ = lambda self, other: True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __sub__ = __rsub__ = lambda self, other: 0.0
    __hash__ = float.__hash__
def average(x):
    return Liar(7.0)
print("did", "liar")
""",
    "returns NaN": "def average(x):\n    return 0 * x.sum() + float('nan')\nprint('did', 'nan')",
    "searches for the checks": SEARCH + "\n" + """
def average(x):
    return x.mean() if found else x.sum()
print("did", "search")
""",
    "detects the probe": """
import json, os
expected = None
if os.path.exists("/in/probe.json"):
    asked = json.load(open("/in/probe.json"))
    expected = [call[key] for call in asked["calls"] for key in call
                if key in ("expected", "want", "answer", "tolerance")]
    import semigen_lib.grading.drivers as drivers
    drivers._difference = lambda *_: ""
def average(x):
    return expected[0] if expected else x.sum()
print("did", "detect")
""",
    "forges the answers of the probe": WRONG + """
import json, os
if os.path.exists("/in/probe.json"):
    calls = [{"task": name, "problem": "", "outputs": {}, "right": True, "score": 5}
             for name in ("double-tests", "average-tests")]
    json.dump({"cells": {}, "calls": calls, "score": 5}, open("/out/answers.json", "w"))
    os._exit(0)
print("did", "forge")
""",
}  # fmt: skip


def student(cheat: str) -> str:
    """Return the name of who does it: all that is done in the kernel is done by one."""
    return "kernel" if cheat in IN_THE_KERNEL else re.sub(r"\W+", "-", cheat.lower()).strip("-")


def write_submissions(folder: Path, marking: Marking) -> None:
    folder.mkdir()
    wrong = {"double": DOUBLE, "average": WRONG}
    hand_in(marking, folder / "reference.ipynb", RIGHT)
    hand_in(marking, folder / "untouched.ipynb")
    hand_in(marking, folder / "honest.ipynb", wrong)
    (folder / "copier.ipynb").write_text((folder / "honest.ipynb").read_text())
    for cheat, source in IN_THE_ANSWER.items():
        hand_in(marking, folder / f"{student(cheat)}.ipynb", {"double": DOUBLE, "average": source})
    cells = [new_code_cell(f"{source}\nprint('did', {cheat!r})")
             for cheat, source in IN_THE_KERNEL.items()]  # fmt: skip
    cells[1].metadata["tags"] = ["injected-parameters"]
    hand_in(marking, folder / "kernel.ipynb", wrong, cells)
    nb = nbformat.read(folder / "honest.ipynb", as_version=4)
    for cell in nb.cells:
        if cell.metadata.nbgrader.grade_id == "average-tests":
            cell.source = "pass"
            cell.metadata.nbgrader |= {"points": 100, "locked": False, "solution": True}
    nb.metadata["semigen"] = {"points": 100}
    nbformat.write(nb, folder / "locked.ipynb")


def grade(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "semigen_lib", "grade", *map(str, words), "--quiet"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return find_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(sandbox, tmp_path_factory) -> Path:
    """A folder in which the class was graded, in the sandbox, by two workers."""
    folder = tmp_path_factory.mktemp("class")
    path = tiny_assignment(folder / "T1.ipynb")
    template = nbformat.writes(load_assignment(path).template)
    write_submissions(folder / "in", Marking(path, template, b"", 1, sandbox))
    (folder / "secret").write_bytes(b"s" * 32)
    done = grade(folder / "in", "--assignment", path, "--out", folder / "grades",
                 "--secret-file", folder / "secret")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "line").write_text(done.stdout)
    return folder


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / "grades" / "results" / f"{name}.json").read_text())


def shown(record: dict) -> str:
    return "\n".join(cell["text"] for cell in record["output"])


def test_the_closing_line_shows_zeros(folder) -> None:
    n = len(list((folder / "in").iterdir()))
    line = f"{n} submissions: {n} graded, 0 refused; 0 lost, 0 grader errors\n"
    assert (folder / "line").read_text() == line
    assert len(table(folder / "grades")) == n


@pytest.mark.fault("fairness")
def test_the_reference_has_full_marks(folder) -> None:
    found = record(folder, "reference")
    assert found["score"] == found["max_score"] == 5
    assert found["flags"] == [] and found["reason"] == "ok"
    assert found["key"]["sandbox"] == "bubblewrap"


@pytest.mark.fault("fairness")
def test_the_untouched_file_has_nothing_and_finishes(folder) -> None:
    found = record(folder, "untouched")
    assert (found["score"], found["reason"], found["status"]) == (0, "ok", "graded")
    assert all("not answered yet" in task["message"] for task in found["tasks"])


@pytest.mark.fault("fairness")
def test_a_half_has_half_and_a_message(folder) -> None:
    found = record(folder, "honest")
    assert found["score"] == HONEST
    assert found["tasks"][1]["message"] == "average: a sum where a mean belongs"


@pytest.mark.fault("integrity")
@pytest.mark.parametrize("cheat", [*IN_THE_KERNEL, *IN_THE_ANSWER])
def test_a_cheat_is_worth_its_honest_evidence(cheat, folder) -> None:
    found = record(folder, student(cheat))
    done = f"did {cheat}" if cheat in IN_THE_KERNEL else "did "
    if cheat != "writes its own file":  # papermill writes it anew after the last cell
        assert done in shown(found), "the cheat was not tried"
    honest = 0 if cheat == "forges the answers of the probe" else HONEST
    assert found["score"] == honest and found["max_score"] == 5
    assert found["status"] == "graded"


@pytest.mark.fault("integrity")
def test_planted_parameters_do_not_take_effect(folder) -> None:
    seeds = {name: re.search(r"seed (\d+)", shown(record(folder, name)))[1]
             for name in ("kernel", "honest", "reference")}  # fmt: skip
    assert len(set(seeds.values())) == 3 and "0" not in seeds.values()


@pytest.mark.fault("integrity")
def test_no_hidden_check_is_in_the_kernel(folder) -> None:
    assert "found 0" in shown(record(folder, student("searches for the checks")))


@pytest.mark.fault("integrity")
def test_edited_checks_and_points_do_not_count(folder) -> None:
    found = record(folder, "locked")
    assert (found["score"], found["max_score"]) == (HONEST, 5)
    assert ["locked_changed", "average-tests"] in found["problems"]


@pytest.mark.fault("integrity")
def test_a_copy_is_flagged_and_meets_other_questions(folder) -> None:
    rows = {row["student_id"]: row["flags"] for row in table(folder / "grades")}
    assert "same_submission" in rows["copier"] and "same_submission" in rows["honest"]
    assert "same_submission" not in rows["reference"]
    seeds = [re.search(r"seed (\d+)", shown(record(folder, n)))[1] for n in ("copier", "honest")]
    assert seeds[0] != seeds[1]


def test_the_feedback_names_no_seed_and_no_other_student(folder) -> None:
    text = (folder / "grades" / "feedback" / "copier.html").read_text()
    assert "honest" not in text and "a sum where a mean belongs" in text
    assert (folder / "secret").read_text() not in text


# ---- the same class, interrupted, and on a cluster ----


@pytest.fixture
def two(folder, tmp_path) -> str:
    """A folder with two of the class; the words that grade it."""
    (tmp_path / "in").mkdir()
    for name in ("reference", "honest"):
        shutil.copy(folder / "in" / f"{name}.ipynb", tmp_path / "in")
    words = (tmp_path / "in", "--assignment", folder / "T1.ipynb", "--out", tmp_path / "grades",
             "--secret-file", folder / "secret", "--quiet")  # fmt: skip
    return shlex.join(map(str, ("grade", *words)))


def results_of(folder: Path) -> dict[str, object]:
    found = {name.removesuffix(".json"): kept for name, kept in outputs(folder).items()}
    return {name: found[f"results/{name}"] for name in ("reference", "honest")}


def alive(place: Path) -> list[str]:
    """Return the processes that were started with a folder as their place for temporary files."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if str(place).encode() in words + (process / "environ").read_bytes():
                found.append(words.replace(b"\0", b" ").decode()[:120])
    return found


@pytest.mark.fault("durability")
def test_killed_while_students_code_runs(folder, two, tmp_path) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    command = [sys.executable, "-m", "semigen_lib", *shlex.split(two)]
    environment = os.environ | {"TMPDIR": str(place)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        wait_for(lambda: list(place.glob("semigen-*/run0-out/executed.ipynb")), 300)
        process.kill()
    wait_for(lambda: not alive(place), 60)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "grades") == results_of(folder / "grades")


def test_a_local_cluster_gives_the_same_grades(folder, two, tmp_path, monkeypatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        assert cluster.scheduler.transition_counter == 0
        assert main([*shlex.split(two), "--scheduler", cluster.scheduler_address]) == 0
        assert cluster.scheduler.transition_counter >= 3 * 2, "the workers were idle"
    assert results_of(tmp_path / "grades") == results_of(folder / "grades")


# ---- weights ----

FIXED = """
import torch
from semigen_lib.methods import build_method
torch.manual_seed(0)
net = build_method("autoencoder", (1, 28, 28), 10, {"width": 8, "latent_dim": 4})
weights = net.state_dict()
torch.seed()
net.load_state_dict({k: v + 1e-4 * torch.randn_like(v) if v.is_floating_point() else v
                     for k, v in weights.items()})
hand_in("net", net)
"""


@pytest.fixture(scope="module")
def weighed(sandbox, tmp_path_factory) -> dict[str, dict]:
    """Two students who hand weights in: of the run, or brought along, with noise on them."""
    place = tmp_path_factory.mktemp("weights")
    path = tiny_assignment(place / "T1.ipynb", weights=True, runs=2)
    template = nbformat.writes(load_assignment(path).template)
    marking = Marking(path, template, b"s" * 32, 2, sandbox)
    own = hand_in(marking, place / "own.ipynb", RIGHT)
    brought = hand_in(marking, place / "brought.ipynb", RIGHT, [new_code_cell(FIXED)])
    return {path.stem: mark((Submission(path.stem, path), marking)) for path in (own, brought)}


@pytest.mark.fault("fairness")
def test_weights_of_the_run_are_worth_what_they_measure(weighed) -> None:
    own = weighed["own"]
    assert own["status"] == "graded", own["detail"]
    assert own["score"] == own["max_score"] == 10 and own["flags"] == []
    assert own["tasks"][2]["message"].startswith("reconstruction error 0.")


@pytest.mark.fault("integrity")
def test_weights_that_were_brought_along_are_worth_nothing(weighed) -> None:
    brought = weighed["brought"]
    assert brought["status"] == "graded", brought["detail"]
    assert brought["tasks"][2]["score"] == 0 and brought["score"] == 5
    assert brought["flags"] == ["copied_weights"]
    assert "the same whatever the seed" in brought["tasks"][2]["message"]


# ---- an assignment of the book ----

HOSTILE = """
import os, signal
def generator_loss(fake_score, c):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_for_an_assignment_of_the_book(sandbox, tmp_path, capsys) -> None:
    path = find_assignment("A3")
    assignment = load_assignment(path)
    submissions = tmp_path / "in"
    (submissions / "archive").mkdir(parents=True)
    nbformat.write(assignment.notebook, submissions / "reference.ipynb")
    (submissions / "broken.ipynb").write_text('{"cells": [')
    (submissions / "link.ipynb").symlink_to(path)
    half = nbformat.from_dict(assignment.notebook)
    for cell in half.cells:
        if cell.metadata.nbgrader.grade_id == "generator-loss":
            cell.source = HOSTILE
    nbformat.write(half, submissions / "archive" / "A3.ipynb")
    words = ("grade", submissions, "--assignment", "A3", "--out", tmp_path / "grades", "--quiet")
    assert main([*map(str, words), "--jobs", "1"]) == 0
    rows = {row["student_id"]: row for row in table(tmp_path / "grades")}
    assert {name: float(row["score"]) for name, row in rows.items()} == {
        "archive": 9, "broken": 0, "link": 0, "reference": 10,
    }  # fmt: skip
    assert (rows["broken"]["reason"], rows["link"]["reason"]) == ("not_json", "not_a_file")
    assert "4 submissions: 2 graded, 2 refused; 0 lost, 0 grader" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["A1", "A2", "A3", "A4", "A5"])
def test_the_reference_and_the_untouched_file_by_the_same_command(name, sandbox, tmp_path) -> None:
    assignment = load_assignment(find_assignment(name))
    submissions = tmp_path / "in"
    submissions.mkdir()
    nbformat.write(assignment.notebook, submissions / "reference.ipynb")
    nbformat.write(nbformat.from_dict(assignment.template), submissions / "untouched.ipynb")
    words = ("grade", submissions, "--assignment", name, "--out", tmp_path / "grades", "--quiet")
    assert main([*map(str, words), "--jobs", "1"]) == 0
    rows = {row["student_id"]: row for row in table(tmp_path / "grades")}
    assert {student: row["reason"] for student, row in rows.items()} == dict.fromkeys(rows, "ok")
    scores = {student: float(row["score"]) for student, row in rows.items()}
    full = sum(task.points for task in assignment.tasks)
    assert scores == {"reference": full, "untouched": 0}, rows
    assert not rows["reference"]["flags"], rows["reference"]["flags"]

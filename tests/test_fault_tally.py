"""The line that counts injected faults: every outcome, also from several processes."""

import inspect
import re

import conftest
import pytest

pytest_plugins = ["pytester"]

TABLES = ("FAULTS_OF_GRADING", "FAULTS_OF_ENGINE", "FAULTS")
HOOKS = "import pytest\n" + "".join(f"{name} = {vars(conftest)[name]!r}\n" for name in TABLES)
HOOKS += "\n".join(
    inspect.getsource(hook)
    for hook in (conftest.pytest_itemcollected, conftest.pytest_terminal_summary)
)
TESTS = """
import os, pytest

@pytest.mark.fault("containment")
@pytest.mark.parametrize("held", [True, False, True])
def test_containment(held): assert held

@pytest.mark.fault("durability")
@pytest.mark.xfail
def test_durability(): assert False

@pytest.mark.fault("integrity")
def test_integrity(): assert False

@pytest.mark.fault("fairness")
def test_fairness(): assert False

@pytest.fixture
def broken():
    yield
    raise RuntimeError

@pytest.mark.fault("intake")
def test_intake(broken): pass

@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.fault("intake")), 2])
def test_some(n): pass

@pytest.mark.fault("intake")
def test_skipped(): pytest.skip("here")

@pytest.mark.fault("containment")
@pytest.mark.skip(reason="there")
def test_marked(): pass

@pytest.mark.fault("training")
@pytest.mark.parametrize("held", [True, False, False])
def test_training(held): assert held

@pytest.mark.fault("data")
def test_data(): pytest.skip("here")

@pytest.mark.fault("message")
def test_message(): raise KeyError

def test_of_no_fault(): assert False
"""
LINES = [
    "8 injected, 1 escapes, 1 results lost, 2 inflated grades, 1 tracebacks, 2 skipped",
    "4 injected, 2 lost, 0 wrong, 1 tracebacks, 1 skipped",
]


@pytest.fixture
def suite(pytester, monkeypatch) -> pytest.Pytester:
    """A folder with the hooks of our conftest and nothing else of it; no plugin but xdist."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(HOOKS)
    pytester.makeini("[pytest]\nmarkers = fault(area)\n")
    return pytester


@pytest.mark.parametrize("processes", [0, 2])
def test_every_outcome_counts_once(suite, processes) -> None:
    suite.makepyfile(test_one=TESTS, test_two="def test_other(): pass")
    run = suite.runpytest_subprocess("-p", "xdist", "-n", str(processes), "--dist", "loadfile")
    run.stdout.fnmatch_lines(LINES)
    assert re.fullmatch(r"=+ .* in [0-9.]+s =+", run.outlines[-1]), "pytest's summary stays last"


def test_a_crashed_process_is_a_failure(suite) -> None:
    suite.makepyfile(
        "import os, pytest\n@pytest.mark.fault('containment')\ndef test_dies(): os._exit(3)"
    )
    run = suite.runpytest_subprocess("-p", "xdist", "-n", "1", "--max-worker-restart", "0")
    run.stdout.fnmatch_lines(["1 injected, 1 escapes, *"])


def test_what_is_deselected_is_not_counted(suite) -> None:
    suite.makepyfile(test_one=TESTS)
    run = suite.runpytest_subprocess("-k", "containment")
    run.stdout.fnmatch_lines(["3 injected, 1 escapes, 0 *, 0 *, 0 *, 0 skipped"])


def test_no_faults_no_line(suite) -> None:
    suite.makepyfile("def test_plain(): pass")
    assert "injected" not in suite.runpytest_subprocess().stdout.str()


@pytest.mark.parametrize("mark", ["fault", "fault('intaek')", "fault(area='intake')"])
def test_an_unknown_area_stops_the_run(suite, mark) -> None:
    suite.makepyfile(f"import pytest\n@pytest.mark.{mark}\ndef test_it(): pass")
    run = suite.runpytest_subprocess()
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "expected fault(area), area one of" in run.stderr.str() + run.stdout.str()

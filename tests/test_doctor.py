"""The doctor: its canaries stay inside a sandbox and get out where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_sandbox import ROOT, needs_sandbox, ordinary_python

from semigen_lib.grading import doctor, sandbox
from semigen_lib.grading.doctor import ATTEMPTS, BOMBS, Finding, examine_sandbox
from semigen_lib.grading.sandbox import Limits, Outcome, Sandbox, SandboxError

NAMES = [*ATTEMPTS, *BOMBS]
#: Held without a sandbox as well: its variables and its time are not taken away by walls.
ALWAYS = {"environment", "no end"}
#: What only root can do anywhere, or what a machine may keep from others for reasons of its own.
ROOTS = {"write programs", "trace", "become root", "nested namespace", "network"}

CODE = """
import json, sys
from semigen_lib.grading.doctor import examine_sandbox
from semigen_lib.grading.sandbox import Sandbox
print(json.dumps({level: examine_sandbox(Sandbox(level)) for level in ("bubblewrap", "none")}))
"""


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """What this user's grader finds with a sandbox and without."""
    return {level: examine_sandbox(Sandbox(level)) for level in ("bubblewrap", "none")}


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_canary_gets_out(examined: dict[str, list[Finding]], name: str) -> None:
    finding = next(finding for finding in examined["bubblewrap"] if finding.name == name)
    assert finding.held and finding.detail, finding


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_a_sandbox_every_canary_gets_out(
    examined: dict[str, list[Finding]], name: str
) -> None:
    finding = next(finding for finding in examined["none"] if finding.name == name)
    if finding.held and name in ROOTS and (os.geteuid() != 0 or name == "network"):
        pytest.skip(f"this machine keeps it from this user anyway: {finding.detail}")
    assert finding.held == (name in ALWAYS), finding


@needs_sandbox
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are an ordinary user's already")
def test_an_ordinary_user_has_a_doctor_too(tmp_path: Path) -> None:
    command = ordinary_python()
    folder = Path("/var/tmp") / f"semigen-doctor-{os.getpid()}"
    (folder / "book").mkdir(parents=True)
    try:
        copy = folder / "semigen_lib"
        shutil.copytree(ROOT / "semigen_lib", copy, ignore=shutil.ignore_patterns("*.xz", "*.png"))
        run = subprocess.run(
            [*command, "-c", CODE],
            capture_output=True,
            text=True,
            cwd=folder,
            env={"PATH": os.environ["PATH"]},
        )
    finally:
        shutil.rmtree(folder)
    found = json.loads(run.stdout)
    assert [f for f in found["bubblewrap"] if not f[1]] == []
    held = {name for name, held, _ in found["none"] if held}
    assert held <= ALWAYS | ROOTS | {"read test images"}, found["none"]


@needs_sandbox
def test_the_canary_of_the_environment_can_get_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = sandbox._variables
    leaky = lambda home, library: dict(os.environ) | clean(home, library)  # noqa: E731
    monkeypatch.setattr(sandbox, "_variables", leaky)
    found = {finding.name: finding.held for finding in examine_sandbox(Sandbox("none"), quick=True)}
    assert not found["environment"]
    assert "CANARY" not in os.environ


@needs_sandbox
def test_the_quick_form_is_quick_and_sets_off_no_bomb() -> None:
    start = time.monotonic()
    findings = examine_sandbox(Sandbox("bubblewrap"), quick=True)
    assert time.monotonic() - start < 10
    assert [finding.name for finding in findings] == list(ATTEMPTS)


class Broken(Sandbox):
    """A sandbox that does not start, or whose canary says nothing."""

    def run(
        self,
        command: list[str],
        *,
        mounts: list,
        output: Path,
        limits: Limits,
        environment: Mapping[str, str],
        slot: int = 0,
    ) -> Outcome:
        if self.level == "absent":
            raise SandboxError("sandbox: expected one, got none")
        return Outcome("failed", 1, 0.1, 0, "Traceback")


@pytest.mark.parametrize("level", ["absent", "silent"])
def test_what_could_not_be_tried_has_not_held(level: str) -> None:
    findings = examine_sandbox(Broken(level), quick=True)
    assert [finding.name for finding in findings] == list(ATTEMPTS)
    assert not any(finding.held for finding in findings)
    assert all("could not be tried" in finding.detail for finding in findings)


def test_every_canary_is_known_by_one_name() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 20
    assert set(doctor.ATTEMPTS) & set(doctor.BOMBS) == set()

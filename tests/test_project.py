"""The repository: what has to agree with what, and what has no place in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings it there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP_LEVEL = {
    *("book", "semigen_lib", "tests", ".ci", ".github"),
    *("_config.yml", "_toc.yml", "Makefile", "pyproject.toml", "requirements.txt"),
    *(".gitattributes", ".gitignore"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"),
}
REPOSITORY = PROJECT["project"]["urls"]["Repository"]
# What Colab has installed (August 2026): installing the library there has to add nothing.
COLAB = {
    "filelock": "3.20.0",
    "ipywidgets": "7.7.1",
    "joblib": "1.5.3",
    "matplotlib": "3.10.0",
    "numpy": "2.1.3",
    "pillow": "11.3.0",
    "safetensors": "0.6.2",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "tqdm": "4.67.1",
}


def tracked() -> list[str]:
    """Return the files that belong to the repository, committed or about to be."""
    if shutil.which("git") is None:
        pytest.skip("no git: cannot tell which files belong to the repository")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.skip("not a git checkout: cannot tell which files belong to the repository")
    return [name for name in run.stdout.split("\0") if name and (ROOT / name).exists()]


def pins() -> list[tuple[str, str, str]]:
    """Return the pins as (name, version, marker)."""
    found = []
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line:
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)(?:; (.+))?", line)
            assert match, f"expected an exact pin, got {line!r}"
            found.append((match[1].lower(), match[2], match[3] or ""))
    return found


def dependencies() -> dict[str, str]:
    split = (re.match(r"([\w.-]+)(.*)", text) for text in PROJECT["project"]["dependencies"])
    return {match[1].lower(): match[2] for match in split}


def test_top_level_holds_what_the_plan_names() -> None:
    extra = {name.split("/")[0] for name in tracked()} - TOP_LEVEL
    assert not extra, f"not in the plan of the repository: {sorted(extra)}"
    missing = [name for name in TOP_LEVEL if not (ROOT / name).exists()]
    assert not missing, f"missing: {missing}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_once(python: str) -> None:
    from packaging.markers import Marker

    environment = {"python_version": python}
    names = [
        name for name, _, marker in pins() if not marker or Marker(marker).evaluate(environment)
    ]
    assert len(names) == len(set(names)), "pinned twice"
    missing = set(dependencies()) - set(names)
    assert not missing, f"a dependency of the library without a pin: {missing}"


def test_pins_and_colab_are_inside_the_ranges() -> None:
    from packaging.specifiers import SpecifierSet

    ranges = {name: SpecifierSet(text) for name, text in dependencies().items()}
    outside = [f"{n}=={v}" for n, v, _ in pins() if n in ranges and v not in ranges[n]]
    assert not outside, f"pins that pyproject.toml does not allow: {outside}"
    assert set(ranges) == set(COLAB), "a dependency that Colab's list does not have"
    outside = [f"{n}=={v}" for n, v in COLAB.items() if v not in ranges[n]]
    assert not outside, f"Colab's versions that pyproject.toml does not allow: {outside}"


def test_console_script_and_packages_exist() -> None:
    module, _, function = PROJECT["project"]["scripts"]["semigen"].partition(":")
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert re.search(rf"^def {function}\(", text, re.MULTILINE)
    found = {str(p.parent.relative_to(ROOT)) for p in (ROOT / "semigen_lib").rglob("__init__.py")}
    assert {name.replace("/", ".") for name in found} == set(
        PROJECT["tool"]["setuptools"]["packages"]
    )


def test_every_chapter_is_in_the_contents_and_the_readme() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    written = [f"book/{p.stem}" for p in sorted((ROOT / "book").glob("[0-9][0-9]_*.ipynb"))]
    assert [name for name in listed if re.match(r"book/\d\d_", name)] == written
    gone = [n for n in listed if not any((ROOT / f"{n}{e}").exists() for e in (".ipynb", ".md"))]
    assert not gone, f"in _toc.yml but not written: {gone}"
    readme, index = ((ROOT / name).read_text() for name in ("README.md", "book/index.md"))
    for name in written:
        assert f"[]({Path(name).name})" in index, f"no row in book/index.md: {name}"
        colab = REPOSITORY.replace("github.com", "colab.research.google.com/github")
        assert f"({name}.ipynb)" in readme, f"no row in README.md: {name}"
        assert f"({colab}/blob/main/{name}.ipynb)" in readme, f"no Colab link in README.md: {name}"


def test_links_of_the_readme_and_contributing_exist() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", (ROOT / name).read_text())
        gone = [a or b for a, b in links if not (ROOT / (a or b)).exists()]
        assert not gone, f"{name}: {gone}"


def test_one_address_and_one_version_everywhere() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'__version__ = "(.+)"', (ROOT / "semigen_lib/__init__.py").read_text())[1]
    assert config["repository"]["url"] == citation["repository-code"] == REPOSITORY
    assert citation["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    run = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert phony == set(re.findall(r"^  make (\w+)", run.stdout, re.MULTILINE))


GOOD = "echo '===== 3 passed, 1 skipped in 9.5s ====='"
BAD = "echo '===== 1 failed, 3 passed, 2 errors in 61.2s (0:01:01) ====='; exit 2"
NONE = "echo '===== no tests ran in 0.1s ====='"


@pytest.mark.parametrize(
    ("book", "test", "slow", "last"),
    [
        ("exit 0", GOOD, GOOD, "6 passed, 0 failed, 2 skipped"),
        ("exit 0", BAD, GOOD, "6 passed, 3 failed, 1 skipped"),
        ("exit 0", GOOD, BAD, "6 passed, 3 failed, 1 skipped"),
        ("exit 2", GOOD, GOOD, "6 passed, 1 failed, 2 skipped"),
        ("exit 0", f"{GOOD}; exit 2", GOOD, "6 passed, 1 failed, 2 skipped"),
        ("exit 0", GOOD, f"{NONE}; exit 2", "3 passed, 1 failed, 1 skipped"),
        ("exit 0", NONE, GOOD, "3 passed, 1 failed, 1 skipped"),
        ("exit 0", "kill -9 $$", "exit 2", "0 passed, 2 failed, 0 skipped"),
        ("exit 0", "exit 0", GOOD, "3 passed, 1 failed, 1 skipped"),
    ],
    ids=["good", "test", "slow", "book", "after", "none", "none, and ok", "killed", "silent"],
)
def test_the_last_line_of_ci_is_the_sum(
    tmp_path: Path, book: str, test: str, slow: str, last: str
) -> None:
    script, fakes = tmp_path / ".ci/run", tmp_path / "fakes"
    script.parent.mkdir()
    script.write_bytes((ROOT / ".ci/run").read_bytes())
    fakes.mkdir()
    answers = f"case $1 in book) {book};; test) {test};; slow) {slow};; esac"
    for name in ("make", "chromium", "chromedriver", "bwrap"):
        (fakes / name).write_text(f"#!/bin/sh\n{answers}\n")
        (fakes / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{fakes}:{os.environ['PATH']}"}
    run = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines()[-1] == last, run.stdout + run.stderr
    assert (run.returncode == 0) == (" 0 failed" in last)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1\nexit 1\n', "got Python 3.8.1"),
        ('#!/bin/sh\ncase "$2" in *venv*) exit 1;; esac\nexit 0\n', "expected the venv module"),
        (None, "got no such command"),
    ],
    ids=["old", "no-venv", "none"],
)
def test_a_missing_tool_is_one_line(tmp_path: Path, script: str | None, message: str) -> None:
    python = tmp_path / "python3"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    run = subprocess.run(
        ["make", "book", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True
    )
    lines = [line for line in run.stderr.splitlines() if not line.startswith("make")]
    assert run.returncode and len(lines) == 1 and message in lines[0], run.stderr
    assert not (tmp_path / ".venv").exists()


def test_workflow_pins_its_actions_and_asks_for_little() -> None:
    text = (ROOT / ".github/workflows/book.yml").read_text()
    uses = re.findall(r"uses: (\S+)", text)
    assert uses and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", use) for use in uses), uses
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}


def test_vendored_files_are_listed_with_their_licences() -> None:
    folder = ROOT / "book/_static/vendor"
    text = (folder / "README.md").read_text()
    scripts = [str(path.relative_to(folder)) for path in folder.rglob("*.js")]
    assert scripts and all(f"`{name}`" in text for name in scripts), scripts


def test_references_are_whole() -> None:
    text = (ROOT / "book/references.bib").read_text()
    entries = re.split(r"^@", text, flags=re.MULTILINE)[1:]
    for entry in entries:
        key = re.match(r"\w+\{([\w]+),", entry)[1]
        assert re.search(r"^  title = \{.+\}", entry, re.MULTILINE), f"{key}: no title"
        assert re.search(r"^  (author|editor) = \{.+\}", entry, re.MULTILINE), f"{key}: no author"
        assert re.search(r"^  year = \{(19|20)\d\d\}", entry, re.MULTILINE), f"{key}: no year"


def test_code_and_chapters_are_in_one_style() -> None:
    import sys

    ruff = [str(Path(sys.executable).with_name("ruff"))]
    for arguments in (["check", "."], ["format", "--check", "."]):
        run = subprocess.run(
            [*ruff, *arguments, "--no-cache"], cwd=ROOT, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]

"""The chapters: their shape, their committed outputs, and that they run.

Each rule is a function that returns what is wrong with a notebook, so that the tests at the end can
break a sound chapter in every way and see the rule object.
"""

from __future__ import annotations

import ast
import base64
import copy
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import notebooks as tool  # book/tools/notebooks.py
import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("[0-9][0-9]_*.ipynb"))
FORBIDDEN_TAGS = {
    "nbval-skip",
    "nbval-ignore-output",
    "skip-execution",
    "raises-exception",
    "remove-cell",
    "remove-output",
}
MAX_BYTES = 1_500_000
MAX_SETUP_LINES = 12
CELL_SECONDS = 300
CHAPTER_SECONDS = 900
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MYST = {
    "role": re.compile(r"\{[a-z][\w:+-]*\}`"),
    "directive": re.compile(r"^\s*(`{3,}|~{3,}|:{3,})\s*\{", re.MULTILINE),
    "colon fence": re.compile(r"^\s*:{3,}", re.MULTILINE),
    "target": re.compile(r"^\([\w-]+\)=\s*$", re.MULTILINE),
    "comment": re.compile(r"^%", re.MULTILINE),
    "HTML": re.compile(r"</?[a-zA-Z][^>\n]*>|<!--"),
}
COLAB_GUARD = 'if "google.colab" in sys.modules:'
COLAB_INSTALL = re.compile(r'%pip install -q "semigen-lib @ git\+(\S+?)@v(\d+\.\d+\.\d+)"')
OWN_NAMES = (  # what is bound inside stays inside
    ast.FunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
TIME_LINE = re.compile(r"^\*\*Time\*\* ([\d.]+) minutes on \d+ CPU cores\.$", re.MULTILINE)


def each_chapter() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def tagged(nb: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if tag in tags(cell)]


def code_cells(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def parsed(source: str) -> ast.Module:
    """Parse a cell, IPython's line magics replaced by ``pass``."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))


def without_code(text: str) -> str:
    """Take code spans, fences, links and formulas out of Markdown: what is left is prose."""
    text = re.sub(r"^```[a-z]*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<!\})`[^`\n]*`", "", text)
    return re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$|<https?://[^>]*>", "", text, flags=re.DOTALL)


# ------------------------------------------------------------------------------- the rules


def rule_title(nb: nbformat.NotebookNode) -> list[str]:
    first = nb.cells[0]
    problems = []
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        problems.append("the first cell is not a Markdown title")
    if "?" not in first.source:
        problems.append("the first cell asks no question")
    if len(TIME_LINE.findall(first.source)) != 1:
        problems.append("the first cell lacks the line '**Time** N.N minutes on N CPU cores.'")
    levels = [
        len(match)
        for cell in nb.cells
        if cell.cell_type == "markdown"
        for match in re.findall(r"^(#+) ", without_code(cell.source), re.MULTILINE)
    ]
    if levels.count(1) != 1:
        problems.append(f"{levels.count(1)} headings of the first level, expected one")
    if any(after > before + 1 for before, after in itertools.pairwise(levels)):
        problems.append("a heading level is skipped")
    return problems


def rule_parameters(nb: nbformat.NotebookNode) -> list[str]:
    cells = tagged(nb, "parameters")
    if len(cells) != 1:
        return [f"expected one cell tagged parameters, got {len(cells)}"]
    problems = []
    names = set()
    for node in parsed(cells[0].source).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            problems.append(f"parameters: not an annotated literal: {ast.unparse(node)}")
            continue
        names.add(node.target.id)
        try:
            value = ast.literal_eval(node.value)
        except (TypeError, ValueError):
            problems.append(f"parameters: not a literal: {ast.unparse(node)}")
            continue
        kind = ast.unparse(node.annotation).split("[")[0].split(" ")[0]
        if kind != type(value).__name__:
            problems.append(f"parameters: {ast.unparse(node)}: a {type(value).__name__}")
    code = [line for line in cells[0].source.splitlines() if re.match(r"\w+\s*:", line)]
    problems += [f"parameters: no unit in a comment: {line}" for line in code if "#" not in line]
    if "seed" not in names:
        problems.append("parameters: no seed")
    after = code_cells(nb)[code_cells(nb).index(cells[0]) + 1 :]
    used, stored = set(), set()
    for cell in after:
        nodes = list(ast.walk(parsed(cell.source)))
        # A field of a dataclass is declared, not assigned.
        declared = {n.target for n in nodes if isinstance(n, ast.AnnAssign) and n.value is None}
        for node in nodes:
            if isinstance(node, ast.Name) and node not in declared:
                (used if isinstance(node.ctx, ast.Load) else stored).add(node.id)
    problems += [f"parameters: {name} is never used" for name in sorted(names - used)]
    problems += [f"parameters: {name} is assigned again" for name in sorted(names & stored)]
    return problems


def rule_setup(nb: nbformat.NotebookNode) -> list[str]:
    cells = tagged(nb, "setup")
    if len(cells) != 1:
        return [f"expected one cell tagged setup, got {len(cells)}"]
    problems = []
    codes = code_cells(nb)
    if codes[:2] != tagged(nb, "parameters") + cells:
        problems.append("the first two code cells are not parameters and setup")
    lines = [line for line in cells[0].source.splitlines() if line.strip()]
    if len(lines) > MAX_SETUP_LINES:
        problems.append(f"setup: {len(lines)} lines, at most {MAX_SETUP_LINES}")
    if COLAB_GUARD not in cells[0].source or not COLAB_INSTALL.search(cells[0].source):
        problems.append("setup: no guarded installation for Colab")
    return problems


def rule_code(nb: nbformat.NotebookNode) -> list[str]:
    problems = []
    for cell in code_cells(nb):
        magics = re.findall(r"^\s*[%!].*$", cell.source, re.MULTILINE)
        if any(not COLAB_INSTALL.search(line) for line in magics):
            problems.append(f"{cell.id}: a magic or a shell command: {magics}")
        for node in ast.walk(parsed(cell.source)):
            if isinstance(node, ast.Assert) and node.msg is None:
                problems.append(f"{cell.id}: an assert without a message: {ast.unparse(node)}")
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("semigen_lib")]
                problems += [f"{cell.id}: import {name}: import names from it" for name in names]
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("semigen_lib"):
                problems += [f"{cell.id}: {text}" for text in private_names(node)]
    return problems


def private_names(node: ast.ImportFrom) -> list[str]:
    """Return what an import takes from the library that the library does not offer."""
    module = importlib.import_module(node.module)
    offered = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
    return [
        f"from {node.module} import {alias.name}: not a public name"
        for alias in node.names
        if alias.name not in offered
    ]


def rule_checks(nb: nbformat.NotebookNode) -> list[str]:
    checks = [cell for cell in tagged(nb, "check") if "exercise-check" not in tags(cell)]
    problems = [] if len(checks) >= 2 else [f"{len(checks)} check cells, expected two or more"]
    for cell in tagged(nb, "check"):
        if cell.cell_type != "code" or not re.search(r"\bassert\b|\bassert_close\b", cell.source):
            problems.append(f"{cell.id}: a check that asserts nothing")
    return problems


def rule_exercises(nb: nbformat.NotebookNode) -> list[str]:
    starts = [i for i, cell in enumerate(nb.cells) if "exercise" in tags(cell)]
    problems = [] if 2 <= len(starts) <= 4 else [f"{len(starts)} exercises, expected 2 to 4"]
    for number, start in enumerate(starts, start=1):
        cell = nb.cells[start]
        if cell.cell_type != "markdown" or not cell.source.startswith(f"### Exercise {number}"):
            problems.append(f"{cell.id}: does not start with '### Exercise {number}'")
        parts = [set(tags(cell)) for cell in nb.cells[start + 1 : start + 4]]
        wanted = [{"stub"}, {"solution", "hide-cell"}, {"check", "exercise-check"}]
        kinds = {cell.cell_type for cell in nb.cells[start + 1 : start + 4]}
        ordered = len(parts) == 3 and all(w <= p for w, p in zip(wanted, parts, strict=True))
        if kinds != {"code"} or not ordered:
            problems.append(f"{cell.id}: not followed by stub, hidden solution and check")
    if len(tagged(nb, "solution")) != len(starts):
        problems.append("not one solution for each exercise")
    return problems


def rule_answers(nb: nbformat.NotebookNode) -> list[str]:
    """What the student was to fill in, the solution must leave alone, or no check ever sees it."""
    problems = []
    for stub, solution in itertools.pairwise(nb.cells):
        if "stub" in tags(stub) and "solution" in tags(solution):
            taken = blanks(parsed(stub.source)) & set(bound_names(parsed(solution.source)))
            problems += [f"{solution.id}: overwrites the answer {name}" for name in sorted(taken)]
    return problems


def blanks(stub: ast.Module) -> set[str]:
    """Return the names of a stub whose value or body holds the dots that a student replaces."""
    names = set()
    for node in stub.body:
        is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        parts = node.body if is_definition else [getattr(node, "value", None) or node]
        inside = [inner for part in parts for inner in ast.walk(part)]
        if any(isinstance(inner, ast.Constant) and inner.value is ... for inner in inside):
            names |= set(bound_names(node))
    return names


def bound_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that code binds or changes where it stands, and not inside a function."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    if isinstance(node, OWN_NAMES):
        return
    if isinstance(node, ast.alias):
        yield (node.asname or node.name).split(".")[0]
    if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
        root = node
        while isinstance(root, (ast.Subscript, ast.Attribute)):
            root = root.value  # mine["a"] = 1 changes mine
        if isinstance(root, ast.Name):
            yield root.id
    for child in ast.iter_child_nodes(node):
        yield from bound_names(child)


def rule_markdown(nb: nbformat.NotebookNode) -> list[str]:
    problems = []
    for cell in nb.cells:
        if cell.cell_type != "markdown":
            continue
        for name, pattern in MYST.items():
            text = cell.source if name == "directive" else without_code(cell.source)
            if pattern.search(text):
                problems.append(f"{cell.id}: {name}: {pattern.search(text).group()!r}")
    last = [cell.source for cell in nb.cells if cell.cell_type == "markdown"]
    for heading in ("## We have seen", "## References"):
        if not any(re.search(f"^{heading}$", source, re.MULTILINE) for source in last):
            problems.append(f"no section {heading!r}")
    return problems


def rule_pictures(nb: nbformat.NotebookNode) -> list[str]:
    problems = []
    for cell in code_cells(nb):
        shown = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if shown and len(alt) < 25:
            problems.append(f"{cell.id}: alt text of {len(alt)} characters, expected 25 or more")
        if len(shown) > 1:
            problems.append(f"{cell.id}: {len(shown)} figures with one alt text")
        for output in shown:
            data = base64.b64decode(output["data"]["image/png"])
            if not data.startswith(b"\x89PNG"):
                problems.append(f"{cell.id}: the figure is not a PNG")
    return problems


def rule_widgets(nb: nbformat.NotebookNode) -> list[str]:
    if not tagged(nb, "widget"):
        return ["no cell tagged widget"]
    problems = []
    state = nb.metadata.get("widgets", {}).get(tool.WIDGET_STATE, {}).get("state", {})
    for position, cell in enumerate(nb.cells):
        if "widget" not in tags(cell):
            continue
        views = [o["data"][WIDGET_VIEW] for o in cell.outputs if WIDGET_VIEW in o.get("data", {})]
        if not views:
            problems.append(f"{cell.id}: tagged widget, but shows none")
        if any(view["model_id"] not in state for view in views):
            problems.append(f"{cell.id}: the widget's state was not saved")
        beside = nb.cells[max(position - 3, 0) : position + 4]
        if not any(
            "image/png" in output.get("data", {})
            for near in beside
            if near.cell_type == "code"
            for output in near.outputs
        ):
            problems.append(f"{cell.id}: no static figure beside the widget")
    return problems


def rule_outputs(nb: nbformat.NotebookNode) -> list[str]:
    problems = []
    counts = [cell.execution_count for cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        problems.append(f"not executed from the first cell to the last: {counts}")
    for cell in code_cells(nb):
        if tags(cell) & FORBIDDEN_TAGS or "NBVAL_" in cell.source:
            problems.append(f"{cell.id}: is not checked: {sorted(tags(cell) & FORBIDDEN_TAGS)}")
        if "nbval-check-output" in tags(cell) and not (cell.outputs and cell.execution_count):
            problems.append(f"{cell.id}: its checked output was stripped")
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                problems.append(f"{cell.id}: an error or warning in its output")
            data = {k: v for k, v in output.get("data", {}).items() if k.startswith("text/")}
            text = json.dumps(data) + output.get("text", "")
            if re.search(r" at 0x[0-9a-f]{6,}|/home/|/root/|/tmp/", text):
                problems.append(f"{cell.id}: an address or a path of one machine in its output")
            extra = set(output.get("data", {})) - {"text/plain", "image/png", WIDGET_VIEW}
            if extra:
                problems.append(f"{cell.id}: output other than text, PNG and widget: {extra}")
    return problems


RULES: list[Callable[[nbformat.NotebookNode], list[str]]] = [
    rule_title,
    rule_parameters,
    rule_setup,
    rule_code,
    rule_checks,
    rule_exercises,
    rule_answers,
    rule_markdown,
    rule_pictures,
    rule_widgets,
    rule_outputs,
]


# ------------------------------------------------------------------- the chapters obey them


def test_there_are_chapters() -> None:
    assert CHAPTERS, "no chapter found: every test below would pass"


@each_chapter()
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_chapter(path: Path, rule: Callable[[nbformat.NotebookNode], list[str]]) -> None:
    problems = rule(nbformat.read(path, as_version=4))
    assert not problems, f"{path.name}:\n" + "\n".join(problems)


@each_chapter()
def test_chapter_is_normalised_and_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tool.normalised_text(path) == text, "run: python book/tools/notebooks.py normalise"
    assert path.stat().st_size <= MAX_BYTES, f"{path.stat().st_size} bytes, at most {MAX_BYTES}"
    nbformat.validate(nbformat.from_dict(json.loads(text)))


@each_chapter()
def test_minutes_are_the_measured_ones(path: Path) -> None:
    row = re.search(rf"\({path.name}\) \| ([\d.]+) \|", (BOOK / "running.md").read_text())
    assert row, f"no row in book/running.md: make execute CHAPTER={path.name[:2]}"
    stated = TIME_LINE.search(nbformat.read(path, as_version=4).cells[0].source)
    assert stated and stated.group(1) == row.group(1), "the title and running.md disagree"


@each_chapter()
def test_colab_installs_this_repository(path: Path) -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "semigen_lib/__init__.py").read_text())
    repository = re.search(r'Repository = "(.+)"', (ROOT / "pyproject.toml").read_text())
    setup = tagged(nbformat.read(path, as_version=4), "setup")[0].source
    assert COLAB_INSTALL.search(setup).groups() == (repository.group(1), version.group(1))


@pytest.mark.parametrize(
    "path", [*CHAPTERS, *sorted((BOOK / "assignments").glob("*.ipynb"))], ids=lambda path: path.stem
)
def test_one_version_is_named(path: Path) -> None:
    """Also where results are fetched from, and in the guards of assignments."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "semigen_lib/__init__.py").read_text())[1]
    named = set(re.findall(r"/many-images[@/]v(\d+\.\d+\.\d+)", path.read_text()))
    assert named == {version}


# --------------------------------------------------------------------------- and they run


@each_chapter()
def test_nbval(path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q"]
    # While a cell runs, nbval leaves its messages in a queue of 1,000. Progress bars filled it on a
    # slow machine, and the message that the cell was done was lost.
    more = {"TQDM_MININTERVAL": "5"}
    if "PYTEST_XDIST_WORKER" in os.environ:  # another chapter runs on the other core
        more["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--nbval-cell-timeout={CELL_SECONDS}", str(path)],
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=CHAPTER_SECONDS,
    )
    cells = len(code_cells(nbformat.read(path, as_version=4)))
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(rf"\b{cells} passed", run.stdout), f"not {cells} cells: {run.stdout[-500:]}"


def changed(value: object) -> object:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return 2 * value or type(value)(1)  # a multiple stays divisible by the number of classes
    if isinstance(value, (list, tuple)):
        return [changed(item) for item in value]
    return f"{value}-changed"


@each_chapter()
def test_papermill_changes_the_parameters(path: Path, tmp_path: Path) -> None:
    """Inject another value for each parameter; after the setup cell every one is still there.

    What comes after setup never assigns to a parameter again (``rule_parameters``).
    """
    import papermill

    nb = nbformat.read(path, as_version=4)
    cells = tagged(nb, "parameters") + tagged(nb, "setup")
    values = {
        node.target.id: changed(ast.literal_eval(node.value))
        for node in parsed(cells[0].source).body
    }
    report = f"import json; print(json.dumps({{k: globals()[k] for k in {sorted(values)}}}))"
    nb.cells = [*cells, nbformat.v4.new_code_cell(report)]
    nbformat.write(nb, tmp_path / "short.ipynb")
    papermill.execute_notebook(
        tmp_path / "short.ipynb",
        tmp_path / "out.ipynb",
        parameters=values,
        cwd=str(BOOK),
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=CELL_SECONDS,
    )
    last = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1]
    assert json.loads(last.outputs[-1].text) == json.loads(json.dumps(values))


# -------------------------------------------------------------- the checks are able to fail


def sound() -> nbformat.NotebookNode:
    """Return a chapter that every rule accepts."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

    png = base64.b64encode(b"\x89PNG").decode()
    view = {WIDGET_VIEW: {"model_id": "1" * 32}, "text/plain": "IntSlider()"}
    guard = f'{COLAB_GUARD}\n    %pip install -q "semigen-lib @ git+https://example.org/a@v1.2.3"'

    def cell(source: str, *names: str, outputs: list | None = None, alt: str = "") -> object:
        made = new_code_cell(source, outputs=outputs or [])
        made.metadata["tags"] = list(names)
        if alt:
            made.metadata["mystnb"] = {"image": {"alt": alt}}
        return made

    cells = [
        new_markdown_cell("# Title\n\nWhy?\n\n**Time** 0.1 minutes on 2 CPU cores."),
        cell("seed: int = 0  # of all", "parameters"),
        cell(f"import sys\n{guard}\nfrom semigen_lib.runtime import pick_device", "setup"),
        cell(
            "draw(seed)",
            outputs=[new_output("display_data", {"image/png": png})],
            alt="A line that rises from left to right",
        ),
        cell("explore()", "widget", outputs=[new_output("display_data", view)]),
        cell('assert seed >= 0, "negative"', "check"),
        cell('assert seed < 9, "large"', "check"),
    ]
    for number in (1, 2):
        exercise = new_markdown_cell(f"### Exercise {number}")
        exercise.metadata["tags"] = ["exercise"]
        # What is given may be bound again, and inside a function names are its own.
        stub = 'given = 2\nmine, too = ..., {"a": ...}\n\ndef own():\n    return ...'
        solution = "given, a = 3, 1\n\ndef own_solution():\n    mine = 1\n    return mine"
        cells += [exercise, cell(stub, "stub"), cell(solution, "solution", "hide-cell")]
        cells.append(cell('assert a == 1, "wrong"', "check", "exercise-check"))
    cells.insert(7, new_markdown_cell("## Exercises\n\nA set `{a}` and $\\{x\\}$."))
    cells.append(new_markdown_cell("## We have seen\n\nIt.\n\n## References\n\nNone."))
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata["widgets"] = {tool.WIDGET_STATE: {"state": {"1" * 32: {}}}}
    for count, code in enumerate(code_cells(nb), start=1):
        code.execution_count = count
    return nb


def source(position: int, text: str) -> Callable[[nbformat.NotebookNode], None]:
    return lambda nb: nb.cells[position].update(source=text)


def append(position: int, text: str) -> Callable[[nbformat.NotebookNode], None]:
    return lambda nb: nb.cells[position].update(source=nb.cells[position].source + "\n" + text)


def tag(position: int, *names: str) -> Callable[[nbformat.NotebookNode], None]:
    return lambda nb: nb.cells[position].metadata.update(tags=list(names))


def stream(name: str, text: str) -> Callable[[nbformat.NotebookNode], None]:
    output = nbformat.v4.new_output("stream", name=name, text=text)
    return lambda nb: nb.cells[3].outputs.append(output)


BREAKS = [
    (rule_title, source(0, "Title?\n\n**Time** 0.1 minutes on 2 CPU cores.")),
    (rule_title, source(0, "# Title\n\nWhy.\n\n**Time** 0.1 minutes on 2 CPU cores.")),
    (rule_title, source(0, "# Title?")),
    (rule_title, append(0, "### Deep")),
    (rule_title, append(-1, "# Again")),
    (rule_parameters, tag(1)),
    (rule_parameters, source(1, "seed = 0  # of all")),
    (rule_parameters, source(1, "seed: int = 1 + int(2)  # of all")),
    (rule_parameters, source(1, "seed: int = 0.0  # of all")),
    (rule_parameters, source(1, "seed: int = 0")),
    (rule_parameters, source(1, "other: int = 0  # of all")),
    (rule_parameters, append(1, "unused: int = 0  # of all")),
    (rule_parameters, append(3, "seed = 3")),
    (rule_setup, tag(2)),
    (rule_setup, append(2, "pass\n" * 12)),
    (rule_setup, lambda nb: nb.cells[2].update(source="import sys")),
    (rule_setup, lambda nb: nb.cells.insert(1, nb.cells[5])),
    (rule_code, append(3, "!ls")),
    (rule_code, append(3, "%matplotlib inline")),
    (rule_code, append(3, "assert True")),
    (rule_code, append(3, "import semigen_lib.losses")),
    (rule_code, append(3, "from semigen_lib.runtime import _private")),
    (rule_code, append(3, "from semigen_lib.runtime import *")),
    (rule_checks, tag(5)),
    (rule_checks, source(5, "print(seed)")),
    (rule_exercises, tag(8)),
    (rule_exercises, tag(9)),
    (rule_exercises, tag(10, "solution")),
    (rule_exercises, tag(11, "check")),
    (rule_exercises, source(8, "### Task")),
    (rule_answers, append(10, "mine = a")),
    (rule_answers, append(10, "a, mine = 1, a")),
    (rule_answers, append(10, "mine: int = a")),
    (rule_answers, append(10, "def own():\n    return a")),
    (rule_answers, append(10, "if a:\n    for mine in range(3):\n        print(a)")),
    (rule_answers, append(10, "from math import pi as mine")),
    (rule_answers, append(10, 'too["a"] = a')),
    (rule_answers, append(9, "a = [1, ...]")),
    (rule_markdown, append(0, "See {ref}`there`.")),
    (rule_markdown, append(0, "```{note}\nA note.\n```")),
    (rule_markdown, append(0, ":::{note}\nA note.\n:::")),
    (rule_markdown, append(0, "(here)=")),
    (rule_markdown, append(0, "<b>bold</b>")),
    (rule_markdown, source(-1, "## References")),
    (rule_pictures, lambda nb: nb.cells[3].metadata.update(mystnb={"image": {"alt": "short"}})),
    (rule_pictures, lambda nb: nb.cells[3].outputs.append(nb.cells[3].outputs[0])),
    (rule_widgets, tag(4)),
    (rule_widgets, lambda nb: nb.cells[4].update(outputs=[])),
    (rule_widgets, lambda nb: nb.metadata.pop("widgets")),
    (rule_widgets, lambda nb: nb.cells[3].update(outputs=[])),
    (rule_outputs, lambda nb: nb.cells[3].update(execution_count=None)),
    (rule_outputs, tag(3, "nbval-skip")),
    (rule_outputs, append(3, "# NBVAL_SKIP")),
    (rule_outputs, tag(5, "check", "nbval-check-output")),
    (rule_outputs, stream("stderr", "UserWarning: careful")),
    (rule_outputs, stream("stdout", "<Thing at 0x7f0011223344>")),
    (rule_outputs, stream("stdout", "/home/somebody/file")),
    (rule_outputs, lambda nb: nb.cells[3].outputs[0]["data"].update({"text/html": "<b>"})),
]


def test_a_sound_chapter_passes() -> None:
    assert [problem for rule in RULES for problem in rule(sound())] == []


@pytest.mark.parametrize(("rule", "damage"), BREAKS, ids=lambda value: value.__name__)
def test_a_broken_chapter_fails(rule: Callable, damage: Callable) -> None:
    nb = copy.deepcopy(sound())
    damage(nb)
    assert rule(nb), "the rule accepts a chapter that breaks it"


def test_every_rule_is_broken_once() -> None:
    assert {rule for rule, _ in BREAKS} == set(RULES)


def test_nbval_sees_a_failing_cell(tmp_path: Path) -> None:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2, 'no'")])
    nb.cells[0].execution_count = 1
    nb.metadata = nbformat.from_dict(tool.METADATA)
    nbformat.write(nb, tmp_path / "failing.ipynb")
    with pytest.raises(AssertionError, match="1 failed"):
        test_nbval(tmp_path / "failing.ipynb")


# -------------------------------------------------------------------------------- the tool


def executed(tmp_path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(text, id=f"c{i}") for i, text in enumerate(sources)]
    path = tmp_path / "07_small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)\n", "did not run"),
        ("import os; os._exit(3)", "died"),
    ],
    ids=["raises", "leaves", "dies"],
)
def test_a_failing_chapter_stays_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], last: str, message: str
) -> None:
    path = executed(tmp_path, "print(1)", last, "print(2)")
    before = path.read_bytes()
    assert tool.main(["execute", "--no-table", str(path)]) == 1
    assert message in capfd.readouterr().err
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_executing_twice_gives_the_same_file(tmp_path: Path) -> None:
    path = executed(
        tmp_path,
        "import sys\nfrom tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    print(_)",
        "import ipywidgets\nslider, other = ipywidgets.IntSlider(), ipywidgets.IntSlider()\n"
        "link = ipywidgets.jslink((slider, 'value'), (other, 'value'))\n"
        "ipywidgets.VBox([slider, other])",
    )
    texts = []
    for _ in range(2):
        assert tool.main(["execute", "--no-table", str(path)]) == 0
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    assert tool.main(["check", str(path)]) == 0
    nb = nbformat.read(path, as_version=4)
    assert [output.output_type for output in nb.cells[0].outputs] == ["stream"]
    models = nb.metadata.widgets[tool.WIDGET_STATE]["state"]
    names = sorted(model["model_name"] for model in models.values())
    assert names.count("LinkModel") == 1 and names.count("IntSliderModel") == 2
    assert not any("HBox" in name for name in names), "the progress bar's widgets are still there"


def test_check_names_what_is_not_normalised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = executed(tmp_path, "print(1)")
    assert tool.main(["check", str(path)]) == 1
    assert "not normalised" in capsys.readouterr().out
    assert tool.main(["normalise", str(path)]) == 0
    assert tool.main(["check", str(path)]) == 0


def test_table_keeps_rows_that_were_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, title in ((1, "One"), (2, "Two")):
        cell = nbformat.v4.new_markdown_cell(f"# {title}")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"0{number}_a.ipynb")
    running = tmp_path / "running.md"
    running.write_text(f"before\n{tool.TABLE_BEGIN}\n{tool.TABLE_END}\nafter\n")
    monkeypatch.setattr(tool, "BOOK", tmp_path)
    monkeypatch.setattr(tool, "RUNNING", running)
    tool.update_table({"01_a.ipynb": (1.26, 512.0), "02_a.ipynb": (0.5, 100.0)})
    tool.update_table({"02_a.ipynb": (0.7, 104.0)})
    text = running.read_text()
    assert "| [One](01_a.ipynb) | 1.3 | 510 |\n| [Two](02_a.ipynb) | 0.7 | 100 |\n" in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")


def test_an_unknown_chapter_is_one_line() -> None:
    with pytest.raises(SystemExit, match="expected the number or path of a chapter"):
        tool.chapters(["99"])

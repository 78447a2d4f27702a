"""The house rules that a program can hold: who imports whom, what nobody does, what is told."""

import ast
import functools
import inspect
import os
import re
import subprocess
import sys
import tokenize
from importlib import import_module
from pathlib import Path

import pytest

from semigen_lib.methods import METHODS
from semigen_lib.methods.method import MethodConfig

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "semigen_lib"
FILES = sorted(LIBRARY.rglob("*.py"))
NAMES = {
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}
every_module = pytest.mark.parametrize("name", NAMES)


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(NAMES[name].read_text())


def imports(node: ast.AST) -> set[str]:
    """Every module that is imported anywhere below a node, with the names taken from it."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            found |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, "relative imports hide the arrows"
            found.add(part.module)
            found |= {f"{part.module}.{alias.name}" for alias in part.names}
    return found


def inner_imports(name: str) -> set[str]:
    """Modules of the package that a module imports, without the package's name."""
    found = {i.removeprefix("semigen_lib.") for i in imports(tree(name)) if "semigen_lib" in i}
    return found & set(NAMES)


# ---- the import graph ----

A_METHOD = {"augment", "data", "graph", "losses", "methods.method", "models"}
ARROWS = {
    "__init__": set(),
    "__main__": {"cli"},
    "runtime": set(),
    "distributed": set(),
    "sources": set(),
    "streaming": {"sources"},
    "data": {"sources", "streaming"},
    "augment": set(),
    "graph": set(),
    "models": set(),
    "losses": set(),
    "plotting": set(),
    "measures": set(),
    "jobs": set(),
    "checkpoint": {"runtime"},
    "judge": {"checkpoint", "sources"},
    "methods.method": {"data", "models"},
    "methods": A_METHOD | {"sources"} | {f"methods.{name}" for name in METHODS},
    **{f"methods.{name}": A_METHOD for name in METHODS},
    # Their names come from there.
    **{f"methods.{name}": A_METHOD | {"methods.propagate"} for name in ("cgan", "dpt")},
    "training": {"checkpoint", "data", "distributed", "methods.method", "runtime", "sources"},
    "evaluation": {"data", "losses", "methods.method", "runtime"},
    # These import, and nobody imports them.
    "diagnostics": {"data", "evaluation", "methods.method", "runtime", "training"},
    "samples": {"data", "evaluation", "judge", "measures", "methods", "runtime", "sources",
                "training"},
    "benchmark": {"checkpoint", "data", "evaluation", "jobs", "methods", "methods.method",
                  "runtime", "training"},
    "course": {"checkpoint", "data", "methods", "methods.method", "sources"},
    "grading": set(),
    "grading.watch": set(),
    "grading.seccomp": {"grading.watch"},
    "grading.sandbox": {"grading.seccomp", "grading.watch"},
    "grading.doctor": {"grading.sandbox", "grading.watch"},
    "grading.drivers": set(),
    "grading.worker": {"checkpoint", "grading.drivers"},
    "grading.tasks": {"grading.drivers"},
    "grading.assignment": {"checkpoint", "grading.drivers", "grading.tasks"},
    "grading.evidence": {"checkpoint", "data", "evaluation", "judge", "measures", "methods",
                         "methods.method", "samples", "grading.drivers", "grading.tasks"},
    "grading.sanitise": {"grading.assignment"},
    "grading.intake": {"grading.assignment", "grading.sanitise"},
    "grading.results": {"checkpoint", "grading.intake"},
    "grading.report": {"checkpoint", "grading.intake", "grading.results", "grading.sanitise"},
    "grading.exchange": {"grading.drivers", "grading.sandbox", "grading.tasks"},
    "grading.gather": {"course", "data", "grading.assignment", "grading.drivers",
                       "grading.exchange", "grading.sandbox", "grading.sanitise", "grading.tasks"},
    "grading.mark": {"checkpoint", "grading.assignment", "grading.evidence", "grading.gather",
                     "grading.intake", "grading.report", "grading.results", "grading.sandbox",
                     "grading.sanitise", "grading.tasks"},
    "grading.grade": {"jobs", "grading.assignment", "grading.intake", "grading.mark",
                      "grading.report", "grading.results", "grading.sandbox"},
    "console": {"distributed", "grading.sandbox", "jobs", "runtime", "training"},
    "cli_benchmark": {"benchmark", "checkpoint", "console", "methods", "runtime", "training"},
    "cli_course": {"checkpoint", "console", "grading.assignment", "grading.doctor",
                   "grading.grade", "grading.results", "grading.sandbox"},
    "cli": {"checkpoint", "cli_benchmark", "cli_course", "console", "data", "distributed",
            "evaluation", "methods", "methods.method", "models", "plotting", "runtime",
            "samples", "training"},
}  # fmt: skip


@every_module
def test_imports_point_one_way(name) -> None:
    assert name in ARROWS, "a new module needs its arrows in this table"
    assert inner_imports(name) <= ARROWS[name]


def test_the_arrows_make_no_circle() -> None:
    left = {name: set(arrows) for name, arrows in ARROWS.items()}
    while left:
        free = {name for name, arrows in left.items() if not arrows & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: arrows for name, arrows in left.items() if name not in free}


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("methods.")])
def test_methods_know_of_data_only_what_a_batch_is(name) -> None:
    taken = {i for i in imports(tree(name)) if i.startswith("semigen_lib.data.")}
    assert taken <= {f"semigen_lib.data.{name}" for name in ("UNLABELED", "Batch", "to_float")}


def test_a_method_is_one_file_and_one_line_of_the_table() -> None:
    files = {path.stem for path in (LIBRARY / "methods").glob("*.py")}
    assert files - {"__init__", "method"} == set(METHODS)


def outside_functions(name: str) -> set[str]:
    """What importing a module imports."""

    class Top(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    return imports(Top().visit(ast.parse(NAMES[name].read_text())))


@every_module
def test_heavy_imports_are_late_and_in_one_place(name) -> None:
    everywhere = {module.partition(".")[0] for module in imports(tree(name))}
    assert "matplotlib" not in everywhere or name == "plotting"
    late = {"torchvision", "ipywidgets", "IPython", "PIL", "joblib", "dask", "distributed",
            "nbgrader", "papermill"}  # fmt: skip
    assert not everywhere & {"joblib", "dask", "distributed"} or name == "jobs"
    assert "nbgrader" not in everywhere or name == "grading.assignment"
    assert "papermill" not in everywhere or name == "grading.worker"
    assert not {module.partition(".")[0] for module in outside_functions(name)} & late


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import semigen_lib", ["torch", "numpy", "matplotlib", "torchvision", "ipywidgets"]),
        ("import semigen_lib.cli", ["matplotlib", "torchvision", "ipywidgets", "IPython"]),
        ("import semigen_lib.plotting", ["torchvision", "ipywidgets", "IPython"]),
    ],
)
def test_imports_cost_only_what_they_must(statement, absent) -> None:
    code = f"import sys; {statement}; print([m for m in {absent} if m in sys.modules])"
    line = [sys.executable, "-c", code]
    result = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr


@pytest.mark.parametrize(("policy", "wanted"), [(None, "passive 10000"), ("active", "active None")])
def test_waiting_threads_sleep_soon_unless_somebody_says_otherwise(policy, wanted) -> None:
    """Spinning made a training step eight times slower beside one busy neighbour."""
    get = "os.environ.get"
    code = f"import os, semigen_lib; print({get}('OMP_WAIT_POLICY'), {get}('GOMP_SPINCOUNT'))"
    line = [sys.executable, "-c", code]
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.strip() == wanted


# ---- what nobody does ----

FORBIDDEN_CALLS = {"print", "eval", "exec", "compile", "__import__", "breakpoint", "input"}
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "pdb"}
# Notebooks are source: an instructor's is run here, a student's in the sandbox only.
RUNS_SOURCE = {"grading.assignment", "grading.tasks", "grading.worker"}
WORKERS_ONLY = {"joblib", "joblib.Parallel", "joblib.delayed", "joblib.parallel_config"}


@every_module
def test_nobody_prints_evaluates_or_unpickles(name) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            allowed = {"exec", "compile"} if name in RUNS_SOURCE else set()
            assert called not in FORBIDDEN_CALLS - allowed, f"line {node.lineno}: {called}"
            assert called not in ("torch.load", "torch.save", "torch.hub.load"), node.lineno
            if called in ("np.load", "numpy.load"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("allow_pickle") == "False", f"line {node.lineno}: np.load"
    used = imports(tree(name)) - WORKERS_ONLY  # joblib runs processes; what it pickles to disk, no
    assert not {module.partition(".")[0] for module in used} & FORBIDDEN_MODULES


@every_module
def test_no_star_imports_no_kwargs_no_bare_excepts(name) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "star import"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            assert node.args.kwarg is None, f"line {node.lineno}: **{node.args.kwarg.arg}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_no_path_of_somebodys_machine(path) -> None:
    text = re.sub("^(SCRATCH|WAYS).*", "", path.read_text(), flags=re.M)  # in the sandbox
    assert not re.search(r"(?<![\w.:])/(?:home|root|tmp|work|mnt|Users)\b", text)
    assert "utils" not in path.stem and "helper" not in path.stem


# ---- sizes ----


def code_lines(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def lines_of_code(path: Path) -> int:
    """Lines that do something: without blank lines, comments and docstrings."""
    kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in (*kinds, tokenize.ENCODING, tokenize.ENDMARKER):
                lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_it_stays_a_small_library(record_property) -> None:
    total = {name: len(path.read_text().splitlines()) for name, path in NAMES.items()}
    code = {name: lines_of_code(path) for name, path in NAMES.items()}
    record_property("lines", sum(total.values()))
    record_property("lines of code", sum(code.values()))
    grader = sum(lines for name, lines in code.items() if name.startswith("grading"))
    assert sum(code.values()) - grader <= 6000, code
    assert grader <= 3400, code  # nobody who learns, draws or measures needs it
    assert max(code.values()) <= 700, f"{code}; the guide is 200 lines a module"


@every_module
def test_functions_fit_a_screen(name) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(node) <= 60, f"{node.name}: {code_lines(node)} lines; the guide is 40"


# ---- documentation ----

WITHOUT_ALL = {"__init__", "__main__", "grading"}
MODULES = [name for name in NAMES if name not in WITHOUT_ALL]


def public(name: str) -> dict[str, object]:
    """Functions and classes that a module offers and that are its own."""
    module = import_module(f"semigen_lib.{name}")
    offered = {key: getattr(module, key, None) for key in getattr(module, "__all__", ())}
    return {
        key: value
        for key, value in offered.items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


PUBLIC = [(name, key) for name in MODULES for key in public(name)]
every_public_name = pytest.mark.parametrize(
    ("name", "key"), PUBLIC, ids=[f"{name}.{key}" for name, key in PUBLIC]
)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_complete(name) -> None:
    module = import_module(f"semigen_lib.{name}")
    assert hasattr(module, "__all__"), "no __all__"
    for key in module.__all__:
        assert hasattr(module, key), f"{key} is not there"
        assert not key.startswith("_")
    if name == "cli":  # a program: its two doors are enough
        return
    defined = {
        node.name
        for node in tree(name).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    }
    assert defined <= set(module.__all__)


@every_module
def test_every_module_says_what_it_is(name) -> None:
    text = ast.get_docstring(tree(name)) or ""
    assert re.match(r"[A-Z`s].{20,}[.]", text.replace("\n", " ")), "a sentence about the module"


def documented(text: str) -> list[str] | None:
    """Names of the section Parameters of a numpydoc docstring, None if there is none."""
    lines = inspect.cleandoc(text).splitlines()
    if "Parameters" not in lines:
        return None
    start = lines.index("Parameters") + 1
    assert set(lines[start]) == {"-"} and len(lines[start]) == len("Parameters"), "underline"
    names = []
    for index, line in enumerate(lines[start + 1 :], start + 1):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if line and set(following) == {"-"}:
            break
        if line.startswith(("Shown in:", "Source:")):
            break
        if line and not line.startswith(" "):
            names += [word.strip() for word in line.partition(" :")[0].split(",")]
            assert following.startswith("    ") or " : " in line, f"{line}: no description"
    return names


def signature(thing: object) -> list[str]:
    parameters = list(inspect.signature(thing).parameters)
    return [parameter for parameter in parameters if parameter != "self"]


@every_public_name
def test_docstring_is_numpydoc_and_equals_the_signature(name, key) -> None:
    thing = public(name)[key]
    text = thing.__doc__
    assert text, "no docstring"
    first = text.splitlines()[0]
    assert first.endswith((".", "?")) and first[0].isupper(), first
    names = documented(text)
    is_data = hasattr(thing, "__dataclass_fields__") or hasattr(thing, "_fields")
    if inspect.isclass(thing) and (is_data or issubclass(thing, Exception)):
        assert names is None
        return
    wanted = signature(thing)
    if names is not None:
        assert names == wanted
    elif inspect.isfunction(thing):
        assert len(wanted) < 3, f"{len(wanted)} parameters and no section Parameters"


@every_public_name
def test_public_methods_of_classes_have_docstrings(name, key) -> None:
    thing = public(name)[key]
    if not inspect.isclass(thing):
        return
    for attribute, value in vars(thing).items():
        value = getattr(value, "fget", value)
        if inspect.isfunction(value) and not attribute.startswith("_"):
            assert value.__doc__, f"{key}.{attribute}"
            assert documented(value.__doc__) in (None, signature(value)), f"{key}.{attribute}"


def chapters() -> set[str]:
    """Files of the book that exist or are planned in the table of contents."""
    planned = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    files = {f"{page}.ipynb" if re.match(r"book/\d\d_", page) else f"{page}.md" for page in planned}
    return files | {str(p.relative_to(ROOT)) for p in (ROOT / "book").rglob("*") if p.is_file()}


def shown_in(text: str | None) -> list[str]:
    found = re.search(r"Shown in: (book/\S+(?:\s+book/\S+)*)", text or "")
    return [place.rstrip(".,") for place in found[1].split()] if found else []


@every_public_name
def test_every_public_name_is_shown_in_the_book(name, key) -> None:
    thing = public(name)[key]
    if inspect.isclass(thing) and issubclass(thing, (Exception, MethodConfig)):
        return  # seen with what raises them and with their methods
    places = shown_in(thing.__doc__) or shown_in(ast.get_docstring(tree(name)))
    assert places, "no line 'Shown in: book/...', neither here nor in the module's docstring"
    assert set(places) <= chapters(), "no such chapter or page"


# ---- what the package says of itself ----


def test_console_script_is_the_cli() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'semigen = "semigen_lib.cli:main"' in text
    assert '"gpu:' in text, "GPU tests have a mark of their own"


def test_gpu_tests_are_marked_and_skipped_with_a_reason() -> None:
    text = (ROOT / "tests" / "test_runtime.py").read_text()
    assert 'skipif(not torch.cuda.is_available(), reason="' in text
    assert text.count("@pytest.mark.gpu\n@needs_gpu") >= 3

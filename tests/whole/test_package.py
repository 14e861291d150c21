"""The package as a whole: what importing it costs, and what it offers."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import vqaloop
from vqaloop.encoding.registry import codecs
from vqaloop.execution.options import CODECS
from vqaloop.ladder.options import LadderOptions
from vqaloop.ratecontrol.options import EncodeOptions
from vqaloop.regress.options import RegressOptions
from vqaloop.tuning.options import TuneOptions

HEAVY = ("torch", "pandas", "optuna", "deepspeed", "matplotlib", "scipy", "ray", "av")
ROOT = Path(vqaloop.__file__).resolve().parents[1]
MOST_LINES, MOST_PARAMETERS = 80, 8
"""Of a function that is not itself public API."""


def modules() -> dict[str, ast.Module]:
    """Syntax trees of the package's modules, by dotted name."""
    paths = sorted((ROOT / "vqaloop").rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8"))
        for name, path in zip(names, paths, strict=True)
    }


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{inside}.{node.name}"
            if isinstance(node, ast.FunctionDef):
                yield name, node
            yield from functions(node, name)
        else:
            yield from functions(node, inside)


def python(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=120, cwd=ROOT
    )


def loaded_after(code: str) -> set[str]:
    done = python("-c", f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_after("import vqaloop") & set(HEAVY)


def test_a_ladder_starts_without_pytorch() -> None:
    """Which takes seconds to load: it is not before there is something to score."""
    assert not loaded_after("import vqaloop.ladder.build") & {"torch", "pandas"}


def test_names_on_offer_resolve() -> None:
    assert vqaloop.__all__ == sorted(vqaloop.__all__)
    assert set(vqaloop.__all__) <= set(dir(vqaloop))
    for name in vqaloop.__all__:
        assert getattr(vqaloop, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vqaloop.nonsense  # noqa: B018


def test_lazy_names_are_all_on_offer() -> None:
    assert set(vqaloop._HOMES) <= set(vqaloop.__all__)
    # what type checkers and the pages' tool see, which do not run the module
    (block,) = (node for node in modules()["vqaloop"].body if isinstance(node, ast.If))
    seen = {
        alias.name: str(node.module).removeprefix("vqaloop.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == vqaloop._HOMES


def test_functions_are_not_hidden_by_modules() -> None:
    modules = {path.stem for path in (ROOT / "vqaloop").iterdir()}
    assert not modules & set(vqaloop.__all__)


def test_errors_are_of_one_family() -> None:
    for name in vqaloop.__all__:
        value = getattr(vqaloop, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, vqaloop.VqaloopError)


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    done = python("-m", "vqaloop", "--help")
    assert done.returncode == 0, done.stderr
    for command in ("sample", "ladder", "score", "encoders", "corpus", "distill"):
        assert command in done.stdout
    code = (
        "import sys\nfrom vqaloop.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    )
    assert not loaded_after(code) & set(HEAVY)


@pytest.mark.parametrize(
    ("function", "options", "positional"),
    [
        (vqaloop.build_ladder, LadderOptions, {"input"}),
        (vqaloop.tune_encoder, TuneOptions, {"input"}),
        (vqaloop.encode_to_target, EncodeOptions, {"input", "output"}),
        (vqaloop.compare_builds, RegressOptions, set()),
    ],
)
def test_functions_take_the_options_of_their_commands(
    function: Callable[..., Any], options: type, positional: set[str]
) -> None:
    taken = inspect.signature(function).parameters
    fields = {each.name: each for each in dataclasses.fields(options)}
    assert taken.keys() - positional == fields.keys()
    assert positional <= taken.keys()
    for name, each in fields.items():
        default = taken[name].default
        if name == "progress":
            assert default(None) is each.default(None) is None  # type: ignore[operator]
        elif default is inspect.Parameter.empty:
            assert each.default is dataclasses.MISSING, name
        else:
            assert (type(each.default), each.default) == (type(default), default), name


def test_help_lists_the_codecs_there_are() -> None:
    assert sorted(CODECS.split("|")) == list(codecs())


def test_typed() -> None:
    assert (ROOT / "vqaloop" / "py.typed").is_file()


def test_the_top_level_holds_what_belongs_to_no_package() -> None:
    modules = {path.name for path in (ROOT / "vqaloop").glob("*.py")}
    assert modules == {"__init__.py", "__main__.py", "errors.py", "pytest_plugin.py", "records.py"}


def test_functions_are_short_and_take_few_parameters() -> None:
    """But for public API functions, and the constructors of public classes."""
    public = {f"vqaloop.{home}.{name}" for name, home in vqaloop._HOMES.items()}
    large = []
    for module, tree in modules().items():
        for name, function in functions(tree, module):
            asked = function.args
            names = [a.arg for a in (*asked.posonlyargs, *asked.args, *asked.kwonlyargs)]
            parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            lines = (function.end_lineno or 0) - function.lineno + 1
            if name.removesuffix(".__init__") not in public and (
                lines > MOST_LINES or parameters > MOST_PARAMETERS
            ):
                large.append(f"{name}: {lines} lines, {parameters} parameters")
    assert not large


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even by imports inside functions, or for types alone."""
    trees, graph = modules(), dict[str, set[str]]()
    for module, tree in trees.items():
        found = graph[module] = set[str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{name.name}" for name in node.names}
                found |= (names & trees.keys()) or ({node.module} & trees.keys())
            elif isinstance(node, ast.Import):
                found |= {name.name for name in node.names} & trees.keys()
        # the package itself loads its names on first use
        found.discard("vqaloop")
    TopologicalSorter(graph).prepare()

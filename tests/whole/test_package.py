"""The package as a whole: what importing it costs, and what it offers."""

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
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


def python(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def loaded_after(code: str) -> set[str]:
    done = python("-c", f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_after("import vqaloop") & set(HEAVY)


def test_names_on_offer_resolve() -> None:
    assert vqaloop.__all__ == sorted(vqaloop.__all__)
    assert set(vqaloop.__all__) <= set(dir(vqaloop))
    for name in vqaloop.__all__:
        assert getattr(vqaloop, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vqaloop.nonsense  # noqa: B018


def test_lazy_names_are_all_on_offer() -> None:
    assert set(vqaloop._HOMES) <= set(vqaloop.__all__)


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

"""For pytest: the fixture `vqaloop_regress`, which fails a test where an encoder got worse.

::

    def test_no_worse(vqaloop_regress):
        vqaloop_regress(baseline="base.json", candidate="build/x264", codec="h264",
                        clips=["clips/park.y4m"])

What a test does not give is taken from the command line (--vqaloop-candidate and so on), and what
is not there from the ini file (vqaloop_candidate and so on), whose paths are relative to it.
Every run of pytest loads this module: it imports nothing that pytest has not.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    from vqaloop import Comparison

MOST_CHECKS = 20
"""Failed checks that are listed; the rest is counted."""


class Option(NamedTuple):
    """Of the command line and the ini file alike."""

    kind: Callable[[str], Any]
    metavar: str
    help: str


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _words(text)]


_BUILD = "an ffmpeg, the codec's own encoder, or a saved result"
OPTIONS = {
    "baseline": Option(Path, "BUILD", f"what to compare with: {_BUILD}"),
    "candidate": Option(Path, "BUILD", f"the build in question: {_BUILD}"),
    "codec": Option(str, "NAME", "h264, hevc, vp9, av1 or avs2"),
    "encoder": Option(str, "NAME", "another than the codec's default"),
    "preset": Option(str, "P", "the encoder's preset"),
    "metric": Option(str, "NAME", "the metric that leads"),
    "pool": Option(str, "NAME", "how scores are pooled over time, such as p5"),
    "gate": Option(_words, "NAME,...", "the metrics that may call a regression"),
    "knobs": Option(_numbers, "V,...", "values of the quality knob"),
    "frames": Option(int, "N", "of each clip the first N"),
    "threshold": Option(float, "PERCENT", "mean BD-rate above which a build is worse"),
    "clip_threshold": Option(float, "PERCENT", "the same of a single clip"),
    "time_threshold": Option(float, "PERCENT", "the same of CPU time"),
    "memory_threshold": Option(float, "PERCENT", "the same of peak memory"),
    "rate_threshold": Option(float, "PERCENT", "the same of bitrate at the same knob"),
    "baseline_args": Option(str, "TEXT", "further arguments of the baseline"),
    "candidate_args": Option(str, "TEXT", "further arguments of the candidate"),
    "timeout_s": Option(float, "SECONDS", "of one run"),
    "history": Option(Path, "FILE", "a store that every comparison is added to"),
}
"""Arguments of `vqaloop.compare_builds`, and the history."""


class Regress(Protocol):
    """What the fixture gives."""

    def __call__(self, *args: Any, **options: Any) -> "Comparison": ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vqaloop", "builds of encoders (vqaloop)")
    for name, option in OPTIONS.items():
        group.addoption(
            f"--vqaloop-{name.replace('_', '-')}", metavar=option.metavar, help=option.help
        )
        parser.addini(f"vqaloop_{name}", option.help)
    group.addoption(
        "--vqaloop-clip",
        dest="vqaloop_clips",
        action="append",
        metavar="FILE",
        help="a clip to compare on; may be given several times",
    )
    parser.addini("vqaloop_clips", "clips to compare on, one a line", type="linelist")


@pytest.fixture
def vqaloop_regress(request: pytest.FixtureRequest) -> Regress:
    """Compare two builds of an encoder; fails the test unless the candidate is no worse.

    A function that takes what `vqaloop.compare_builds` takes, and `history`, and returns what it
    returns. Verdict and BD-rate go into the JUnit report as properties of the test.
    """
    settings = read_settings(request.config)

    def regress(*args: Any, **options: Any) -> "Comparison":
        __tracebackhide__ = True
        from vqaloop import VqaloopError

        given = {**dict(zip(("baseline", "candidate"), args, strict=False)), **options}
        found, refused = None, ""
        try:
            found = _compared({**settings, **given})
        except VqaloopError as error:
            refused = f"vqaloop: {error}"
        if found is None:
            # outside of the except, or the report would have the whole chain of errors
            pytest.fail(refused, pytrace=False)
        for key in ("verdict", "bd_rate_percent"):
            # as record_property does, which warns of schemas that most readers do not heed
            request.node.user_properties.append((f"vqaloop_{key}", found.document[key]))
        if found.verdict in ("regression", "cannot tell"):
            raise AssertionError(failure_text(found.document))
        return found

    return regress


def _compared(options: dict[str, Any]) -> "Comparison":
    from vqaloop import InputError, compare_builds

    missing = [key for key in ("baseline", "candidate", "codec", "clips") if not options.get(key)]
    if missing:
        flags = ", ".join(f"--vqaloop-{key.removesuffix('s')}" for key in missing)
        raise InputError(
            f"{', '.join(missing)} not given; give it in the test, with {flags}, or as "
            f"{', '.join(f'vqaloop_{key}' for key in missing)} in the ini file"
        )
    history = options.pop("history", None)
    if history is not None:
        from vqaloop.trend.store import append, check_store

        check_store(Path(history))
    found = compare_builds(**options)
    if history is not None:
        append(found.document, Path(history))
    return found


def read_settings(config: pytest.Config) -> dict[str, Any]:
    """What the command line and, failing that, the ini file say; paths absolute."""
    here = config.invocation_params.dir
    ini = config.inipath.parent if config.inipath is not None else config.rootpath
    found: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        typed = config.getoption(f"vqaloop_{name}")
        text = config.getini(f"vqaloop_{name}") if typed is None else typed
        if not text:
            continue
        try:
            value = option.kind(text)
        except ValueError as error:
            raise pytest.UsageError(
                f"vqaloop_{name} = {text!r} is not {option.metavar}"
            ) from error
        found[name] = (
            _placed(value, ini if typed is None else here) if option.kind is Path else value
        )
    clips = config.getoption("vqaloop_clips")
    folder = here if clips else ini
    clips = clips or config.getini("vqaloop_clips")
    if clips:
        found["clips"] = [folder / clip for clip in clips]
    return found


def _placed(path: Path, folder: Path) -> Path:
    """Beside the ini file or where pytest was called; a bare name may be of a program in PATH."""
    there = folder / path
    return path if len(path.parts) == 1 and not os.path.exists(there) else there


def failure_text(document: dict[str, Any]) -> str:
    """The summary, and the checks that failed, a line each."""
    from vqaloop.core.text import printable

    failed = [check for check in document["checks"] if check["status"] == "failed"]
    lines = [document["summary"]]
    lines += [
        f"- {check['clip']}, {check['check']}: {check['message']}"
        for check in failed[:MOST_CHECKS]
    ]
    if len(failed) > MOST_CHECKS:
        lines.append(f"- and {len(failed) - MOST_CHECKS} more checks failed")
    return "\n".join(map(printable, lines))

"""What all tests share."""

import os

# the nets under test are tiny: threads that wait for each other on a busy machine cost more than
# they bring; must be set before torch or numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from matplotlib.figure import Figure

from tests.support.commandline import Room, children

# ladders of real encodes, made once for all tests of deliveries
from tests.support.deliveries import (  # noqa: F401
    codec_ladders,
    delivered,
    h264_ladder,
    own_ladder,
    short_title,
)

# a test may be slow on a busy machine, and the same commit passes or fails the same way twice
hypothesis.settings.register_profile("vqaloop", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("vqaloop")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Plots are blank sheets, except in tests marked `drawn`: drawing takes half of a ladder."""
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("drawn"):
            patch.setattr(Figure, "draw", lambda figure, renderer: None)
        return (yield)


@pytest.fixture
def room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    """A private place for commands; no program may outlive the test, no temporary file either."""
    made = Room(tmp_path / "work", tmp_path / "temp", tmp_path / "cache", capfd)
    for folder in (made.folder, made.temp, made.cache):
        folder.mkdir()
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("TMPDIR", str(made.temp))
    monkeypatch.setattr(tempfile, "tempdir", str(made.temp))
    monkeypatch.setenv("VQALOOP_CACHE", str(made.cache))
    # on a busy machine any probe is slow, and speaks of it
    monkeypatch.setattr("vqaloop.execution.stage_progress.NOTICE_S", 60.0)
    monkeypatch.setattr("vqaloop.report.progress.LOADING_S", 60.0)
    monkeypatch.setattr("vqaloop.core.frame_progress.REPORT_S", 60.0)
    before = set(children())
    yield made
    left = {pid: line for pid, line in children().items() if pid not in before}
    assert not left, "programs are still running"
    assert not list(made.temp.iterdir()), "temporary files are left"

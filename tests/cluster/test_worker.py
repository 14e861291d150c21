"""What a node checks and holds, without a cluster."""

import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import make_clip
from vqaloop.cluster.parity import Terms, check_terms
from vqaloop.cluster.worker import pinned
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding import registry
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import EncoderMissing, InputError, ToolError
from vqaloop.media.probe import probe_source
from vqaloop.records import Rendition, Source

ASKED = Rendition(160, 96, "libx264", 30, "ultrafast")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    clip = make_clip(tmp_path_factory.mktemp("clip") / "a.y4m", size="160x96")
    return probe_source(clip, ffmpeg=ffmpeg_path())


def check(terms: Terms, source: Source) -> None:
    check_terms(terms, source, ASKED, ffmpeg_path(), "there")


def terms_of(source: Source) -> Terms:
    return Terms.of(source, ASKED, ffmpeg_path())


def test_the_driver_s_own_encoder_is_taken(source: Source, tmp_path: Path) -> None:
    check(terms_of(source), replace(source, path=tmp_path / "where a node has it.y4m"))


def test_another_library_of_the_encoder_is_refused(source: Source) -> None:
    terms = replace(terms_of(source), version="libx264 core 1")
    with pytest.raises(ToolError, match="^node there has libx264 .* machine libx264 core 1, .*"):
        check(terms, source)


def changed(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """From now on the node's own libx264.toml says so."""
    specs = {"libx264": replace(get_encoder("libx264"), **values)}
    monkeypatch.setattr(registry, "load_encoders", lambda: specs)


def test_an_encoder_called_otherwise_is_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, spec = terms_of(source), get_encoder("libx264")
    changed(monkeypatch, options=(*spec.options, ("x264-params:aq-mode", "2")))
    with pytest.raises(ToolError, match="^node there calls libx264 with other options"):
        check(terms, source)


def test_an_encoder_that_cannot_what_was_ordered_is_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = terms_of(source)
    changed(monkeypatch, presets=("medium",))
    with pytest.raises(ToolError, match="^node there has other files .*preset 'ultrafast'"):
        check(terms, source)
    # what the driver itself cannot make is no fault of a node
    with pytest.raises(InputError, match="preset 'ultrafast'"):
        terms_of(source)


def test_an_encoder_that_does_not_run_there_is_missing(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = terms_of(source)
    changed(monkeypatch, ffmpeg="libnone")
    with pytest.raises(EncoderMissing):
        check(terms, source)


def locked(folder: Path) -> list[str]:
    """Processors that nobody else can take."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("wb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(path.name)
    return found


def test_processors_are_held_only_where_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path))
    have = os.sched_getaffinity(0)
    with pinned(len(have)):
        assert {int(name) for name in locked(tmp_path)} == have
        with pinned(1):  # none is left
            assert os.sched_getaffinity(0) == have
    assert locked(tmp_path) == []
    with pinned(1):
        own = os.sched_getaffinity(0)
        assert len(own) == 1 and locked(tmp_path) == [str(*own)]
    assert os.sched_getaffinity(0) == have
    with pinned(len(have) + 1):
        assert locked(tmp_path) == [] and os.sched_getaffinity(0) == have

"""Intervals of what is predicted before any encode."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqaloop.encoding.registry import get_encoder
from vqaloop.media.content import Content
from vqaloop.records import Source
from vqaloop.search.explore import plan
from vqaloop.search.forecast import (
    Asked,
    Unlike,
    forecast,
    shipped_stretch,
    unlike_learnt,
)
from vqaloop.search.prior_store import shipped_content_prior
from vqaloop.search.rungs import Rules
from vqaloop.search.space import Space
from vqaloop.search.surrogates import TitlePrior

SPEC = get_encoder("libx264")
USUAL = Content(-4.8, -2.9, -7.3, 0.15)
SOURCE = Source(Path("a.mkv"), "0" * 64, 640, 360, Fraction(25), 250, "yuv420p")
ASKED = Asked(SOURCE, SPEC, SPEC.default_preset, ["vmaf"], USUAL)
RULES = Rules(min_step=4.0, floor=30.0, ceiling=95.0)


def test_intervals_hold_their_points_and_widen_with_what_is_unlike() -> None:
    prior = shipped_content_prior("libx264", "vmaf")
    assert prior is not None
    space = Space(((640, 360), (320, 180)), SPEC.knob, (640, 360))
    surrogate = TitlePrior(space, prior.at(USUAL.values()))
    rungs = plan(RULES, [], surrogate.dense([]))
    assert len(rungs) > 2
    widths = []
    for unlike in (Unlike(), Unlike().also("rate", (0.5, 0.0)), Unlike().also("both", (0.5, 0.5))):
        found = forecast(space, surrogate.prior, rungs, 100.0, (0.9, 0.7), unlike)
        assert [f.point for f in found] == rungs
        for f in found:
            assert f.kbps[0] < f.point.bitrate_kbps < f.kbps[1]
            assert 0 <= f.score[0] < f.point.score < f.score[1] <= 100
            # the middle of the interval is what was predicted
            assert math.sqrt(math.prod(f.kbps)) == pytest.approx(f.point.bitrate_kbps, rel=1e-6)
        widths.append(
            (
                np.mean([math.log2(f.kbps[1] / f.kbps[0]) for f in found]),
                np.mean([f.score[1] - f.score[0] for f in found]),
            )
        )
    usual, rate, both = widths
    assert rate[0] > 1.3 * usual[0] and rate[1] == pytest.approx(usual[1], rel=0.02)
    assert both[1] > 1.1 * usual[1]


def test_a_title_like_those_learnt_from_has_nothing_unlike() -> None:
    assert unlike_learnt(ASKED) == Unlike()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": replace(SOURCE, width=3840, height=2160)}, "3840x2160; it was learnt from"),
        ({"source": replace(SOURCE, width=64, height=64)}, "64x64; it was learnt from"),
        ({"source": replace(SOURCE, fps=Fraction(120))}, "120 fps; it was learnt from"),
        ({"source": replace(SOURCE, frames=5)}, "only 5 frames"),
        ({"source": replace(SOURCE, hdr=True)}, "HDR"),
        ({"preset": "ultrafast"}, "preset ultrafast; it was learnt from medium"),
        ({"metrics": ["vmaf-sampled", "vmaf"]}, "scores of vmaf-sampled"),
        ({"content": replace(USUAL, bits=2.0)}, "bits of 2.00"),
        ({"others": ["two passes"]}, "two passes"),
    ],
)
def test_what_is_unlike_is_named_and_widens(change: dict[str, Any], said: str) -> None:
    found = unlike_learnt(replace(ASKED, **change))
    (reason,) = found.reasons
    assert reason.startswith(said) and found.rate > 0.1 and found.score > 0.05


def test_the_further_off_the_wider() -> None:
    def widened(width: int, height: int) -> float:
        larger = replace(SOURCE, width=width, height=height)
        return unlike_learnt(replace(ASKED, source=larger)).rate

    assert 0 < widened(1280, 720) < widened(1920, 1080)
    slower = [unlike_learnt(replace(ASKED, preset=name)).rate for name in ("fast", "veryfast")]
    assert 0 < slower[0] < slower[1]


def test_without_a_look_at_the_pictures_intervals_are_those_of_all_titles() -> None:
    found = unlike_learnt(replace(ASKED, content=None))
    assert found.reasons == ("pictures that could not be looked at",) and found.rate == 0
    assert shipped_stretch(["vmaf"], None) != shipped_stretch(["vmaf"], USUAL)
    assert shipped_stretch(["mos"], USUAL) == (1.0, 1.0)
    # of what no prior is shipped nothing is known to be unlike
    assert unlike_learnt(replace(ASKED, metrics=["mos"], preset="slow")) == Unlike()

"""Probes of another preset, and what they say of a title's encodes."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.titles import CRF, SIZES, random_title, taught
from vqaloop.search.prior import NO_LINK, Link, TitlePoints, expit, learn_link, logit
from vqaloop.search.prior_store import link_json, link_of, prior_json, prior_of, shipped_prior
from vqaloop.search.space import Space
from vqaloop.search.surrogates import TitlePrior, as_title, given_probes

SPACE = Space(SIZES, CRF)
KNOBS = [SPACE.knob_at(part) for part in (0.15, 0.4, 0.65, 0.9)]


def pairs(count: int) -> list[tuple[TitlePoints, TitlePoints]]:
    """Titles whose probes take about 2 ** 0.3 of the bitrate, and score 0.4 logits less."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(count):
        points = [random_title(seed).measure((*size, knob)) for size in SIZES for knob in KNOBS]
        title = as_title(SPACE, points, 100.0)
        rate = title.rate + 0.3 + 0.05 * rng.standard_normal() + 0.2 * title.q
        found.append((replace(title, rate=rate, score=expit(logit(title.score) - 0.4)), title))
    return found


def test_a_link_is_what_probes_differ_by() -> None:
    link = learn_link(pairs(12))
    assert link.mean[:2] == pytest.approx([0.3, 0.2], abs=0.04)
    assert link.mean[5] == pytest.approx(-0.4, abs=0.1)
    assert 0.03 < np.sqrt(link.spread[0, 0]) < 0.08 and link.rest[0] < 0.02
    wider = link.wider(np.array([0.1, 0.2]))
    assert np.sqrt(wider.spread[0, 0]) == pytest.approx(np.hypot(np.sqrt(link.spread[0, 0]), 0.1))
    assert wider.spread[1, 1] == link.spread[1, 1] and (wider.mean == link.mean).all()


def test_probes_of_another_preset_tell_of_the_title() -> None:
    link = learn_link(pairs(12))
    title = random_title(50)
    measured = [title.measure((*size, knob)) for size in SIZES[::2] for knob in KNOBS]
    probes = [
        replace(p, bitrate_kbps=p.bitrate_kbps * 2 ** (0.3 + 0.2 * SPACE.quality(p.knob)),
                score=100 * float(expit(logit(np.array(p.score / 100)) - 0.4)))
        for p in measured
    ]  # fmt: skip
    usual = TitlePrior(SPACE, taught())

    def off(surrogate: TitlePrior) -> float:
        made = {p.key: p for p in surrogate.dense(()).points}
        return float(
            np.mean([abs(np.log2(made[p.key].bitrate_kbps / p.bitrate_kbps)) for p in measured])
        )

    linked = given_probes(TitlePrior(SPACE, replace(taught(), link=link)), probes, 0)
    blind = given_probes(usual, probes, None)
    assert isinstance(linked, TitlePrior) and isinstance(blind, TitlePrior)
    # at the same preset, as of an excerpt, probes are taken for what they are
    assert off(linked) < 0.6 * off(blind) and off(linked) < 0.6 * off(usual)
    # a measured encode shows by how much all are off
    known = [title.measure((*SIZES[0], KNOBS[1]))]
    gone = {p.key: p for p in blind.dense(known).points}
    rest = [p for p in measured if p.key in gone]
    after = np.mean([abs(np.log2(gone[p.key].bitrate_kbps / p.bitrate_kbps)) for p in rest])
    assert after < off(blind)


def test_links_keep_in_files_and_priors_without_one_are_as_before() -> None:
    link = learn_link(pairs(6))
    again = link_of(link_json(link))
    for name in ("mean", "spread", "rest"):
        assert getattr(again, name) == pytest.approx(getattr(link, name), abs=1e-4)
    assert "link" not in prior_json(taught()) and prior_of(prior_json(taught())).link is NO_LINK
    kept = prior_of(prior_json(replace(taught(), link=link))).link
    assert isinstance(kept, Link) and kept.mean == pytest.approx(link.mean, abs=1e-4)


def test_encoders_with_a_preset_of_probes_ship_a_link() -> None:
    known = shipped_prior("libx264", "vmaf")
    assert known and known.link is not NO_LINK
    # veryfast takes less bitrate than medium at a CRF, and scores less
    assert known.link.mean[0] < 0 and known.link.mean[5] < 0
    other = shipped_prior("libvpx-vp9", "vmaf")
    assert other and other.link is NO_LINK

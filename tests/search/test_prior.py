"""What titles teach of titles: the population, its conditioning, its JSON, where it is kept."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.titles import CRF, SIZES, as_seen, random_title, taught
from vqaloop.cli.parser import make_parser
from vqaloop.core.option_fields import given_options
from vqaloop.errors import InputError
from vqaloop.execution.options import PriorOptions
from vqaloop.media.content import Content
from vqaloop.records import RDPoint
from vqaloop.search import prior_store
from vqaloop.search.prior import TERMS, Prior, TitlePoints, expit, learn, learn_content, logit
from vqaloop.search.space import Space, TrialPoint
from vqaloop.search.surrogates import CurveFits, ProbeShift, TitlePrior, as_title

NOTHING = TitlePoints(*(np.zeros(0) for _ in range(4)))
SPACE = Space(SIZES, CRF)
ENCODERS = ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "libxavs2")
METRICS = ("vmaf", "psnr", "internvqa-mini")


def points_of(seed: int, points: list[TrialPoint]) -> list[RDPoint]:
    return [random_title(seed).measure(point) for point in points]


SOME = [(1920, 1080, 20.0), (1920, 1080, 34.0), (960, 540, 26.0), (640, 360, 38.0),
        (416, 234, 30.0), (1280, 720, 24.0)]  # fmt: skip


CALM, BUSY = Content(-6.5, -3.5, -8.5, 0.4), Content(-3.0, -2.0, -6.5, 0.0)


def same(one: Prior | None, other: Prior | None) -> bool:
    return one is not None and other is not None and bool(np.array_equal(one.mean, other.mean))


# --- learning -----------------------------------------------------------------------------------


def drawn(count: int, seed: int) -> tuple[Prior, list[TitlePoints]]:
    """A known population and titles drawn from it, in closed form."""
    rng = np.random.default_rng(seed)
    mean = np.zeros(2 * TERMS)
    mean[[0, 1, 4, TERMS, TERMS + 1, TERMS + 4]] = (-5.0, 4.5, 1.5, -1.0, 4.0, 0.8)
    root = np.diag(np.r_[np.full(TERMS, 0.3), np.full(TERMS, 0.4)])
    root[TERMS, 0] = 0.5  # who needs more rate scores lower, or higher
    spread = root @ root.T
    q, u = (side.ravel() for side in np.meshgrid(np.linspace(0, 1, 5), [0.0, -0.6, -1.5]))
    basis = np.stack([np.ones_like(q), q, q * q, q**3, u, u * q, u * u, u * q * q, u * u * q], 1)
    titles = []
    for _ in range(count):
        own = mean + root @ rng.normal(size=2 * TERMS)
        titles.append(TitlePoints(u, q, basis @ own[:TERMS], expit(basis @ own[TERMS:])))
    return Prior(mean, spread, count), titles


def test_a_known_population_is_found_again() -> None:
    truth, titles = drawn(80, 0)
    found = learn(titles, rounds=20)
    q = np.array([0.0, 0.3, 0.7, 1.0])
    u = np.array([-1.5, -0.6, 0.0, -0.6])
    known, learnt = (prior.given(NOTHING).at(u, q) for prior in (truth, found))
    np.testing.assert_allclose(learnt[0], known[0], atol=0.25)
    np.testing.assert_allclose(learnt[1], known[1], atol=0.06)
    for one, other in zip(learnt[2:], known[2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=0.35)
    # that rate and score of a title go together is found as well
    together = found.spread[0, TERMS] / np.sqrt(found.spread[0, 0] * found.spread[TERMS, TERMS])
    assert together > 0.4
    assert found.titles == 80


def test_each_round_of_learning_likes_the_titles_better() -> None:
    _, titles = drawn(12, 1)

    def surprise(prior: Prior) -> float:
        total = 0.0
        for title in titles:
            belief = prior.given(title)
            _, log_precision = np.linalg.slogdet(belief.precision)
            total += belief.distance - log_precision
        return total

    found = [surprise(learn(titles, rounds=rounds)) for rounds in (1, 3, 10)]
    assert found[0] > found[1] > found[2]


def test_more_titles_narrow_what_is_expected() -> None:
    """From a prior that knows little, titles that are alike teach that others will be as well."""
    wide = Prior(taught().mean, taught().spread * 9, 2.0)
    _, titles = drawn(16, 3)
    u, q = np.zeros(3), np.array([0.1, 0.5, 0.9])
    widths = [
        learn(titles[:count], wide, rounds=5).given(NOTHING).at(u, q)[3].mean()
        for count in (0, 4, 16)
    ]
    assert widths[0] > widths[1] > widths[2]
    assert same(learn([], wide), wide) and learn([], wide).titles == 2


def test_a_few_titles_do_not_overrule_many() -> None:
    many = taught()
    heavy = Prior(many.mean, many.spread, 1000.0)
    _, strange = drawn(2, 5)
    moved = np.abs(learn(strange, heavy, 3).mean - many.mean).max()
    swayed = np.abs(learn(strange, many, 3).mean - many.mean).max()
    assert moved < 0.1 * swayed


def test_logit_and_expit_undo_each_other_and_stay_finite() -> None:
    share = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(expit(logit(share)), share)
    assert np.isfinite(logit(np.array([0.0, 1.0, -3.0, 7.0]))).all()


# --- conditioning -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_curves_pass_near_what_was_measured_and_trust_it(seed: int) -> None:
    points = points_of(seed, SOME)
    seen = as_title(SPACE, points, 100.0)
    before, after = (taught().given(t).at(seen.u, seen.q) for t in (NOTHING, seen))
    np.testing.assert_allclose(after[0], seen.rate, atol=0.05)
    np.testing.assert_allclose(after[1], seen.score, atol=0.012)
    assert (after[2] < 0.3 * before[2]).all() and (after[3] < before[3]).all()


def test_each_measured_point_leaves_less_doubt_everywhere() -> None:
    """Without surprise the deviations only ever shrink."""
    truth, titles = drawn(3, 7)
    title = titles[0]
    u, q = np.repeat([-1.2, -0.3], 4), np.tile([0.05, 0.4, 0.6, 0.95], 2)
    widths = []
    for count in (0, 1, 3, 9):
        some = TitlePoints(
            title.u[:count], title.q[:count], title.rate[:count], title.score[:count]
        )
        belief = truth.given(some)
        # the scale of surprise apart
        scale = np.sqrt((5 + belief.distance) / (5 + 2 * count))
        widths.append(np.array(belief.at(u, q)[2:]) / scale)
    for more, less in zip(widths, widths[1:], strict=False):
        assert (less <= more + 1e-9).all()


def test_a_title_that_surprises_is_trusted_less() -> None:
    usual = as_title(SPACE, points_of(0, SOME), 100.0)
    odd = TitlePoints(usual.u, usual.q, usual.rate + 6, usual.score[::-1])
    u, q = np.array([-0.8]), np.array([0.5])
    assert taught().given(odd).distance > 10 * taught().given(usual).distance
    assert taught().given(odd).at(u, q)[3] > 2 * taught().given(usual).at(u, q)[3]


def test_predictions_of_another_title_are_near() -> None:
    """Two encodes tell most of a title that was not learnt from."""
    errors = []
    for seed in range(6):
        belief = TitlePrior(SPACE, taught())
        dense = belief.dense(points_of(seed, SOME[1:3]))
        for point in dense.points[::7]:
            true = random_title(seed).measure((point.width, point.height, point.knob))
            errors.append(abs(true.score - point.score))
    assert np.mean(errors) < 4
    nothing = TitlePrior(SPACE, taught()).dense([])
    away = [
        abs(random_title(0).measure((p.width, p.height, p.knob)).score - p.score)
        for p in nothing.points[::7]
    ]
    assert np.mean(away) > np.mean(errors)


# --- on what pictures hold ----------------------------------------------------------------------


def drawn_on_content(count: int, seed: int) -> tuple[list[TitlePoints], list[tuple[float, ...]]]:
    """Titles whose rate follows the first of two numbers, and whose score neither."""
    rng = np.random.default_rng(seed)
    _, titles = drawn(count, seed)
    contents = [tuple(rng.normal(size=2).tolist()) for _ in titles]
    moved = [
        TitlePoints(t.u, t.q, t.rate + 1.5 * content[0], t.score)
        for t, content in zip(titles, contents, strict=True)
    ]
    return moved, contents


def test_what_pictures_hold_halves_the_error_of_a_title_that_was_not_learnt_from() -> None:
    titles, contents = drawn_on_content(40, 4)
    known, usual = learn_content(titles[:30], contents[:30]), learn(titles[:30])
    errors = np.zeros(2)
    for title, content in zip(titles[30:], contents[30:], strict=True):
        for i, prior in enumerate((known.at(content), usual)):
            rate, *_ = prior.given(NOTHING).at(title.u, title.q)
            errors[i] += np.abs(rate - title.rate).mean()
    assert errors[0] < 0.5 * errors[1]
    u, q = np.zeros(3), np.array([0.1, 0.5, 0.9])
    ((*_, narrow, _), (*_, wide, _)) = (
        prior.given(NOTHING).at(u, q) for prior in (known.at((0.0, 0.0)), usual)
    )
    assert (narrow < 0.7 * wide).all()


def test_titles_unlike_all_others_are_given_wider_intervals() -> None:
    known = learn_content(*drawn_on_content(20, 6))
    u, q = np.zeros(2), np.array([0.2, 0.8])
    widths = [
        known.at((far, 0.0)).given(NOTHING).at(u, q)[2].mean() for far in (0.0, 2.0, 3.2, 1e9)
    ]
    assert widths[0] < widths[1] < widths[2] and np.isfinite(widths[3])
    # a number that was the same of all titles says nothing of another
    titles, contents = drawn_on_content(8, 2)
    same_of_all = learn_content(titles, [(first, 7.0) for first, _ in contents])
    assert np.isfinite(same_of_all.at((0.0, 8.0)).spread).all()


def test_a_prior_on_content_as_json_is_the_same_prior() -> None:
    prior = learn_content(*drawn_on_content(12, 3))
    made = prior_store.content_prior_json(prior)
    again = prior_store.content_prior_of(json.loads(json.dumps(made)))
    assert prior_store.content_prior_json(again) == made
    np.testing.assert_allclose(again.at((1.0, 0.0)).mean, prior.at((1.0, 0.0)).mean, atol=1e-3)


# --- beliefs ------------------------------------------------------------------------------------


def test_learnt_speaks_of_every_point_but_those_measured() -> None:
    points = points_of(4, SOME)
    dense = TitlePrior(SPACE, taught()).dense(points)
    keys = [(p.width, p.height, p.knob) for p in dense.points]
    assert len(keys) == len(set(keys)) == len(dense.deviation)
    assert not set(keys) & set(SOME)
    assert {key[:2] for key in keys} == set(SIZES)
    assert {key[2] for key in keys} <= set(SPACE.grid())
    assert not any(p.measured for p in dense.points)
    assert all(0 <= p.score <= 100 and p.bitrate_kbps > 0 for p in dense.points)
    assert (dense.deviation > 0).all()


def test_fits_ask_for_two_points_of_each_size_and_know_no_doubt() -> None:
    belief = CurveFits(SPACE)
    anchors = belief.anchors([])
    assert [sum(p[:2] == size for p in anchors) for size in SIZES] == [2] * len(SIZES)
    lost = anchors[0]
    assert len(belief.anchors([lost])) == len(anchors) + 1 and lost in belief.anchors([lost])
    dense = belief.dense(points_of(4, anchors))
    assert not dense.deviation.any() and len(dense.deviation) == len(dense.points)
    assert not {(p.width, p.height, p.knob) for p in dense.points} & set(anchors)


def test_an_excerpt_is_moved_by_what_the_title_shows() -> None:
    """A title with 1.5 times the rate and half a logit less is told by one of its encodes."""
    excerpt = points_of(2, SOME)

    def whole(p: RDPoint) -> RDPoint:
        score = 100 * float(expit(logit(np.array([p.score / 100])) - 0.5)[0])
        return RDPoint(p.width, p.height, p.knob, p.bitrate_kbps * 1.5, score)

    belief = ProbeShift(excerpt)
    assert belief.anchors([]) == []
    before = belief.dense([])
    assert [p.score for p in before.points] == pytest.approx([p.score for p in excerpt])
    after = belief.dense([whole(excerpt[1])])
    expected = [whole(p) for i, p in enumerate(excerpt) if i != 1]
    for found, true in zip(after.points, expected, strict=True):
        assert found.bitrate_kbps == pytest.approx(true.bitrate_kbps)
        assert found.score == pytest.approx(true.score, abs=0.01)
    # of a point that the excerpt does not know nothing is learnt
    foreign = RDPoint(1920, 1080, 21.5, 9999.0, 1.0)
    assert belief.shift([foreign]) == (0.0, 0.0)


# --- JSON and what comes with the package -------------------------------------------------------


def test_a_prior_as_json_is_the_same_prior() -> None:
    prior = taught()
    again = prior_store.prior_of(json.loads(json.dumps(prior_store.prior_json(prior))))
    np.testing.assert_allclose(again.mean, prior.mean, atol=1e-5)
    np.testing.assert_allclose(again.spread, prior.spread, atol=1e-6)
    assert again.titles == prior.titles
    assert prior_store.prior_json(again) == prior_store.prior_json(prior)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("metric", METRICS)
def test_a_prior_comes_with_every_default_encoder(encoder: str, metric: str) -> None:
    prior = prior_store.shipped_prior(encoder, metric)
    assert prior is not None and prior.titles >= 8
    assert prior.mean.shape == (2 * TERMS,) and prior.spread.shape == (2 * TERMS, 2 * TERMS)
    np.testing.assert_array_equal(prior.spread, prior.spread.T)
    widths = np.linalg.eigvalsh(prior.spread)
    # but for what rounding does
    assert widths.min() > -1e-4 * widths.max()
    # what it expects of a title of which nothing is known makes sense
    rate, score, *deviations = prior.given(NOTHING).at(
        np.array([0.0, 0.0, -1.0, -1.0]), np.array([0.1, 0.9, 0.1, 0.9])
    )
    assert rate[0] < rate[1] and rate[2] < rate[3] and rate[3] < rate[1]
    assert score[0] < score[1] and score[2] < score[3] < score[1]
    assert all(np.isfinite(d).all() and (d > 0).all() for d in deviations)


def test_no_prior_for_what_is_not_known() -> None:
    assert prior_store.shipped_prior("x266", "vmaf") is None
    assert prior_store.shipped_prior("libx264", "mos") is None


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("metric", METRICS)
def test_busier_pictures_are_expected_to_take_more(encoder: str, metric: str) -> None:
    known = prior_store.shipped_content_prior(encoder, metric)
    assert known is not None and len(known.centre) == len(CALM.values())
    u, q = np.array([0.0, -1.0]), np.array([0.5, 0.5])
    rates = [known.at(c.values()).given(NOTHING).at(u, q)[0] for c in (CALM, BUSY)]
    assert (rates[1] > rates[0] + 1).all()


# --- this machine's own titles ------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path))
    return tmp_path


def keep(
    seed: int, encoder: str = "x266", metric: str = "vmaf", content: Content | None = None
) -> None:
    kind, points = (encoder, "medium", metric), points_of(seed, SOME)
    prior_store.remember(*kind, f"title {seed}", SPACE, points, 100.0, content)


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("titles/**/*.json"))


def test_titles_of_this_machine_move_the_shipped_prior(cache: Path) -> None:
    shipped = prior_store.shipped_prior("libx264", "vmaf")
    assert same(prior_store.current_prior("libx264", "medium", ["vmaf"], "new"), shipped)
    keep(0, "libx264")
    moved = prior_store.current_prior("libx264", "medium", ["vmaf"], "new")
    assert shipped and moved and moved.titles == shipped.titles + 1
    assert not same(moved, shipped)
    # of another metric, preset or encoder it tells nothing
    assert same(prior_store.current_prior("libx264", "slow", ["vmaf"], "new"), shipped)
    assert same(prior_store.current_prior("libx264", "medium", ["psnr"], "new"),
                prior_store.shipped_prior("libx264", "psnr"))  # fmt: skip
    assert same(prior_store.current_prior("libx265", "medium", ["vmaf"], "new"),
                prior_store.shipped_prior("libx265", "vmaf"))  # fmt: skip


def test_by_default_a_search_begins_with_what_is_shipped_whatever_was_made(cache: Path) -> None:
    """The same command gives the same answer later."""
    asked = ("libx264", "medium", ["vmaf"], "new")
    shipped = prior_store.shipped_prior("libx264", "vmaf")
    keep(0, "libx264")
    assert same(prior_store.chosen_prior("shipped", *asked), shipped)
    own = prior_store.chosen_prior("own", *asked)
    assert same(own, prior_store.current_prior(*asked)) and not same(own, shipped)
    assert prior_store.chosen_prior("none", *asked) is None
    assert prior_store.chosen_prior("shipped", "x266", "medium", ["vmaf"], "new") is None


def test_own_titles_of_known_content_move_the_prior_on_content(cache: Path) -> None:
    asked = ("libx264", "medium", ["vmaf"], "new")
    shipped = prior_store.chosen_prior("shipped", *asked, BUSY)
    assert shipped and not same(shipped, prior_store.chosen_prior("shipped", *asked, CALM))
    assert same(prior_store.chosen_prior("own", *asked, BUSY), shipped)
    # of a title of which nothing was looked at only the other prior learns
    keep(0, "libx264")
    assert same(prior_store.chosen_prior("own", *asked, BUSY), shipped)
    for seed in range(1, 3):
        keep(seed, "libx264", content=BUSY)
    moved = prior_store.chosen_prior("own", *asked, BUSY)
    assert moved and moved.titles == shipped.titles + 2 and not same(moved, shipped)
    # and none by a damaged one
    for file in files(cache):
        table = json.loads(file.read_text())
        if "content" in table:
            file.write_text(json.dumps({**table, "content": ["a", None, float("nan"), 1e99]}))
    assert same(prior_store.chosen_prior("own", *asked, BUSY), shipped)


def test_what_a_search_may_begin_with() -> None:
    assert [prior_store.prior_use(use) for use in ("shipped", "own", "none")] == [
        *("shipped", "own", "none")
    ]
    assert prior_store.prior_use(True) == "own" and prior_store.prior_use(False) == "none"
    with pytest.raises(InputError, match="'mine' is none of shipped, own and none"):
        prior_store.prior_use("mine")


@pytest.mark.parametrize("command", [["ladder", "a.mp4"], ["encode", "a.mp4", "b.mp4"]])
def test_the_command_line_takes_every_prior_and_the_older_word_for_none(
    command: list[str],
) -> None:
    def asked(*words: str) -> str:
        found = make_parser().parse_args([*command, "--codec", "h264", *words])
        return str(given_options(PriorOptions, found).get("prior", PriorOptions.prior))

    assert asked() == "shipped"
    assert [asked("--prior", use) for use in ("shipped", "own", "none")] == [
        *("shipped", "own", "none")
    ]
    assert asked("--no-prior") == "none"
    for wrong in (["--prior", "mine"], ["--prior", "own", "--no-prior"]):
        with pytest.raises(InputError):
            asked(*wrong)


def test_a_title_is_not_told_by_itself(cache: Path) -> None:
    keep(0, "libx264")
    shipped = prior_store.shipped_prior("libx264", "vmaf")
    assert same(prior_store.current_prior("libx264", "medium", ["vmaf"], "title 0"), shipped)


def test_an_encoder_without_prior_learns_from_five_titles(cache: Path) -> None:
    for seed in range(prior_store.LEAST_TITLES):
        assert prior_store.current_prior("x266", "medium", ["vmaf"], "new") is None
        keep(seed)
    found = prior_store.current_prior("x266", "medium", ["vmaf"], "new")
    assert found and found.titles == prior_store.LEAST_TITLES
    assert prior_store.current_prior("x266", "medium", ["vmaf"], "title 1") is None
    # the first metric of which anything is known
    assert same(prior_store.current_prior("x266", "medium", ["mine", "vmaf"], "new"), found)


def test_what_is_kept_holds_no_name_and_no_path(cache: Path) -> None:
    prior_store.remember(
        "x266", "medium", "vmaf", "secret holiday", SPACE, points_of(0, SOME), 100.0
    )
    (file,) = files(cache)
    assert "secret" not in str(file) + file.read_text()
    assert set(json.loads(file.read_text())) == {"u", "q", "rate", "score"}
    keep(1)
    keep(1)
    assert len(files(cache)) == 2


def test_too_few_points_are_not_worth_keeping(cache: Path) -> None:
    few = points_of(0, SOME)[: prior_store.LEAST_POINTS - 1]
    prior_store.remember("x266", "medium", "vmaf", "title", SPACE, few, 100.0)
    assert files(cache) == []


def test_the_oldest_titles_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_store, "MOST_TITLES", 3)
    for seed in range(5):
        keep(seed)
        for age, file in enumerate(files(cache)):
            if age == 0 and seed == 0:
                os.utime(file, (1, 1))
        newest = max(files(cache), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (1000 + seed, 1000 + seed))
    times = sorted(path.stat().st_mtime for path in files(cache))
    assert times == [1002, 1003, 1004]


def test_damaged_and_foreign_files_are_passed_over(cache: Path) -> None:
    for seed in range(5):
        keep(seed)
    sound = prior_store.current_prior("x266", "medium", ["vmaf"], "new")
    folder = files(cache)[0].parent
    whole = json.loads(files(cache)[0].read_text())
    bad = {
        "empty": b"",
        "cut": files(cache)[0].read_bytes()[:40],
        "binary": b"\xff\xfe\x00\x01",
        "list": b"[1, 2]",
        "number": b"7",
        "null": b"null",
        "no rates": json.dumps({k: v for k, v in whole.items() if k != "rate"}).encode(),
        "words": json.dumps({**whole, "rate": ["a"] * 6}).encode(),
        "nan": json.dumps({**whole, "rate": [float("nan")] * 6}).encode(),
        "uneven": json.dumps({**whole, "rate": [1.0]}).encode(),
        "nested": json.dumps({k: [v] for k, v in whole.items()}).encode(),
        "deep": json.dumps({k: [[x] for x in v] for k, v in whole.items()}).encode(),
        "huge": json.dumps({**whole, "rate": [1e300] * 6}).encode(),
        "scalar": json.dumps(dict.fromkeys(whole, 1.0)).encode(),
    }
    for name, data in bad.items():
        (folder / f"{name}.json").write_bytes(data)
    (folder / "folder.json").mkdir()
    (folder / "notes.txt").write_text("dear")
    assert same(prior_store.current_prior("x266", "medium", ["vmaf"], "new"), sound)


def test_a_folder_that_cannot_be_used_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path / "file" / "cache"))
    keep(0, "libx264")
    found = prior_store.current_prior("libx264", "medium", ["vmaf"], "new")
    assert same(found, prior_store.shipped_prior("libx264", "vmaf"))


def test_titles_are_as_the_test_titles_have_them() -> None:
    """The scale on which all are compared: no units, so that sources of any size are alike."""
    seen = as_seen(3)
    assert seen.u.max() == 0.0 and seen.u.min() == pytest.approx(np.log2(416 / 1920))
    assert 0 <= seen.q.min() < seen.q.max() <= 1
    assert 0 <= seen.score.min() < seen.score.max() <= 1
    half = Space(tuple((w // 2, h // 2) for w, h in SIZES), CRF)
    points = points_of(3, SOME)
    smaller = [
        RDPoint(p.width // 2, p.height // 2, p.knob, p.bitrate_kbps / 4, p.score) for p in points
    ]
    large, small = as_title(SPACE, points, 100.0), as_title(half, smaller, 100.0)
    np.testing.assert_allclose(large.rate, small.rate)
    np.testing.assert_allclose(large.u, small.u)

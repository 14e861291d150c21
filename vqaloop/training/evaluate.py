"""Evaluation on labelled titles: scores of a student and other metrics, correlated with labels.

Shards are read one at a time, so a data set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import counted
from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models.device import exact
from vqaloop.models.student import Student
from vqaloop.quality.pooling import mean_over_time
from vqaloop.training.correlation import (
    Correlations,
    Difference,
    correlations,
    mean_within,
    paired_differences,
    raw_correlations,
    within_sd,
)
from vqaloop.training.shards import Shard
from vqaloop.training.targets import POINTS, Label

if TYPE_CHECKING:
    import pandas as pd

HEADS = {"anchored": "anchored", "alone": "no reference"}
"""Columns of the student's scores, and their names in tables and plots."""
PREFIXES = {"anchored": "", "alone": "alone_"}
"""Before the names of a head's figures in `summary`."""
METRICS = ("psnr", "ssim", "xpsnr")
"""Other metrics that can be measured on the same crops."""
BANDS = ("full size", "half or more", "below half")
"""An encode's height, as a part of the largest of its scene."""
HALVES = 20
"""Draws behind a spread over the choice of crops."""
CLIPS_AT_ONCE = 16
"""Clips that run through the student together."""
NOTICED = 92.0
"""Score below which damage counts as seen."""

SCORE = Label("v1")
"""The label behind the scores of shards with regions."""

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LargestError:
    """The encode of a scene whose score is furthest from its label, and its worst region."""

    error: float
    row: dict[str, Any]
    region: int
    """A crop, where there are no regions."""
    distorted: Picture
    """(S·3/2, S) the middle frame of that region, planar 4:2:0."""
    reference: Picture | None


@dataclass
class ShardScores:
    """Scores of a student, and of other metrics, of the encodes of a data set."""

    table: pd.DataFrame
    """See `score_shards`."""
    regions: pd.DataFrame
    """Of single regions: scene, content, encode, region, attack, label, anchored, alone; empty
    where there are none."""
    largest_errors: list[LargestError] = field(default_factory=list)
    """One of each scene, largest error first."""


def score_shards(
    student: Student,
    shards: Iterable[Shard],
    device: torch.device,
    *,
    crops: int | None = None,
    label: Label | None = None,
    metrics: Sequence[str] = (),
    ffmpeg: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> ShardScores:
    """Score each encode of some shards, its crops pooled as one picture.

    Args:
        student: In evaluation mode, on `device`.
        shards: Of one kind of label; taken one at a time.
        device: Where the student runs.
        crops: At most so many crops of an encode are used, in whole regions where there are
            such, of clips spread over a video those in its middle; None: all.
        label: What the student predicts, of shards where it was measured; of others, and where it
            is None, each shard's score.
        metrics: Of METRICS; measured on the same crops.
        ffmpeg: Path of the ffmpeg binary, for `metrics`.
        report: Called with a line of progress for each shard.

    Returns:
        Tables of encodes and of single regions, and the largest errors. One row an encode: scene,
        content (the title), encoder, width, height, level, knob, attack (None for plain
        compression), label_kind, label (0..100, higher is better), label_NAME of each measured
        label (mean over whole frames, or over regions where it is of those alone), anchored and
        alone (0..100, without bounds where the student has none; nan where there is no reference
        or no anchored head), anchored_spread and alone_spread (see `crop_spread`),
        anchored_centre and alone_centre (of the clip in the middle of the video alone, before the
        middle where their number is even, as arXiv 2502.19026 tests; nan for crops that are not
        spread over a video), and a column for each metric (mean over frames; nan where there is
        no reference).

    Raises:
        InputError: Clips do not fit the student, or its scores are no finite numbers.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    region_rows: list[dict[str, Any]] = []
    largest_errors: list[LargestError] = []
    for whole in shards:
        shard = _fewer_clips(whole, crops) if crops else whole
        sums = _sums(student, shard, device)
        rng = np.random.default_rng([0, *shard.name.encode("utf-8", "surrogateescape")])
        heads = {head: _HeadScores(student, head, sums.get(head), shard, rng) for head in HEADS}
        known = label if label is not None and label.is_in(shard.labels) else None
        metric_values = _other_metrics(shard, metrics, ffmpeg)
        shard_rows = _encode_rows(shard, known, student.config.time_power, heads, metric_values)
        rows += shard_rows
        # (E, R): of regions, or of the whole video for each of its crops
        labels = np.repeat([[row["label"]] for row in shard_rows], _units(shard), 1)
        if shard.region_labels is not None:
            labels = (known or SCORE).values(shard.region_labels, shard.labels).double().numpy()
            region_rows += _region_rows(shard, labels, heads)
        # the head that a ladder would use: anchored where the data set has references
        head = "alone" if np.isnan(heads["anchored"].pooled).any() else "anchored"
        largest_errors.append(_largest_error(shard, shard_rows, labels, heads[head]))
        report(f"{len(largest_errors)} {shard.name}: {counted(len(shard_rows), 'encode')}")
    largest_errors.sort(key=lambda largest: -largest.error)
    return ShardScores(pd.DataFrame(rows), pd.DataFrame(region_rows), largest_errors)


def clip_scores(
    student: Student, shard: Shard, device: torch.device, head: str
) -> npt.NDArray[np.float64]:
    """(E, C) scores 0..100 of single clips by one of HEADS, which the student and shard have."""
    sums, weights = _sums(student, shard, device)[head]
    with torch.inference_mode():
        return _percent(_answers_of(student, head, shard)(sums, weights))


def _fewer_clips(shard: Shard, crops: int) -> Shard:
    """The shard with at most so many clips of each encode, but a region at least.

    Regions are spread over the places of the scene; of clips spread over a video, as views are,
    those around its middle are taken.
    """
    count = _units(shard)
    wanted = min(count, max(crops // shard.region, 1))
    regions = np.linspace(0, count - 1, wanted).round().astype(int)
    if shard.view is not None:
        regions = (count - wanted) // 2 + np.arange(wanted)
    clips = torch.from_numpy((regions[:, None] * shard.region + np.arange(shard.region)).ravel())

    def cut(labels: Tensor | None) -> Tensor | None:
        return None if labels is None else labels[:, torch.from_numpy(regions)]

    return replace(
        shard,
        distorted=shard.distorted[:, clips],
        reference=None if shard.reference is None else shard.reference[clips],
        region_labels=cut(shard.region_labels),
        frame_labels=cut(shard.frame_labels),
        fdim_features=cut(shard.fdim_features),
        distances=tuple(shard.distances[r] for r in regions if shard.distances),
        places=tuple(shard.places[r] for r in regions if shard.places),
    )


def _units(shard: Shard) -> int:
    """Regions, or crops where there are none."""
    return shard.distorted.shape[1] // shard.region


def _answers_of(student: Student, head: str, shard: Shard) -> Callable[..., Tensor]:
    """The last layers of a head: pooled (E, ..., K) sums and weights to answers."""
    height = _height(shard)
    if head == "anchored":
        return partial(student.anchored_answers, canvas_height=height)

    def alone(sums: Tensor, weights: Tensor) -> Tensor:
        stream = shard.stream.reshape(len(sums), *[1] * (sums.ndim - 2), -1)
        return student.alone_answers(sums, weights, height, stream)

    return alone


def _height(shard: Shard) -> float | None:
    """Height of the canvas, which some heads take."""
    return None if shard.canvas is None else float(shard.canvas[1])


def _encode_rows(
    shard: Shard,
    label: Label | None,
    power: float,
    heads: Mapping[str, _HeadScores],
    metrics: Mapping[str, npt.NDArray[np.float64]],
) -> list[dict[str, Any]]:
    scores = shard.scores.numpy()
    if label is not None:
        frames = label.of_frames(shard).double().numpy()
        scores = _over_time(frames, np.ones(frames.shape[1]), power)
    means = _label_means(shard)
    return [
        {
            "scene": shard.name,
            "content": shard.content,
            **{k: encode.get(k) for k in ("encoder", "width", "height", "level", "knob")},
            "attack": (encode.get("attack") or {}).get("name"),
            "label_kind": shard.label if label is None else label.text,
            "label": float(scores[e]),
            **{f"label_{name}": float(values[e]) for name, values in means.items()},
            **{head: float(answers.pooled[e]) for head, answers in heads.items()},
            **{f"{head}_spread": float(answers.spread[e]) for head, answers in heads.items()},
            **{f"{head}_centre": float(answers.centre[e]) for head, answers in heads.items()},
            **{name: float(values[e]) for name, values in metrics.items()},
        }
        for e, encode in enumerate(shard.encodes)
    ]


def _label_means(shard: Shard) -> dict[str, Tensor]:
    """(E,) mean of each measured label over frames, or over regions where it is of those alone."""
    if shard.region_labels is None or shard.frame_labels is None:
        return {}
    frames = shard.frame_labels.nanmean(1)
    means = torch.where(frames.isnan(), shard.region_labels.nanmean(1), frames)
    return dict(zip(shard.labels, means.unbind(-1), strict=True))


def _region_rows(
    shard: Shard, labels: npt.NDArray[np.float64], heads: Mapping[str, _HeadScores]
) -> list[dict[str, Any]]:
    return [
        {
            "scene": shard.name,
            "content": shard.content,
            "encode": e,
            "region": r,
            "attack": (shard.encodes[e].get("attack") or {}).get("name"),
            "label": labels[e, r],
            **{head: answers.single[e, r] for head, answers in heads.items()},
        }
        for e, r in np.ndindex(labels.shape)
    ]


def evaluate(
    table: pd.DataFrame, regions: pd.DataFrame | None = None, *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """SRCC, KRCC, PLCC and RMSE against the labels, of each head and each other metric.

    Encodes that were damaged beyond compression have no part in these; of them it is counted how
    many a head sees.

    Args:
        table: Of `ShardScores`.
        regions: Of `ShardScores`; None: no figures of single regions.
        draws: Of the bootstrap behind the intervals; 0: no intervals.
        seed: Of the bootstrap.

    Returns:
        A JSON-able document. Under `judges`, for each head and metric that has scores: `overall`
        with intervals over titles (see `correlation.correlations`), `by_encoder`, `by_size` (see
        BANDS), for heads `crop_spread` (root mean square, and 95th percentile), `centre_clip` (of
        one clip a video, as arXiv 2502.19026 tests), `labels` (agreement with each measured
        label), `attacks` (see `_attack_figures`) and, with `regions`, `single_regions`. Rows
        without a score are left out of the count.

    Raises:
        InputError: Labels are of different kinds, which no figure can mix.
    """
    kinds = sorted(set(table["label_kind"]))
    if len(kinds) > 1:
        raise InputError(
            f"labels of different kinds ({', '.join(kinds)}) do not compare; "
            "evaluate these data sets one by one"
        )
    plain = table[table["attack"].isna() & table["label"].notna()]
    judges: dict[str, Any] = {}
    for name in (*HEADS, *METRICS):
        if name not in table or not plain[name].notna().any():
            continue
        part = plain[plain[name].notna()]
        # a size means more as a part of the scene's largest: titles differ in resolution
        bands = part["height"].map(lambda h: h or np.nan).astype(float)
        bands = bands / bands.groupby(part["scene"]).transform("max")
        band = np.select([bands >= 0.999, bands >= 0.5, bands > 0], BANDS, "unknown")
        judges[name] = {
            "overall": _correlations(part, name, draws, seed).to_json(),
            "by_encoder": _groups(part, part["encoder"].fillna("unknown").to_numpy(str), name),
            "by_size": _groups(part, band, name),
        }
        if name in HEADS:
            spread = part[f"{name}_spread"].dropna().to_numpy(float)
            judges[name]["crop_spread"] = {
                "rms": float(np.sqrt(np.mean(spread**2))) if len(spread) else None,
                "p95": float(np.percentile(spread, 95)) if len(spread) else None,
            }
            centre = part[part[f"{name}_centre"].notna()]
            if len(centre):
                figures = _correlations(centre, f"{name}_centre", draws, seed, same_scale=True)
                judges[name]["centre_clip"] = figures.to_json()
            if labels := _label_figures(part, name):
                judges[name]["labels"] = labels
            if len(plain) < len(table):
                judges[name]["attacks"] = _attack_figures(table[table["attack"].notna()], name)
            if regions is not None and len(regions) and regions[name].notna().any():
                single = regions[regions[name].notna() & regions["attack"].isna()]
                single = single[single["label"].notna()]
                judges[name]["single_regions"] = _correlations(single, name, 0, seed).to_json()
    return {
        "label": kinds[0],
        "encodes": len(plain),
        "titles": int(plain["content"].nunique()),
        "judges": judges,
    }


def _label_figures(part: pd.DataFrame, head: str) -> dict[str, dict[str, float | None]]:
    """Agreement of a head with each measured label; errors only where it is on 0..100 too."""
    figures: dict[str, dict[str, float | None]] = {}
    for column in part.columns[part.columns.str.startswith("label_")]:
        name = column.removeprefix("label_")
        known = part[part[column].notna()] if name != "kind" else part[:0]
        if known.empty:
            continue
        scores, labels = (known[c].to_numpy(float) for c in (head, column))
        titles = list(known["content"])
        raw = {**raw_correlations(scores, labels), "within_sd": within_sd(scores, labels, titles)}
        if name not in POINTS:
            raw |= {"rmse": None, "within_sd": None}
        within = mean_within(scores, labels, titles)
        figures[name] = {"count": len(known), **raw, "within_srcc": within}
    return figures


def _attack_figures(attacked: pd.DataFrame, head: str) -> dict[str, dict[str, float | None]]:
    """Of each attack, and of all: how many there are, mean score and label, and what is noticed.

    `noticed` is the share of scores below NOTICED.
    """
    known = attacked[attacked[head].notna()]
    groups = [("all", known), *((str(name), part) for name, part in known.groupby("attack"))]
    return {
        name: {
            "count": len(part),
            "score": float(part[head].mean()),
            "label": float(part["label"].mean()),
            "noticed": float((part[head] < NOTICED).mean()),
        }
        for name, part in groups
        if len(part)
    }


def summary(table: pd.DataFrame) -> dict[str, float | None]:
    """The few figures that a training log holds, of both heads; those of `alone` by a prefix."""
    values: dict[str, float | None] = {}
    for head, prefix in PREFIXES.items():
        known = table[table[head].notna()]
        part, attacked = (known[known["attack"].isna() == plain] for plain in (True, False))
        if part.empty:
            continue
        scores, labels = (part[column].to_numpy(float) for column in (head, "label"))
        titles = list(part["content"])
        raw = {
            **raw_correlations(scores, labels),
            "within_srcc": mean_within(scores, labels, titles),
            "within_sd": within_sd(scores, labels, titles),
        }
        if len(attacked):
            raw["noticed"] = float((attacked[head] < NOTICED).mean())
        values |= {prefix + k: None if v is None else round(v, 4) for k, v in raw.items()}
    return values


def summary_lines(values: Mapping[str, float | None]) -> list[str]:
    """The figures of `summary` in words: a line a head."""
    names = {"srcc": "SRCC", "krcc": "KRCC", "plcc": "PLCC", "rmse": "RMSE"}
    names |= {"within_srcc": "SRCC within titles", "within_sd": "SD within titles"}
    names["noticed"] = f"share of attacks below {NOTICED:.0f}"
    lines = []
    for head, prefix in PREFIXES.items():
        by_name = {words: values.get(prefix + key) for key, words in names.items()}
        parts = [f"{words} {value:.3f}" for words, value in by_name.items() if value is not None]
        if parts:
            lines.append(f"{HEADS[head]}: {', '.join(parts)}")
    return lines


def crop_spread(
    answers: Callable[..., Tensor], sums: Tensor, weights: Tensor, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """(E,) standard error of a score 0..100 by the choice of its crops, of (E, C, K) sums.

    The root mean square, over HALVES random halves of h of the C crops, of the half's score less
    the whole's, times sqrt(h / (C - h)), which is 1 where C is even: halves drawn without
    replacement scatter about the whole as the whole does about the truth (the delete-a-group
    jackknife, Shao & Wu 1989). nan for one crop.
    """
    count = sums.shape[1]
    half = count // 2
    if not half:
        return np.full(len(sums), np.nan)
    halves = torch.from_numpy(np.stack([rng.permutation(count)[:half] for _ in range(HALVES)]))
    parts = answers(sums[:, halves].sum(2), weights[:, halves].sum(2))[..., 0]
    whole = answers(sums.sum(1), weights.sum(1))[..., 0]
    error = 100 * (parts - whole[:, None]).double().square().mean(1).sqrt()
    return np.asarray((error * (half / (count - half)) ** 0.5).cpu().numpy())


class _HeadScores:
    """Scores 0..100 of one head on a shard; nan without such a head or a reference."""

    def __init__(
        self,
        student: Student,
        head: str,
        pair: tuple[Tensor, Tensor] | None,
        shard: Shard,
        rng: np.random.Generator,
    ) -> None:
        if pair is None:
            empty = np.full(len(shard.encodes), np.nan)
            self.pooled, self.spread, self.centre = empty, empty, empty
            self.single = np.full((len(shard.encodes), _units(shard)), np.nan)
            return
        answers = _answers_of(student, head, shard)
        # the crops of a region are one: they lie side by side
        shape = (len(shard.encodes), _units(shard), shard.region, -1)
        sums, weights = (x.reshape(shape).sum(2) for x in pair)
        with torch.inference_mode():
            if shard.places:
                # the regions of a moment as one picture, then over time, as of a title
                moment = torch.tensor([sorted({*shard.places}).index(p) for p in shard.places])
                count = torch.bincount(moment)
                groups = (
                    x.new_zeros(len(x), len(count), x.shape[-1]).index_add_(
                        1, moment.to(x.device), x
                    )
                    for x in (sums, weights)
                )
                moments, power = _percent(answers(*groups)), student.config.time_power
                self.pooled = _over_time(moments, count.numpy(), power)
            else:
                self.pooled = _percent(answers(sums.sum(1), weights.sum(1)))
            self.single = _percent(answers(sums, weights))
            self.spread = crop_spread(answers, sums, weights, rng)
        middle = self.single[:, (self.single.shape[1] - 1) // 2]
        self.centre = np.full_like(middle, np.nan) if shard.view is None else middle
        if not np.isfinite(self.pooled).all():
            raise InputError(f"the weights give no number for {shard.name}; train them anew")


def _over_time(
    values: npt.NDArray[np.float64], weights: npt.NDArray[Any], power: float
) -> npt.NDArray[np.float64]:
    """(E,) means over time of (E, T) values, as a title's score is that of its moments."""
    shares = torch.from_numpy(weights.astype(np.float64))
    return np.asarray(mean_over_time(torch.from_numpy(values).T, shares, power).numpy())


def _percent(answers: Tensor) -> npt.NDArray[np.float64]:
    return np.asarray(100 * answers[..., 0].double().cpu().numpy())


@torch.inference_mode()
def _sums(
    student: Student, shard: Shard, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """(E, C, K) fp32 sums and weights by head; `student` is on that device already."""
    count, height = shard.distorted.shape[1], _height(shard)
    reference = shard.reference if student.anchored is not None else None
    by_head: dict[str, list[list[Tensor]]] = {}
    try:
        with exact():
            for first in range(0, count, CLIPS_AT_ONCE):
                check_cancelled()
                part = slice(first, min(first + CLIPS_AT_ONCE, count))
                anchor = None
                if reference is not None:
                    anchor = student.anchor(to_clips(reference[part].to(device)), height)
                for e, clips in enumerate(shard.distorted[:, part]):
                    look = student.look(to_clips(clips.to(device)), anchor, height)
                    for head, pair in (("alone", look.alone), ("anchored", look.anchored)):
                        if pair is not None:
                            encodes = by_head.setdefault(head, [[] for _ in shard.encodes])
                            encodes[e].append(torch.stack(pair).float())
    except ValueError as error:
        raise InputError(f"the clips of {shard.name} do not fit the student: {error}") from error
    return {
        head: tuple(torch.stack([torch.cat(p, 1) for p in encodes]).unbind(1))  # type: ignore[misc]
        for head, encodes in by_head.items()
    }


def _other_metrics(
    shard: Shard, metrics: Sequence[str], ffmpeg: str
) -> dict[str, npt.NDArray[np.float64]]:
    """(E,) means of other metrics on a shard's crops; nan without a reference."""
    if not metrics or shard.reference is None:
        return {name: np.full(len(shard.encodes), np.nan) for name in metrics}
    # here, since it brings decoders, which training does without
    from vqaloop.quality.full_reference import measure_clips

    reference = shard.reference.numpy()
    tables = [
        measure_clips(reference, clips.numpy(), metrics, ffmpeg=ffmpeg)
        for clips in shard.distorted
    ]
    return {name: np.array([table[name].mean() for table in tables]) for name in metrics}


def _largest_error(
    shard: Shard,
    rows: list[dict[str, Any]],
    labels: npt.NDArray[np.float64],
    answers: _HeadScores,
) -> LargestError:
    """The encode with the largest error, and its worst region by (E, R) labels."""
    errors = np.abs(answers.pooled - [row["label"] for row in rows])
    worst = int(np.nan_to_num(errors).argmax())
    region = int(np.nan_to_num(np.abs(answers.single[worst] - labels[worst])).argmax())
    return LargestError(
        float(errors[worst]),
        rows[worst],
        region,
        _picture(shard.distorted[worst], shard, region),
        None if shard.reference is None else _picture(shard.reference, shard, region),
    )


def _picture(clips: Tensor, shard: Shard, region: int) -> Picture:
    """(S·3/2, S) middle frame of a region of (C, T, ·, ·) clips, its crops side by side."""
    first, middle = region * shard.region, clips.shape[1] // 2
    frames = clips[first : first + shard.region, middle].numpy()
    if shard.region != 4:
        return np.array(frames[0])
    size = frames.shape[-1]
    luma, chroma = frames[:, :size], frames[:, size:].reshape(4, 2, size // 2, size // 2)

    def joined(quarters: Picture) -> Picture:
        rows = np.concatenate([quarters[:2], quarters[2:]], -2)
        return np.concatenate([rows[0], rows[1]], -1)

    planes = [luma, chroma[:, 0], chroma[:, 1]]
    return np.concatenate([joined(plane).reshape(-1, 2 * size) for plane in planes])


def differences(
    table: pd.DataFrame, other: pd.DataFrame, *, draws: int = 1000, seed: int = 0
) -> dict[str, dict[str, Difference]]:
    """Differences of two students' figures on the same encodes, by head and figure.

    Args:
        table: Of `ShardScores`, of one student.
        other: The same of another, of the same shards.
        draws: Of the bootstrap behind the intervals.
        seed: Of the bootstrap.
    """
    found = {}
    plain = table["attack"].isna().to_numpy()
    for head in HEADS:
        there = plain & table[head].notna().to_numpy() & other[head].notna().to_numpy()
        if there.any():
            found[head] = paired_differences(
                table[head].to_numpy(float)[there],
                other[head].to_numpy(float)[there],
                table["label"].to_numpy(float)[there],
                list(table["content"][there]),
                draws=draws,
                seed=seed,
            )
    return found


def _correlations(
    part: pd.DataFrame, name: str, draws: int, seed: int, same_scale: bool | None = None
) -> Correlations:
    return correlations(
        part[name].to_numpy(float),
        part["label"].to_numpy(float),
        list(part["content"]),
        same_scale=name in HEADS if same_scale is None else same_scale,
        draws=draws,
        seed=seed,
    )


def _groups(part: pd.DataFrame, names: npt.NDArray[Any], judge: str) -> dict[str, Any]:
    ordered = sorted(set(names.tolist()), key=lambda n: (BANDS.index(n) if n in BANDS else 9, n))
    return {n: _correlations(part[names == n], judge, 0, 0).to_json() for n in ordered}

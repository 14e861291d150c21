"""The scale of opinion-trained weights: a monotone map from a student's answers to VMAF points.

The rules of a ladder are in VMAF points: its step, ceiling, floor and guard are of that scale.
Weights whose label is another one (mean opinion scores) carry such a map in their header, learnt
from the VMAF of the encodes they were trained on by isotonic regression (Barlow et al. 1972).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from vqaloop.core.documents import Finite, as_type, json_value
from vqaloop.errors import InputError

Values = npt.NDArray[np.float64]
Mode = Literal["anchored", "difference"]

HEADER_KEY = "scale"
"""Key of the map in the header of weights."""
MOST_KNOTS = 20
ENCODES_A_KNOT = 4
"""Fewest encodes behind a knot, so that none follows a single encode."""
LEAST_TITLES = 2
"""Titles that a map takes: its error is measured on titles left out."""
TILT = 0.002
"""Part of a straight line in the fitted levels, which makes nearly equal ones strictly rising."""


@dataclass(frozen=True)
class ScoreScale:
    """A monotone map from a student's answers to VMAF points, and how well it fits."""

    label: str
    """What the answers predict, such as "MOS of Waterloo IVC 4K"."""
    mode: Mode
    """anchored: of the anchored answer, 0..100. difference: of 100 minus by how much the
    no-reference answer on the source exceeds that on the encode, on the same clips."""
    to_vmaf: Annotated[
        tuple[tuple[Finite, Annotated[float, Meta(ge=0, le=100)]], ...],
        Meta(min_length=2, max_length=MOST_KNOTS),
    ]
    """Knots (answer, VMAF points), strictly ascending in both."""
    rmse: Annotated[float, Meta(ge=0, le=100)]
    """Root mean square error in VMAF points on titles left out of the fit."""
    encodes: Annotated[int, Meta(ge=2)]
    titles: Annotated[int, Meta(ge=LEAST_TITLES)]
    target: str
    """What the points predict, such as "VMAF v0.6.1, sampled"."""

    @classmethod
    def fit(
        cls,
        x: Sequence[float] | Values,
        vmaf: Sequence[float] | Values,
        titles: Sequence[str],
        label: str,
        mode: Mode,
        target: str,
    ) -> "ScoreScale":
        """Learn the map from encodes by isotonic regression.

        Args:
            x: The student's answers, see `mode`.
            vmaf: VMAF of the same encodes, 0..100.
            titles: The title of each encode.
            label: What the answers predict.
            mode: anchored or difference.
            target: What `vmaf` is.

        Returns:
            The map, with its error on titles left out, one after the other.

        Raises:
            InputError: The encodes are of fewer than LEAST_TITLES titles, or the answers do not
                rise with VMAF.
        """
        answers, points = np.asarray(x, np.float64), np.asarray(vmaf, np.float64)
        names = np.asarray(titles)
        known = sorted(set(titles))
        if len(known) < LEAST_TITLES:
            raise InputError(
                f"a map from {label} to VMAF takes encodes of at least {LEAST_TITLES} titles with "
                f"their sources, and there are {len(known)}; train on more of them"
            )
        knots = _fitted(answers, points)
        if len(knots) < 2:
            raise InputError(
                f"the answers ({label}, {mode}) do not rise with VMAF on the {len(answers)} "
                "encodes of training, so there is no map to VMAF points; train longer, or on "
                "encodes of more than one quality"
            )
        squares: list[float] = []
        for name in known:
            out = names == name
            rest = _fitted(answers[~out], points[~out])
            squares += ((_mapped(rest, answers[out]) - points[out]) ** 2).tolist()
        return cls(
            label=label,
            mode=mode,
            to_vmaf=tuple((float(a), float(b)) for a, b in knots),
            rmse=float(np.sqrt(np.mean(squares))),
            encodes=len(answers),
            titles=len(known),
            target=target,
        )

    def points(self, x: float) -> float:
        """VMAF points, 0..100, of an answer; beyond the knots along the outermost segments."""
        return float(_mapped(np.asarray(self.to_vmaf), np.asarray([x], np.float64))[0])

    def to_json(self) -> str:
        """As it stands in the header of weights."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, name: str) -> "ScoreScale":
        """The map in a header.

        Args:
            text: Of the header.
            name: What holds the header, for errors.

        Raises:
            InputError: It is no such map.
        """
        remedy = "train the weights again with sources, so that the map is learnt"
        document = json_value(text, f"the scale of {name} is no JSON", remedy)
        found = as_type(document, cls, f"the scale of {name}", remedy)
        if not (np.diff(np.asarray(found.to_vmaf), axis=0) > 0).all():
            raise InputError(f"the scale of {name} does not rise from knot to knot; {remedy}")
        return found


def _fitted(answers: Values, points: Values) -> Values:
    """(N, 2) knots, strictly ascending; a single one where the answers do not rise."""
    from scipy.optimize import isotonic_regression

    x, groups, counts = np.unique(answers, return_inverse=True, return_counts=True)
    means = np.bincount(groups, points) / counts
    result = isotonic_regression(means, weights=counts)
    starts = result.blocks[:-1]
    weight = np.add.reduceat(counts, starts)
    centres = np.add.reduceat(x * counts, starts) / weight
    levels = result.x[starts]
    # neighbouring blocks in equal shares of the encodes
    knots = max(2, min(MOST_KNOTS, len(answers) // ENCODES_A_KNOT))
    share = ((np.cumsum(weight) - weight / 2) / len(answers) * knots).astype(int)
    firsts = np.unique(share, return_index=True)[1]
    total = np.add.reduceat(weight, firsts)
    centres = np.add.reduceat(centres * weight, firsts) / total
    levels = np.add.reduceat(levels * weight, firsts) / total
    line = np.linspace(0.0, 100.0, len(levels)) if len(levels) > 1 else levels
    return np.column_stack([centres, (1 - TILT) * levels + TILT * line])


def _mapped(knots: Values, x: Values) -> Values:
    """Points of answers: linear between the knots and beyond them, within 0..100."""
    at, points = knots.T
    if len(knots) == 1:
        return np.full_like(x, points[0])
    segment = np.clip(np.searchsorted(at, x) - 1, 0, len(at) - 2)
    slope = np.diff(points)[segment] / np.diff(at)[segment]
    mapped: Values = np.clip(points[segment] + slope * (x - at[segment]), 0.0, 100.0)
    return mapped

"""The panel's score: VMAF v1, lowered where another member sees damage that v1 passes over.

On plain encodes the members agree with v1 up to a spread. For each member a curve says, level by
level of v1, below which value only a small share of plain encodes lies. Read the other way round
it gives the best quality at which a value of the member is still usual, and the panel's score is
the least of v1 and those. So on plain encodes the score is v1, a member counts only where it is
below what is usual, and the score rises with every member. (No sum of deficits has these
properties: members that agree with v1 would add to it.)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from vqaloop.core.documents import Finite, as_type, json_value
from vqaloop.errors import InputError

Values = npt.NDArray[np.float64]

V1 = "v1"
UNITS = {
    "neg": 0.5,
    "v0.6.1": 0.5,
    "cambi": -0.2,
    "xpsnr": 0.1,
    "ssimulacra2": 0.5,
    "fdim": 0.02,
    "cvvdp": 0.03,
}
"""Members, and the least change of each that is worth a point of v1, negative where higher is
worse: about half of what plain encodes show over the whole range. A member that hardly follows v1
on plain encodes would otherwise turn a small change into any damage."""
SHARES = (0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
"""Shares of plain encodes that may lie below a member's curve at each level."""
KEPT, NEAR = 0.8, 1.0
"""The least share of plain encodes whose score lies no more than so many points below v1: the
largest of SHARES is taken with which the members together leave that."""
BOTTOM = 20.0
"""No member lowers the score below this: there v1 says enough, and plain encodes too little."""
MOST_KNOTS = 20
LEAST = 100
"""Fewest plain encodes of a curve: fewer do not show what is usual."""
WINDOW = 50, 8
"""A level's encodes: at least so many, and one in so many of all."""


@dataclass(frozen=True)
class Member:
    """What is usual of one member on plain encodes."""

    name: str
    usual: Annotated[
        tuple[tuple[Annotated[float, Meta(ge=0, le=100)], Finite], ...],
        Meta(min_length=2, max_length=MOST_KNOTS),
    ]
    """Levels of v1, and the member's value that few plain encodes of that level lie below (above,
    where higher is worse); strictly monotone in both."""

    def ceiling(self, values: Values) -> Values:
        """The best quality at which such values are usual, BOTTOM..100; 100 where NaN."""
        sign = np.sign(UNITS[self.name])
        level, usual = np.asarray(self.usual).T
        x, usual = values * sign, usual * sign
        # beyond the lowest level along the whole curve's slope
        slope = (usual[-1] - usual[0]) / (level[-1] - level[0])
        below = level[0] - (usual[0] - x) / slope
        found = np.where(x < usual[0], below, np.interp(x, usual, level, right=100.0))
        return np.where(np.isnan(x), 100.0, np.maximum(found, BOTTOM))


@dataclass(frozen=True)
class Panel:
    """Members beside v1; without any the score is v1."""

    members: Annotated[tuple[Member, ...], Meta(max_length=len(UNITS))] = ()

    def fuse(self, labels: npt.ArrayLike, names: Sequence[str]) -> Values:
        """The panel's scores.

        Args:
            labels: (..., M) in raw units; NaN where not measured, which leaves a member out.
            names: Of the M columns; "v1" is among them, other members of the panel may lack.

        Returns:
            (...) scores, 0..100, never above v1; NaN where v1 is.

        Raises:
            InputError: There is no v1, or not a name for each column.
        """
        table = _table(labels, names)
        score = np.clip(table[V1], 0.0, 100.0)
        for member in self.members:
            if member.name in table:
                score = np.minimum(score, member.ceiling(table[member.name]))
        return score

    def to_json(self) -> str:
        """As it stands in the header of weights."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, name: str) -> "Panel":
        """The panel in a header.

        Args:
            text: Of the header.
            name: What holds the header, for errors.

        Raises:
            InputError: It is no such panel.
        """
        remedy = "train the weights again"
        document = json_value(text, f"the panel of {name} is no JSON", remedy)
        found = as_type(document, cls, f"the panel of {name}", remedy)
        names = [member.name for member in found.members]
        if len(set(names)) < len(names) or not set(names) <= UNITS.keys():
            known = ", ".join(UNITS)
            raise InputError(
                f"the panel of {name} has members {names}, not each once of {known}; {remedy}"
            )
        for member in found.members:
            steps = np.diff(np.asarray(member.usual), axis=0) * [1.0, np.sign(UNITS[member.name])]
            if not (steps > 0).all():
                raise InputError(
                    f"the panel of {name}: {member.name} is not monotone in v1; {remedy}"
                )
        return found


def fit(
    labels: npt.ArrayLike,
    names: Sequence[str],
    plain: npt.ArrayLike,
    members: Sequence[str] = tuple(UNITS),
) -> Panel:
    """Learn from plain encodes what is usual of each member.

    Args:
        labels: (N, M) in raw units, of encodes with and without other damage; NaN where not
            measured.
        names: Of the M columns.
        plain: (N,) whether an encode has no other damage than its codec's.
        members: Names among UNITS. One that was measured on fewer than LEAST plain encodes, or
            on a single level of quality, is left out.

    Raises:
        InputError: A member is unknown, there is no v1, or it was measured on too few.
    """
    unknown = sorted(set(members) - UNITS.keys())
    if unknown:
        raise InputError(f"no members of a panel: {unknown}; choose among {', '.join(UNITS)}")
    whole = _table(labels, names)
    chosen = np.asarray(plain, bool) & np.isfinite(whole[V1])
    table = {name: column[chosen] for name, column in whole.items()}
    if chosen.sum() < LEAST:
        raise InputError(
            f"a panel is learnt from at least {LEAST} plain encodes with VMAF v1, and there are "
            f"{chosen.sum()}; make a larger corpus"
        )
    measured = [
        name
        for name in dict.fromkeys(members)
        if name in table and np.isfinite(table[name]).sum() >= LEAST
    ]
    for share in SHARES:
        curves = (_member(name, table[V1], table[name], share) for name in measured)
        panel = Panel(tuple(curve for curve in curves if curve is not None))
        loss = table[V1] - panel.fuse(np.stack(list(table.values()), -1), list(table))
        if (loss <= NEAR).mean() >= KEPT:
            break
    return panel


def _table(labels: npt.ArrayLike, names: Sequence[str]) -> dict[str, Values]:
    """Columns by name."""
    values = np.asarray(labels, np.float64)
    if V1 not in names or values.ndim < 1 or values.shape[-1] != len(names):
        raise InputError(
            f"labels of shape {values.shape} with the columns {list(names)}: a panel takes a name "
            f"for each column, {V1} among them"
        )
    return {name: values[..., index] for index, name in enumerate(names)}


def _member(name: str, v1: Values, values: Values, share: float) -> Member | None:
    """The curve of a member below which `share` of the encodes lie at each level of v1.

    None where the encodes are all of one level.
    """
    from scipy.optimize import isotonic_regression

    unit, sign = abs(UNITS[name]), np.sign(UNITS[name])
    there = np.isfinite(values)
    order = np.argsort(v1[there], kind="stable")
    level, x = v1[there][order], values[there][order] * sign
    width = min(len(x), max(WINDOW[0], len(x) // WINDOW[1]))
    knots: list[tuple[float, float]] = []
    for first in np.linspace(len(x) - width, 0, MOST_KNOTS).astype(int):
        at, near = level[first : first + width], x[first : first + width]
        # neighbouring knots a point apart at least, the uppermost level among them
        if knots and knots[-1][0] - at.mean() < 1:
            continue
        # along the slope inside the window, or its lower levels would pass for unusual ones
        spread = at - at.mean()
        slope = max(0.0, float(spread @ near) / max(float(spread @ spread), 1e-9))
        knots.append((float(at.mean()), float(np.quantile(near - slope * spread, share))))
    if len(knots) < 2:
        return None
    levels, lows = np.array(knots[::-1]).T
    usual = isotonic_regression(lows).x
    for index in range(len(levels) - 2, -1, -1):
        # no steeper the other way round than a point of v1 a unit
        usual[index] = min(usual[index], usual[index + 1] - unit * np.diff(levels)[index])
    curve = zip(levels.tolist(), (usual * sign).tolist(), strict=True)
    return Member(name, tuple((at, value) for at, value in curve))

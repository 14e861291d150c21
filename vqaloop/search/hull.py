"""From points to a ladder: the hull over resolutions, the choice of rungs.

Plain arithmetic on RDPoints; nothing here touches files, encoders or models.
"""

import math
from collections.abc import Iterable

import numpy as np

from vqaloop.records import RDPoint

GRID = 256
"""Rates, evenly spaced in log rate, at which resolutions are weighed against each other."""


def convex_hull(points: Iterable[RDPoint]) -> list[RDPoint]:
    """The upper left hull in the plane of rate and score, ascending in both (monotone chain)."""
    chain: list[RDPoint] = []
    for point in sorted(points, key=lambda p: (p.bitrate_kbps, -p.score)):
        if chain and point.score <= chain[-1].score:
            continue
        # the last point lies under the line from the one before it to this one
        while len(chain) >= 2 and _slope(chain[-2], chain[-1]) <= _slope(chain[-1], point):
            chain.pop()
        chain.append(point)
    return chain


def _slope(a: RDPoint, b: RDPoint) -> float:
    return (b.score - a.score) / (b.bitrate_kbps - a.bitrate_kbps)


def front(points: Iterable[RDPoint]) -> list[RDPoint]:
    """Points that no cheaper point equals or beats in score, ascending."""
    kept: list[RDPoint] = []
    for point in sorted(points, key=lambda p: (p.bitrate_kbps, -p.score)):
        if not kept or point.score > kept[-1].score:
            kept.append(point)
    return kept


def rising_front(points: Iterable[RDPoint]) -> list[RDPoint]:
    """The best front on which resolution never falls while the rate rises.

    Where two resolutions are as good as each other the plain front hops between them; a ladder
    must not. Each rate of a grid is given one resolution, none smaller than at the rate below, so
    that the sum of scores over log rate is largest (dynamic programming); the points of that
    resolution at that rate make the front.
    """
    by_size: dict[tuple[int, int], list[RDPoint]] = {}
    for point in points:
        by_size.setdefault(point.size, []).append(point)
    groups = {size: front(group) for size, group in by_size.items()}
    sizes = sorted(groups, key=lambda size: size[0] * size[1])
    rates = [[math.log(p.bitrate_kbps) for p in groups[size]] for size in sizes]
    if not sizes:
        return []
    grid = np.linspace(min(map(min, rates)), max(map(max, rates)), GRID)
    # A size can be had from its lowest rate on (the cell nearest to that point begins half a cell
    # below); more than its highest need not be spent, so it keeps its score beyond, where there
    # may be a gap before the next size begins.
    half = (grid[-1] - grid[0]) / (GRID - 1) / 2
    scores = np.array(
        [
            np.interp(grid, rate, [p.score for p in groups[size]]) * (rate[0] - half <= grid)
            for rate, size in zip(rates, sizes, strict=True)
        ]
    )
    # best sum of scores so far, by the size given to the current cell; sizes ascend, so that a
    # cell may only follow one of the same or a smaller size
    total = scores[:, 0].copy()
    came_from = np.zeros((len(sizes), GRID), int)
    for i in range(1, GRID):
        below = [int(np.argmax(total[: k + 1])) for k in range(len(sizes))]
        came_from[:, i] = below
        total = total[below] + scores[:, i]
    # back from the best last cell along the choices that led there
    given = np.empty(GRID, int)
    given[-1] = int(np.argmax(total))
    for i in range(GRID - 1, 0, -1):
        given[i - 1] = came_from[given[i], i]
    # a point counts where the cell nearest to its rate was given its size
    return front(
        point
        for k, size in enumerate(sizes)
        for point, rate in zip(groups[size], rates[k], strict=True)
        if given[int(np.argmin(np.abs(grid - rate)))] == k
    )

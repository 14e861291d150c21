"""The store of priors: those shipped with the package, and the finished titles of this machine.

Of every finished title the measured points are kept, and what its pictures hold, as numbers
without names: one small file a title, encoder, preset and metric, in `titles` beside the cache,
MOST_TITLES of each kind. Delete the folder, or run with `--prior none`, and nothing is kept or
used. Own titles count with `--prior own` alone: by default a search begins with the shipped prior,
so that the same command gives the same answer whatever was made before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vqaloop.core.files import renamed_to
from vqaloop.core.folders import cache_folder
from vqaloop.errors import InputError
from vqaloop.media.content import Content
from vqaloop.records import RDPoint
from vqaloop.search.prior import (
    NO_LINK,
    ContentPrior,
    Link,
    Prior,
    TitlePoints,
    Values,
    learn,
    learn_content,
)
from vqaloop.search.space import Space
from vqaloop.search.surrogates import as_title

SHIPPED = Path(__file__).parent / "priors.json"
MOST_TITLES = 100
"""Titles of one encoder, preset and metric that are kept; the oldest go first."""
LEAST_TITLES = 5
"""Least number of titles to learn a prior from, where none is shipped."""
ROUNDS = 3
"""Iterations of EM that start from a shipped prior."""
LEAST_POINTS = 5
"""Least number of points of a title that is kept."""
LARGEST = 64.0
"""Bound on the numbers kept, which are logarithms and shares: a larger one is not ours."""

PriorUse = Literal["shipped", "own", "none"]
"""What a search begins with: the shipped prior, that updated by this machine's titles, or none."""

Kind = tuple[str, str, str]
"""Encoder, preset and metric: what titles must have in common to share a prior."""


@dataclass(frozen=True)
class _Own:
    """A title of this machine."""

    name: str
    points: TitlePoints
    content: tuple[float, ...]
    """What its pictures hold; empty where that is not known."""


_snapshot: ContextVar[Mapping[str, Any] | None] = ContextVar("snapshot", default=None)


def shipped_prior(encoder: str, metric: str) -> Prior | None:
    """The prior shipped for an encoder and a metric, or None."""
    found = _shipped(encoder, metric)
    return prior_of(found) if found else None


def shipped_content_prior(encoder: str, metric: str) -> ContentPrior | None:
    """The same, for a title of which is known what its pictures hold."""
    found = _shipped(encoder, metric)
    return content_prior_of(found["content"]) if found else None


def _shipped(encoder: str, metric: str) -> Any:
    return json.loads(SHIPPED.read_text("utf-8"))["encoders"].get(encoder, {}).get(metric)


def snapshot(kinds: Iterable[Kind]) -> dict[str, dict[str, Any]]:
    """This machine's own titles as they are now, as JSON: tables by name, by kind.

    With `using_snapshot` every title of a catalogue begins with the same prior, however many
    finish meanwhile.
    """
    return {"/".join(kind): _tables(kind) for kind in kinds}


@contextlib.contextmanager
def using_snapshot(taken: Mapping[str, Any]) -> Iterator[None]:
    """While inside, in this thread, own titles are those of a snapshot."""
    token = _snapshot.set(taken)
    try:
        yield
    finally:
        _snapshot.reset(token)


def prior_use(asked: str | bool) -> PriorUse:
    """The value of `prior`; True and False are what "own" and "none" were once called.

    Raises InputError for another.
    """
    if asked is False or asked == "none":
        return "none"
    if asked is True or asked == "own":
        return "own"
    if asked == "shipped":
        return "shipped"
    raise InputError(f"the prior {asked!r} is none of shipped, own and none; choose one of them")


def chosen_prior(
    use: PriorUse,
    encoder: str,
    preset: str,
    metrics: Sequence[str],
    excluded: str,
    content: Content | None = None,
) -> Prior | None:
    """The prior to begin with, or None.

    Args:
        use: Which one.
        encoder: ffmpeg's name of it.
        preset: Its preset; own titles of others do not count.
        metrics: Names, of which the first that there is a prior for counts.
        excluded: SHA-256 of a source whose own points do not count.
        content: What the title's pictures hold; None: not known, and the prior is that of all.
    """
    if use == "none":
        return None
    for metric in metrics:
        every = _own_titles((encoder, preset, metric)) if use == "own" else []
        # a title is not to be predicted from itself
        own = [title for title in every if title.name != _name(excluded)]
        if (found := _prior_from(encoder, metric, own, content)) is not None:
            return found
    return None


def current_prior(
    encoder: str,
    preset: str,
    metrics: Sequence[str],
    excluded: str,
    content: Content | None = None,
) -> Prior | None:
    """The chosen prior with this machine's own titles."""
    return chosen_prior("own", encoder, preset, metrics, excluded, content)


def _prior_from(
    encoder: str, metric: str, own: Sequence[_Own], content: Content | None
) -> Prior | None:
    """The shipped prior, updated by own titles; learnt from these alone where none is shipped."""
    shipped = _shipped(encoder, metric)
    if shipped is None:
        return learn([title.points for title in own]) if len(own) >= LEAST_TITLES else None
    if content is None:
        start = prior_of(shipped)
        return learn([title.points for title in own], start, ROUNDS) if own else start
    known = content_prior_of(shipped["content"])
    pairs = [(title.points, title.content) for title in own if title.content]
    if pairs:
        points, contents = zip(*pairs, strict=True)
        known = learn_content(points, contents, known, ROUNDS)
    return known.at(content.values())


def remember(
    encoder: str,
    preset: str,
    metric: str,
    source: str,
    space: Space,
    points: Sequence[RDPoint],
    top: float,
    content: Content | None = None,
) -> None:
    """Store a finished title's points; a folder that cannot be written to is passed over."""
    if len(points) < LEAST_POINTS:
        return
    title = as_title(space, points, top)
    columns = {key: np.round(getattr(title, key), 5).tolist() for key in _COLUMNS}
    if content:
        columns["content"] = np.round(content.values(), 5).tolist()
    with contextlib.suppress(OSError):
        folder = _folder(encoder, preset, metric)
        folder.mkdir(parents=True, exist_ok=True)
        with renamed_to(folder / f"{_name(source)}.json") as part:
            part.write_text(json.dumps(columns), encoding="utf-8")
        # every search reads them all, so their number is bounded
        files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST_TITLES]:
            path.unlink(missing_ok=True)


_COLUMNS = ("u", "q", "rate", "score")


def _own_titles(kind: Kind) -> list[_Own]:
    """This machine's own titles, by name; those that cannot be read are passed over."""
    taken = _snapshot.get()
    tables = _tables(kind) if taken is None else taken.get("/".join(kind))
    return _checked(tables) if isinstance(tables, Mapping) else []


def _tables(kind: Kind) -> dict[str, Any]:
    """The files of a kind, by name; those that are no JSON are passed over."""
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted(_folder(*kind).glob("*.json"))[:MOST_TITLES]:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                found[path.stem] = json.loads(path.read_text("utf-8"))
    return found


def _checked(tables: Mapping[str, Any]) -> list[_Own]:
    """The tables that are what `remember` writes."""
    found = []
    for name, table in list(tables.items())[:MOST_TITLES]:
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            columns = [np.asarray(table[key], float) for key in _COLUMNS]
            whole = {c.shape for c in columns} == {(columns[0].size,)}
            # logarithms and shares: a larger one, or no number, was not written here
            sane = whole and all((np.abs(c) < LARGEST).all() for c in columns)
            if sane and columns[0].size >= LEAST_POINTS:
                points = TitlePoints(*(c[:100] for c in columns))
                found.append(_Own(name, points, _checked_content(table.get("content"))))
    return found


def _checked_content(table: Any) -> tuple[float, ...]:
    """What a title's pictures hold; nothing where it was not kept, or is damaged."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        values = np.asarray(table, float)
        if values.shape == (len(fields(Content)),) and (np.abs(values) < LARGEST).all():
            return tuple(values.tolist())
    return ()


def _folder(encoder: str, preset: str, metric: str) -> Path:
    return cache_folder() / "titles" / encoder / preset / metric


def _name(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:32]


def prior_json(prior: Prior) -> dict[str, Any]:
    """A prior as JSON: the covariance by its lower half."""
    found = {
        "titles": prior.titles,
        "mean": np.round(prior.mean, 5).tolist(),
        "spread": _lower(prior.spread),
    }
    return found if prior.link is NO_LINK else {**found, "link": link_json(prior.link)}


def prior_of(found: Mapping[str, Any]) -> Prior:
    """A prior from its JSON."""
    mean = np.array(found["mean"], float)
    link = link_of(found["link"]) if "link" in found else NO_LINK
    return Prior(mean, _mirrored(found["spread"], len(mean)), float(found["titles"]), link)


def link_json(link: Link) -> dict[str, Any]:
    """A link as JSON."""
    return {
        "mean": np.round(link.mean, 5).tolist(),
        "spread": _lower(link.spread),
        "rest": np.round(link.rest, 5).tolist(),
    }


def link_of(found: Mapping[str, Any]) -> Link:
    """A link from its JSON."""
    mean = np.array(found["mean"], float)
    return Link(mean, _mirrored(found["spread"], len(mean)), np.array(found["rest"], float))


def content_prior_json(prior: ContentPrior) -> dict[str, Any]:
    """A prior on titles' content as JSON, symmetric matrices by their lower halves."""
    return {
        "titles": prior.titles,
        "centre": np.round(prior.centre, 5).tolist(),
        "scale": np.round(prior.scale, 5).tolist(),
        "weights": np.round(prior.weights, 5).tolist(),
        "spread": _lower(prior.spread),
        "precision": _lower(prior.precision),
    }


def content_prior_of(found: Mapping[str, Any]) -> ContentPrior:
    """A prior on titles' content from its JSON."""
    centre, scale, weights = (
        np.array(found[name], float) for name in ("centre", "scale", "weights")
    )
    spread = _mirrored(found["spread"], len(weights))
    precision = _mirrored(found["precision"], 1 + len(centre))
    return ContentPrior(centre, scale, weights, spread, precision, float(found["titles"]))


def _lower(matrix: Values) -> list[float]:
    rows, columns = np.tril_indices(len(matrix))
    half: list[float] = np.round(matrix[rows, columns], 6).tolist()
    return half


def _mirrored(half: Sequence[float], size: int) -> Values:
    rows, columns = np.tril_indices(size)
    matrix = np.zeros((size, size))
    matrix[rows, columns] = half
    return matrix + np.tril(matrix, -1).T

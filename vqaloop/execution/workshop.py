"""Encodes and scores of renditions through the cache.

Nothing is encoded or scored twice: not in this run, not in another, not by two processes at once.
"""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vqaloop.core import scopes
from vqaloop.core.cpu_time import Busy
from vqaloop.core.files import file_sha256, scratch
from vqaloop.encoding.options import output_options
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import DecodeFailed, EncodeFailed
from vqaloop.execution.cache import Cache
from vqaloop.execution.cache_keys import ScoreSettings, encode_key, score_key
from vqaloop.execution.executor import Executor, Suiting, calls_at_once, executor_of
from vqaloop.media.activity import activity_of
from vqaloop.quality import full_reference
from vqaloop.quality.guard import Guarded, GuardPlan, guard_plan
from vqaloop.quality.metric import identity_on
from vqaloop.quality.time_pooling import pooled
from vqaloop.records import Encode, Rendition, Score, Source, Trial

if TYPE_CHECKING:
    from vqaloop.quality.metric import Metric

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass
class Cost:
    """What a run spent. Seconds of encoding and scoring are CPU seconds."""

    encodes: int = 0
    encoded_frames: int = 0
    encoded_pixels: int = 0
    encode_cpu_s: float = 0.0
    score_s: float = 0.0
    guard_s: float = 0.0
    cache_hits: int = 0


class Workshop:
    """Makes encodes and scores of one title with one encoder and one metric, and counts."""

    def __init__(
        self,
        spec: EncoderSpec,
        metric: "Metric",
        cache: Cache,
        *,
        ffmpeg: str,
        workers: int | Executor | None = 1,
        timeout_s: float | None = None,
        pool: str = "mean",
    ) -> None:
        self.pool = pool
        self.spec, self.metric, self.ffmpeg = spec, metric, ffmpeg
        self.executor, self.timeout_s = executor_of(workers), timeout_s
        if isinstance(self.executor, Suiting):
            self.metric = self.executor.suited(metric)
        # a limit of wall time means an encode that has the machine to itself
        self.at_once = calls_at_once(self.executor) if timeout_s is None else self.workers
        """Calls that `map` makes at a time."""
        self.beside = scopes.Beside(self.at_once)
        """For what is needed later and may be made meanwhile; it ends with the workshop."""
        self.cost, self.busy = Cost(), Busy()
        self.remarks: list[str] = []
        """Failures that were overcome, in words."""
        self._failed_twice: set[tuple[int, int]] = set()
        self._made: set[Path] = set()
        self._counting = threading.Lock()
        self._folder = scratch()
        # without a cache of its own a run still keeps what it made itself, as long as it lasts
        self.cache = cache if cache.enabled else Cache(self.scratch / "cache")

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        self.beside.close()
        self._folder.cleanup()

    @property
    def workers(self) -> int:
        """Encodes or scores at a time that were asked for; 1 where the executor chooses."""
        return self.executor.workers

    @contextlib.contextmanager
    def one_by_one(self) -> Iterator[None]:
        """While inside, no more at a time than was asked for: what is timed is not disturbed."""
        before, self.at_once = self.at_once, self.workers
        try:
            yield
        finally:
            self.at_once = before

    @property
    def scratch(self) -> Path:
        """A folder that is removed when the workshop closes."""
        return Path(self._folder.name)

    def map(self, work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """`work` of every item, in their order; several at a time where `at_once` says so."""
        if self.at_once == 1 or len(items) <= 1:
            return [work(item) for item in items]
        with scopes.team(self.at_once) as submit:
            jobs = [submit(work, item) for item in items]
            left = set(jobs)
            while left:
                # in the order in which they end: the first may take long, another have failed
                ended, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
                scopes.check_cancelled()
                for job in ended:
                    job.result()
            return [job.result() for job in jobs]

    def scoring(self, source: Source) -> dict[str, Any]:
        """All that decides a trial's score apart from the two files, for names of studies."""
        own = identity_on(self.metric, source)
        return own if self.pool == "mean" else {**own, "pool": self.pool}

    def try_one(
        self, source: Source, rendition: Rendition, starts: Sequence[int] | None = None
    ) -> Trial:
        """Encode and score; a failed encode or decode becomes a trial with its reason.

        `starts`: as of `score`.
        """
        try:
            made = self.encode(source, rendition)
            return _as_trial(made, self.score(source, made.path, starts=starts))
        except (EncodeFailed, DecodeFailed) as error:
            return Trial(rendition, error=str(error))

    def recalled(
        self, source: Source, rendition: Rendition, starts: Sequence[int] | None = None
    ) -> Trial | None:
        """The trial as the cache has it, for which the source's file need not be there; None
        where anything of it is to be made."""
        made = self._kept(self._encode_key(source, rendition), rendition)
        if made is None:
            return None
        own = ScoreSettings(**identity_on(self.metric, source))
        score = self._stored(score_key(source, file_sha256(made.path), own))
        return _as_trial(made, self.pooled(source, score, starts)) if score else None

    def keeps(self, source: Source, rendition: Rendition) -> bool:
        """Whether the cache has the encode of a rendition, which is not read for that."""
        return self.cache.has_file(self._encode_key(source, rendition))

    def _encode_key(self, source: Source, rendition: Rendition) -> dict[str, Any]:
        options = output_options(self.spec, rendition, source)
        words = [word for pair in options.items() for word in pair]
        version = encoder_version(self.spec, self.ffmpeg)
        return encode_key(source, words, file_sha256(self.ffmpeg), version)

    def _kept(self, key: dict[str, Any], rendition: Rendition) -> Encode | None:
        """The encode that the cache has under `key`."""
        found = self.cache.get_file(key)
        if found is None:
            return None
        self.count(cache_hits=1)
        path, meta = found
        for name in ("ffmpeg_args", "first_pass_args"):
            # entries of one pass have no other
            meta[name] = tuple(meta.get(name, ()))
        return Encode(**meta, rendition=rendition, path=path, cached=True)

    def encode(self, source: Source, rendition: Rendition) -> Encode:
        """The encode of a rendition, from the cache where it is there."""
        key = self._encode_key(source, rendition)
        with self.cache.lock(key):
            # inside the lock: another process may just have made it
            if found := self._kept(key, rendition):
                return found
            out = self.scratch / f"{abs(hash(rendition))}-{source.sha256[:12]}{self.spec.suffix}"
            made = self._encoded(source, rendition, out)
            # each pass encodes the whole title
            passes = 2 if made.first_pass_args else 1
            self.count(
                encodes=passes,
                encoded_frames=passes * made.frames,
                encoded_pixels=passes * made.frames * rendition.width * rendition.height,
                encode_cpu_s=made.cpu_s,
            )
            meta = asdict(made)
            if not made.first_pass_args:
                del meta["first_pass_args"]
            # these depend on who asks, not on the encode
            for derived in ("rendition", "path", "cached"):
                del meta[derived]
            made = replace(made, path=self.cache.put_file(key, made.path, meta))
            self._made.add(made.path)
            return made

    def has_made(self, encode: Encode) -> bool:
        """Whether an encode is of this run, and not of an earlier one from the cache."""
        return encode.path in self._made

    def note_joined(self, whole: Encode, parts: Iterable[Encode]) -> None:
        """That a file is joined of encodes: it is of this run where they all are."""
        if all(map(self.has_made, parts)):
            self._made.add(whole.path)

    def _encoded(self, source: Source, rendition: Rendition, out: Path) -> Encode:
        """A new encode; made a second time where the first failure may be transient."""

        def attempt() -> Encode:
            try:
                with self.busy.during():
                    return self.executor.encode(
                        source,
                        rendition,
                        out,
                        ffmpeg=self.ffmpeg,
                        timeout_s=self.timeout_s,
                        whose=id(self),
                    )
            except EncodeFailed:
                self.count(encodes=1)
                raise

        size = rendition.width, rendition.height
        try:
            return attempt()
        except EncodeFailed as error:
            # a size that failed twice will not succeed at another knob by chance
            if not error.again or size in self._failed_twice:
                raise
            remark = f"{error}; it was made again"
        try:
            made = attempt()
        except EncodeFailed:
            self._failed_twice.add(size)
            raise
        self.remarks.append(remark)
        log.warning("%s", remark)
        return made

    def score(
        self,
        source: Source,
        path: Path,
        metric: "Metric | None" = None,
        starts: Sequence[int] | None = None,
    ) -> Score:
        """The score of an encode of `source`, by the workshop's metric or another, and its pool.

        `starts`: first frames of the scenes of `source`; None: as its activity has them.
        """
        return self.pooled(source, self._scored(source, path, metric or self.metric), starts)

    def pooled(self, source: Source, score: Score, starts: Sequence[int] | None = None) -> Score:
        """A score over time of an encode of `source` by the workshop's pool."""
        if self.pool == "min-scene" and starts is None:
            starts = activity_of(source).starts
        return pooled(score, self.pool, source.fps, starts or (0,))

    def _scored(self, source: Source, path: Path, metric: "Metric") -> Score:
        """The score as the metric gives it, which alone is cached."""
        key = score_key(source, file_sha256(path), ScoreSettings(**identity_on(metric, source)))
        found = self._stored(key)
        if found is None:
            found = self.executor.measure(metric, source, path, self.spec.decoder, id(self))
            self._store(key, found)
            self.count(score_s=found.cpu_s)
        return found

    def guard_plan(self, source: Source, mode: str | None) -> GuardPlan | None:
        """What the guard measures of encodes of a source; None by `--guard off`."""
        if mode == "off":
            return None
        return guard_plan(source, self.ffmpeg, mode, self.spec.decoder)

    def guard(self, source: Source, path: Path, plan: GuardPlan) -> Guarded:
        """Figures of an encode by other metrics than the workshop's."""
        own, found = self.metric.name, {}
        if own in plan.every and (plan.sampling or plan.every[own] > 1):
            # what steers takes all frames, and has done so already
            found[own] = self._scored(source, path, self.metric)
            plan = plan.only([name for name in plan.every if name != own])
        return Guarded.of(found | self.measured(source, path, plan), source)

    def measured(self, source: Source, path: Path, plan: GuardPlan) -> dict[str, Score]:
        """Full-reference scores of an encode: one run of ffmpeg for all that the cache lacks."""
        decoder, sha256 = file_sha256(self.ffmpeg), file_sha256(path)
        revision = f"classical {full_reference.REVISION}"
        keys = {}
        for name in plan.every:
            settings = ScoreSettings(
                name, decoder, preprocessing=revision, sampling=plan.identity(name)
            )
            keys[name] = score_key(source, sha256, settings)
        stored = {name: self._stored(key) for name, key in keys.items()}
        found = {name: score for name, score in stored.items() if score is not None}
        missing = [name for name in plan.every if name not in found]
        if missing:
            fresh = self.executor.guard(
                source, path, plan.only(missing), ffmpeg=self.ffmpeg, whose=id(self)
            )
            for name, score in fresh.items():
                self._store(keys[name], score)
                self.count(guard_s=score.cpu_s)
            found |= fresh
        return {name: found[name] for name in plan.every}

    def _stored(self, key: dict[str, Any]) -> Score | None:
        """The score that the cache has under `key`."""
        stored = self.cache.get_json(key)
        if stored is None:
            return None
        self.count(cache_hits=1)
        # JSON has lists where Score has tuples
        stored["clips"] = tuple(stored["clips"])
        stored["interval"] = tuple(stored["interval"]) if stored["interval"] else None
        for name in ("places", "moments"):
            stored[name] = tuple(map(tuple, stored.get(name, ())))
        stored["shares"] = tuple(stored.get("shares", ()))
        score = Score(**stored)
        # entries of earlier versions lack the shares by which places are pooled
        lacking = self.pool != "mean" and score.moments and not score.shares
        return None if lacking else score

    def _store(self, key: dict[str, Any], score: Score) -> None:
        self.cache.put_json(key, asdict(score))

    def count(self, **spent: float) -> None:
        """Add to the cost; safe from any thread."""
        with self._counting:
            for name, value in spent.items():
                setattr(self.cost, name, getattr(self.cost, name) + value)


def _as_trial(made: Encode, score: Score) -> Trial:
    # as PSNR of an encode without loss
    if not math.isfinite(score.value):
        error = f"{made.rendition}: the score is {score.value}"
        return Trial(made.rendition, error=error, encode=made)
    return Trial(made.rendition, made.bitrate_kbps, score.value, encode=made, mean=score.mean)

"""Per-shot ladders: the rungs' scenes, joined to files that keep their peaks, scored as wholes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqaloop.bitstream.packets import Packet, stream_packets
from vqaloop.encoding.options import cap_of, encoded_knob
from vqaloop.errors import TargetUnreachable
from vqaloop.execution.capping import HELD, PeakLimit, clipping_rate, next_rate, peaks_of
from vqaloop.ladder.stage import SearchResult
from vqaloop.ladder.steps import Checked
from vqaloop.ladder.warnings import (
    NO_LADDER_CAPPED,
    Starved,
    capped_away_warning,
    lost_warning,
    rules_warnings,
    starved_warning,
)
from vqaloop.media.scene_cuts import Scene
from vqaloop.quality.registry import kindred
from vqaloop.quality.sampling_precision import unreached
from vqaloop.ratecontrol.concat import join
from vqaloop.ratecontrol.joined_encode import joined_encode
from vqaloop.ratecontrol.shot_search import ShotRung, ShotSearch, ShotTitle
from vqaloop.records import RDPoint, RungScene, Trial, rounded
from vqaloop.search.prior_store import PriorUse, chosen_prior
from vqaloop.search.rungs import LEAST_RUNGS, keep_rules

if TYPE_CHECKING:
    from vqaloop.execution.session import Session
    from vqaloop.ladder.options import LadderOptions
    from vqaloop.ladder.steps import Loop

MOST_BOUNDS = 3
"""Times that the bound of a rung's scenes is tightened until its file keeps its own."""
NO_CUTS = "the title has no cuts: --per-shot has nothing to share out, and every rung has one knob"


@dataclass(frozen=True)
class JoinedRung:
    """A rung's file as joined."""

    rung: ShotRung
    choices: Mapping[Scene, Trial]
    """The encodes it is made of; under a cap others than the rung's own."""
    path: Path
    packets: Sequence[Packet]


@dataclass(frozen=True)
class PerShot:
    """The ladder of a title's scenes."""

    found: SearchResult
    search: ShotSearch
    checked: Sequence[Checked]

    def about(self, rungs: int) -> dict[str, Any]:
        """What ladder.json has beside the rungs."""
        title, search = self.search.title, self.search
        whole = search.work.frames / title.source.frames
        return {
            "per_shot": {
                "scenes": len(title.scenes),
                "scene_floor": rounded(title.least_below),
                # pixels encoded over those of the title at the same size
                "equivalents": rounded(whole),
                "equivalents_per_rung": rounded(whole / rungs),
            },
            "scene_trials": [
                {
                    "start_frame": scene.start_frame,
                    "end_frame": scene.end_frame,
                    "width": size[0],
                    "height": size[1],
                    "knob": knob,
                    "bitrate_kbps": rounded(trial.bitrate_kbps),
                    "score": rounded(trial.score),
                    "error": trial.error,
                }
                for (scene, size, knob), trial in search.trials.items()
            ],
        }


def per_shot(
    session: Session[LadderOptions], loop: Loop, scenes: Sequence[Scene], prior: PriorUse
) -> PerShot:
    """The rungs of a title's scenes, encoded, joined, capped and scored.

    Raises TargetUnreachable when fewer than two rungs are left.
    """
    options, source, metric = session.options, session.source, session.metric
    # scenes have the same GOPs in all codecs
    loop.gop = None
    title = ShotTitle(
        session.shop,
        source,
        scenes,
        session.sizes,
        loop.rendition,
        options.progress,
        options.scene_floor,
    )
    known = chosen_prior(prior, session.spec.name, session.preset, kindred(metric), source.sha256)
    search = ShotSearch(title, loop.rules, known)
    made = search.run()
    loop.warnings += [f"a trial failed and was left out: {text}" for text in search.failures()]
    chosen = search.chosen(made)
    points = [rung.point for rung in made]
    if len(chosen) < LEAST_RUNGS:
        if not points:
            raise TargetUnreachable("no rung could be made: " + "; ".join(loop.warnings)[:1500])
        raise TargetUnreachable(loop.too_few([rung.point for rung in chosen], points))
    loop.warnings += rules_warnings([rung.point for rung in chosen], loop.rules)
    for rung in made:
        trial = Trial(loop.rendition(rung.point.key), rung.point.bitrate_kbps, rung.point.score)
        loop.tried[True, rung.point.key] = trial
    checked = _Assembly(session, loop, search).checked(chosen)
    loop.warnings += unreached([item.score for item in checked], metric)
    predicted = {item.point.key: item.expected for item in checked}
    return PerShot(SearchResult(points, [], predicted), search, checked)


class _Assembly:
    """Makes the files of rungs."""

    def __init__(self, session: Session[LadderOptions], loop: Loop, search: ShotSearch) -> None:
        self.session, self.loop, self.search = session, loop, search
        self.shop, self.source, self.title = session.shop, session.source, search.title
        self._numbers = itertools.count()

    def checked(self, rungs: Sequence[ShotRung]) -> list[Checked]:
        """The rungs as files that keep their peaks, scored; those that keep the rules."""
        plain = self._map("join", "joining scenes", [(r, r.choices) for r in rungs], self._joined)
        limit = self.loop.limit
        joined = self._capped(plain, limit) if limit else plain
        done, kept = self._kept(joined)
        if len(kept) < LEAST_RUNGS and joined != plain and limit and not limit.asked:
            # nobody asked for the bound that leaves no ladder
            self.loop.limit, joined = None, plain
            self.loop.warnings.append(NO_LADDER_CAPPED)
            done, kept = self._kept(joined)
        if len(kept) < len(done):
            capped = any(item.choices is not item.rung.choices for item in joined)
            warning = capped_away_warning if capped else lost_warning
            self.loop.warnings.append(warning(len(done), len(kept)))
        if len(kept) < LEAST_RUNGS:
            raise TargetUnreachable("; ".join(self.loop.warnings)[:1500])
        floor = self.title.least_below or 0.0
        pairs = [(i, item) for i, item in zip(joined, done, strict=True) if item.point in kept]
        for parts, item in pairs:
            if below := self._starved(parts):
                self.loop.warnings.append(starved_warning(item.point, below, floor))
        return [item for _, item in pairs]

    def _kept(self, joined: Sequence[JoinedRung]) -> tuple[list[Checked], list[RDPoint]]:
        """Files with their scores, and the points of those that keep the rules."""
        done = self._map("verify", "scoring the rungs as wholes", joined, self._scored)
        return done, keep_rules([item.point for item in done], self.loop.rules)

    def _map(self, stage: str, message: str, items: Sequence[Any], work: Any) -> list[Any]:
        with self.loop.counted(stage, message, len(items)) as one:
            return self.shop.map(lambda item: one(lambda: work(item)), items)

    def _joined(self, wanted: tuple[ShotRung, Mapping[Scene, Trial]]) -> JoinedRung:
        rung, choices = wanted
        path = self.shop.scratch / f"rung{next(self._numbers)}{self.shop.spec.suffix}"
        files = [t.encode.path for s in self.title.scenes if (t := choices[s]).encode]
        join(files, self.source, path, spec=self.shop.spec, ffmpeg=self.shop.ffmpeg, others=False)
        packets = stream_packets(path, self.shop.spec.codec, self.source.fps)
        return JoinedRung(rung, choices, path, packets)

    def _over(self, joined: JoinedRung, limit: PeakLimit) -> float:
        return peaks_of(joined.packets, self.source.duration_s).over(limit)

    def _capped(self, joined: Sequence[JoinedRung], limit: PeakLimit) -> list[JoinedRung]:
        """The rungs, those with a peak above its bound made again of scenes under a cap."""
        found, tried = list(joined), [list[tuple[float, float]]() for _ in joined]
        bounds, best = [math.inf for _ in joined], list(joined)
        for _ in range(MOST_BOUNDS):
            above = [at for at, item in enumerate(found) if self._over(item, limit) > HELD]
            if not above:
                break
            for at in above:
                rate = clipping_rate(found[at].packets, self.source.duration_s, limit)
                if bounds[at] < math.inf:
                    tried[at].append((bounds[at], self._over(found[at], limit)))
                    rate = next_rate(tried[at])
                bounds[at] = min(rate, limit.kbps)
            again = self._under(joined, {at: bounds[at] for at in above}, limit)
            pairs = [(joined[at].rung, again[at]) for at in above]
            made = self._map("join", "joining scenes under caps", pairs, self._joined)
            for at, item in zip(above, made, strict=True):
                found[at] = item
                # the first that keeps the bound is the last that is made
                if self._over(item, limit) < self._over(best[at], limit):
                    item, best[at] = best[at], item
                if item is not joined[at]:
                    item.path.unlink()
        return [self._worth_it(p, c, limit) for p, c in zip(joined, best, strict=True)]

    def _under(
        self, joined: Sequence[JoinedRung], bounds: Mapping[int, float], limit: PeakLimit
    ) -> dict[int, dict[Scene, Trial]]:
        """The scenes of some rungs, each below the rung's bound in kb/s; a scene that fails under
        every cap stays as it is."""
        tasks = sorted(
            ((scene, at) for at in bounds for scene in self.title.scenes), key=lambda t: t[0]
        )

        def attempt(task: tuple[Scene, int]) -> Trial:
            scene, at = task
            plain = joined[at].choices[scene]
            bound = PeakLimit(kbps=bounds[at], buffer_s=limit.buffer_s)
            rendition = self.loop.rendition((*joined[at].rung.point.size, plain.rendition.knob))
            trial = self.search.work.attempt(scene, rendition, bound)
            return plain if trial.error else trial

        made = dict(zip(tasks, self._map("verify", "capping scenes", tasks, attempt), strict=True))
        return {at: {s: made[s, at] for s in self.title.scenes} for at in bounds}

    def _worth_it(self, plain: JoinedRung, capped: JoinedRung, limit: PeakLimit) -> JoinedRung:
        """The rung under its cap; without it where nobody asked for one that costs a step, or
        brings a scene below the floor."""
        if limit.asked or plain is capped:
            return capped
        if len(self._starved(capped)) > len(self._starved(plain)):
            return plain
        lost = self._pooled(plain.choices) - self._pooled(capped.choices)
        spent = [sum(p.size_bytes for p in item.packets) for item in (plain, capped)]
        # bits saved are worth score too: a step each time that the rate doubles
        fair = math.log2(max(1.0, spent[0] / spent[1])) + 1
        return plain if lost > fair * self.shop.metric.step else capped

    def _pooled(self, choices: Mapping[Scene, Trial]) -> float:
        return self.title.pooled(np.array([choices[s].score or 0.0 for s in self.title.scenes]))

    def _scored(self, joined: JoinedRung) -> Checked:
        """A rung's file, scored as a whole where its scenes were."""
        scenes = self.title.scenes
        encodes = {s: made for s in scenes if (made := joined.choices[s].encode)}
        meter = self.shop.metric.scene_by_scene([(s.start_frame, s.frames) for s in scenes])
        starts = [scene.start_frame for scene in scenes]
        score = self.shop.score(self.source, joined.path, meter, starts)
        limit = self.loop.limit
        whole, own = joined_encode(
            self.source,
            self.loop.rendition(joined.rung.point.key),
            encodes,
            joined.path,
            joined.packets,
        )
        self.shop.note_joined(whole, encodes.values())
        return Checked(
            self._pooled(joined.choices),
            whole,
            score,
            self._over(joined, limit) if limit else 0.0,
            scenes=tuple(
                self._scene(s, joined.choices[s], args)
                for s, args in zip(scenes, own, strict=True)
            ),
        )

    def _scene(self, scene: Scene, trial: Trial, args: tuple[str, ...]) -> RungScene:
        kbps = self.search.work.bits(trial) / 1000 / float(scene.frames / self.source.fps)
        return RungScene(
            scene.start_frame,
            scene.end_frame,
            encoded_knob(trial.rendition),
            trial.score or 0.0,
            kbps,
            args,
            cap_of(trial.rendition),
        )

    def _starved(self, joined: JoinedRung) -> list[Starved]:
        """Scenes of a rung below the floor: of plain ones those that the search left there, of
        those under a cap those that it brought there."""
        floor = self.title.least_below
        if floor is None:
            return []
        least = self._pooled(joined.choices) - floor
        held = {s for s, t in joined.choices.items() if t is not joined.rung.choices[s]}
        return [
            Starved(self._scene(scene, trial, ()), scene in held)
            for scene, trial in joined.choices.items()
            if scene in joined.rung.starved or (scene in held and (trial.score or 0.0) < least)
        ]

"""Encodes of single scenes with their scores: the unit of work of a title made scene by scene.

A scene is encoded from a lossless excerpt of it, which is cut out by seeking and exists only while
it is worked on; what the cache has needs none.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from vqaloop.bitstream.packets import stream_packets
from vqaloop.encoding.options import encoded_knob, gop_frames, with_raised
from vqaloop.errors import DecodeFailed, EncodeFailed, ToolError
from vqaloop.execution.capping import PeakLimit, keep_peak
from vqaloop.execution.workshop import Workshop
from vqaloop.media.scene_cuts import Scene, SceneExcerpts
from vqaloop.ratecontrol.controller import RateController
from vqaloop.records import Rendition, Source, Trial

GopRule = Callable[[int, int], int]
"""The GOP length of a scene, from its frames and the usual length; both in frames."""


class SceneTrials:
    """Makes trials of the scenes of a title; `attempt` may be called from several threads."""

    def __init__(self, shop: Workshop, source: Source, gop: GopRule) -> None:
        self._shop, self._source, self._gop = shop, source, gop
        self._excerpts = SceneExcerpts(source, shop.scratch, shop.ffmpeg)
        self._counting = threading.Lock()
        self.frames = 0
        """Frames of all encodes asked for, those from the cache too; of attempts with a limit
        those under caps alone."""
        self.capped = 0
        """Encodes under caps."""
        self._raised: dict[tuple[Scene, Rendition, float], tuple[float, float]] = {}
        """Of scenes above a bound in kb/s, at whatever knob: the knob that was asked for, and the
        one that kept the bound."""

    def attempt(self, scene: Scene, rendition: Rendition, limit: PeakLimit | None = None) -> Trial:
        """A scene encoded and scored; `limit` bounds its peak."""
        usual = rendition.gop or gop_frames(self._shop.spec, self._source.fps)
        gop = self._gop(scene.frames, usual)
        rendition = replace(rendition, gop=gop)
        known = self._excerpts.known(scene)
        if limit and (held := self._known_to_break(scene, rendition, limit)):
            with self._excerpts.held(scene) as part:
                return self._shop.try_one(part, held, starts=(0,))
        trial = self._shop.recalled(known, rendition, starts=(0,))
        if limit is None:
            with self._counting:
                self.frames += scene.frames
        if trial is None or limit is not None:
            with self._excerpts.held(scene) as part:
                trial = trial or self._shop.try_one(part, rendition, starts=(0,))
                return trial if limit is None else self._under(limit, scene, part, trial)
        return trial

    def bits(self, trial: Trial) -> int:
        """Coded bits of a trial's frames; its container is no part of a joined file."""
        assert trial.encode is not None
        packets = stream_packets(trial.encode.path, self._shop.spec.codec, self._source.fps)
        return 8 * sum(packet.size_bytes for packet in packets)

    def drop(self, scenes: Iterable[Scene]) -> None:
        """Delete the excerpts of scenes that are done."""
        self._excerpts.drop(scenes)

    def _known_to_break(
        self, scene: Scene, rendition: Rendition, limit: PeakLimit
    ) -> Rendition | None:
        """What keeps the bound in place of a rendition that breaks it, as one of less quality has
        broken it; None where that is not known."""
        found = self._raised.get((scene, replace(rendition, knob=0.0), limit.kbps))
        if found is None:
            return None
        asked, held = found
        lower = self._shop.spec.knob.lower_is_better
        better = rendition.knob < asked if lower else rendition.knob > asked
        return with_raised(rendition, held) if better else None

    def _under(self, limit: PeakLimit, scene: Scene, part: Source, plain: Trial) -> Trial:
        """A scene's trial itself where its peak keeps the bound, else one under a cap."""
        if plain.encode is None or plain.error:
            return plain
        try:
            found = keep_peak(self._shop, part, plain.encode, limit)
            with self._counting:
                self.frames += found.frames
                self.capped += found.tries
            if not found.tries:
                return plain
            if found.kept and encoded_knob(found.encode.rendition) != plain.rendition.knob:
                key = scene, replace(plain.rendition, knob=0.0), limit.kbps
                knobs = plain.rendition.knob, encoded_knob(found.encode.rendition)
                self._raised.setdefault(key, knobs)
            score = self._shop.score(part, found.encode.path, starts=(0,))
        except (EncodeFailed, DecodeFailed, ToolError) as error:
            return replace(plain, bitrate_kbps=None, score=None, error=str(error), encode=None)
        made = found.encode
        return Trial(made.rendition, made.bitrate_kbps, score.value, encode=made, mean=score.mean)


def report_trial(
    controller: RateController, scene: Scene, trial: Trial, work: SceneTrials
) -> None:
    """Report a trial, or its failure, to the controller that asked for it."""
    knob = trial.rendition.knob
    if trial.encode is None or trial.score is None:
        controller.report(scene, knob, failed=True)
    else:
        controller.report(scene, knob, work.bits(trial), trial.score)

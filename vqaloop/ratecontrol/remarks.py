"""What of a title did not come out as it was wished: sentences, with what each is of beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.scene_curves import Probe, SceneState
from vqaloop.ratecontrol.scene_goals import Goals

RemarkKind = Literal["no-encode", "over-cap", "missed", "worst-knob", "best-knob", "whole"]


class Remark(str):
    """Something that did not come out as wished: a sentence, with what it is of beside it."""

    kind: RemarkKind
    """Of a scene: without an encode, with none under the bitrate cap, off its target with knobs
    left or though the last one was tried. "whole": the title is off its target or bitrate."""
    scene: Scene | None
    """None where it is of the whole title."""

    def __new__(cls, kind: RemarkKind, scene: Scene | None, text: str) -> Remark:
        made = super().__new__(cls, text)
        made.kind, made.scene = kind, scene
        return made

    def __getnewargs__(self) -> tuple[RemarkKind, Scene | None, str]:  # type: ignore[override]
        return self.kind, self.scene, self.text

    @property
    def text(self) -> str:
        """The sentence alone."""
        return str.__str__(self)


def remarks_on(
    states: Sequence[SceneState],
    chosen: Mapping[SceneState, Probe],
    goals: Goals,
    knobs: Sequence[float],
    whole: float | None,
) -> tuple[Remark, ...]:
    """The remarks on a title's scenes and on all of it.

    Args:
        states: The scenes, in order.
        chosen: The encode of each scene that has one.
        goals: What the scenes were to come to.
        knobs: All that may be tried, from worst to best quality.
        whole: By how much the title misses what was wished, in points of score, or in bits where
            a bitrate was; None where it does not.
    """

    def end(state: SceneState, miss: float) -> Literal["worst-knob", "best-knob"] | None:
        # tried is enough: an encode that it does not better may have been taken all the same
        if miss > 0:
            return "worst-knob" if knobs[0] in state.probes else None
        return "best-knob" if knobs[-1] in state.probes else None

    said = []
    for state in states:
        probe, text = chosen.get(state), ""
        kind: RemarkKind | None = None
        if probe is None:
            kind, text = "no-encode", "no encode succeeded"
        elif goals.over(state, probe):
            kind, text = "over-cap", "every encode is above the bitrate cap"
        elif goals.price:
            # to be off its own best point is a scene's fault only where that holds the title back
            kind = None if whole is None else end(state, whole)
            text = f"{probe.score:.2f}{_at(kind)}"
        elif abs(miss := probe.score - goals.score[state.scene]) > goals.wish.scene_tolerance:
            held = end(state, miss)
            kind = held or "missed"
            text = f"{probe.score:.2f}{_at(held)}, {miss:+.2f} from the target"
        if kind is not None:
            frames = f"frames {state.scene.start_frame} to {state.scene.end_frame - 1}"
            said.append(Remark(kind, state.scene, f"{frames}: {text}"))
    if whole is not None and goals.wish.bits is not None:
        part = whole / goals.wish.bits
        said.append(Remark("whole", None, f"the whole title is {part:+.1%} from its bitrate"))
    elif whole is not None:
        text = f"the whole title is {whole:+.2f} points from its target"
        said.append(Remark("whole", None, text))
    return tuple(said)


def _at(kind: RemarkKind | None) -> str:
    return f" even at the {kind.replace('-', ' ')}" if kind else ""

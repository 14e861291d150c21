"""Remarks on a title that missed its goal: sentences, each with its kind and its scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.scene_curves import Probe, SceneState
from vqaloop.ratecontrol.scene_goals import SceneGoals

RemarkKind = Literal["no-encode", "over-cap", "missed", "worst-knob", "best-knob", "whole"]


class Remark(str):
    """A sentence on a scene, or on the title, that missed its goal."""

    kind: RemarkKind
    """Of a scene: "no-encode", none succeeded; "over-cap", none is under the bitrate cap;
    "worst-knob" and "best-knob", off its goal though the last knob was tried; "missed", off its
    goal with knobs left. "whole": the title is off its target or bitrate."""
    scene: Scene | None
    """None where the remark is on the whole title."""

    def __new__(cls, kind: RemarkKind, scene: Scene | None, text: str) -> Remark:
        remark = super().__new__(cls, text)
        remark.kind, remark.scene = kind, scene
        return remark

    # str's own would lose kind and scene in a copy
    def __getnewargs__(self) -> tuple[RemarkKind, Scene | None, str]:  # type: ignore[override]
        return self.kind, self.scene, self.text

    @property
    def text(self) -> str:
        """The sentence alone."""
        return str.__str__(self)


def remarks_on(
    states: Sequence[SceneState],
    chosen: Mapping[SceneState, Probe],
    goals: SceneGoals,
    knobs: Sequence[float],
    whole: float | None,
) -> tuple[Remark, ...]:
    """Remarks on the scenes that missed their goals, and on the title where it missed its own.

    Args:
        states: The scenes, in order.
        chosen: The encode of each scene that has one.
        goals: The scenes' goals and the title's.
        knobs: All that may be tried, from worst to best quality.
        whole: By how much the title misses its goal, in points of score, or in bits where a
            bitrate was asked for; None where it does not.
    """

    def end(state: SceneState, miss: float) -> Literal["worst-knob", "best-knob"] | None:
        # that it was tried is enough: another encode may have been chosen for being as good
        if miss > 0:
            return "worst-knob" if knobs[0] in state.probes else None
        return "best-knob" if knobs[-1] in state.probes else None

    remarks = []
    for state in states:
        probe, text = chosen.get(state), ""
        kind: RemarkKind | None = None
        if probe is None:
            kind, text = "no-encode", "no encode succeeded"
        elif goals.over(state, probe):
            kind, text = "over-cap", "every encode is above the bitrate cap"
        elif goals.price:
            # off its own best point, a scene is remarked on only where it holds the title back
            kind = None if whole is None else end(state, whole)
            text = f"{probe.score:.2f}{_at(kind)}"
        elif abs(miss := probe.score - goals.score[state.scene]) > goals.title.scene_tolerance:
            held = end(state, miss)
            kind = held or "missed"
            text = f"{probe.score:.2f}{_at(held)}, {miss:+.2f} from the target"
        if kind is not None:
            frames = f"frames {state.scene.start_frame} to {state.scene.end_frame - 1}"
            remarks.append(Remark(kind, state.scene, f"{frames}: {text}"))
    if whole is not None and goals.title.bits is not None:
        part = whole / goals.title.bits
        remarks.append(Remark("whole", None, f"the whole title is {part:+.1%} from its bitrate"))
    elif whole is not None:
        text = f"the whole title is {whole:+.2f} points from its target"
        remarks.append(Remark("whole", None, text))
    return tuple(remarks)


def _at(kind: RemarkKind | None) -> str:
    return f" even at the {kind.replace('-', ' ')}" if kind else ""

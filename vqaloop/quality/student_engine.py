"""A student's weights on a device, what their header says, and what is kept of sources."""

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from vqaloop.core.files import check_regular
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.score_scale import HEADER_KEY, Mode, ScoreScale
from vqaloop.quality.clip_views import View
from vqaloop.quality.source_cache import SourceCache

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor, Student
    from vqaloop.quality.inference import Network, Pair

ANCHOR_BYTES = 256 << 20
"""Memory for anchors, the features of sources; those used longest ago are dropped first."""
VMAF = "VMAF"
"""How the label of weights begins that need no map to VMAF points."""
V1 = "VMAF v1"
"""How that of weights begins that were fitted to the scale of VMAF v1."""


@dataclass(frozen=True)
class WeightsFacts:
    """What the header of weights says."""

    label: str
    """What they were fitted to."""
    view: View | None
    """How they sample a video; None: by crops at the display size."""
    scale: ScoreScale | None
    """The map from their answers to VMAF points, where they have one."""
    heads: HeadConfig
    """What their heads take in, and how their scores are pooled over time."""
    anchors: bool
    """Whether they can compare a ladder's crops with those of a source."""
    metadata: dict[str, str]
    """All of it."""

    @property
    def mode(self) -> Mode:
        """How they compare a video with its source."""
        if self.scale:
            return self.scale.mode
        return "anchored" if self.anchors else "difference"


class StudentEngine:
    """A student's weights on a device, loaded when first needed. Safe to call from threads."""

    def __init__(
        self,
        weights: Path,
        device: str = "auto",
        remote: str | None = None,
        prompt: Path | None = None,
    ) -> None:
        """`device` is auto, cpu or cuda; `remote` is the device type of another machine that
        will run the network instead of this one; `prompt` is of the student of these weights."""
        self.weights, self.device_name, self._remote = weights, device, remote
        self.prompt = prompt
        self._lock = threading.Lock()
        self._network: Network | None = None

    @cached_property
    def device(self) -> "torch.device":
        """Where the network runs. Raises InputError where that device is missing."""
        from vqaloop.models.device import pick_device

        if self._remote is None:
            return pick_device(self.device_name)
        import torch

        return torch.device(self._remote)

    @property
    def network(self) -> "Network":
        """The network, shared with all who use these weights. Raises InputError."""
        from vqaloop.quality.inference import network_of

        with self._lock:
            if self._network is None:
                self._network = network_of(self.weights, self.device, self.prompt)
            return self._network

    @property
    def header(self) -> dict[str, str]:
        """Metadata of the weights file with its `sha256`. Raises InputError."""
        about = self.network.loaded[1]
        both = ("sha256", "prompt_sha256")
        hashes = {key: about[key] for key in both if key in about}
        if {**self.facts.metadata, **hashes} != about:
            raise InputError(
                f"weights {quoted(self.weights)} were changed while they were in use; start again"
            )
        return about

    @cached_property
    def facts(self) -> WeightsFacts:
        """What the header says, for which no network is loaded. Raises InputError."""
        try:
            check_regular(self.weights)
            with safe_open(self.weights, "numpy") as file:
                metadata = dict(file.metadata() or {})
                heads = any(name.startswith("anchored.") for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"weights {quoted(self.weights)} cannot be read: {error}") from error
        name = f"weights {quoted(self.weights)}"
        if self.prompt is not None:
            from vqaloop.models.style_prompt import joined_about, prompt_about

            metadata = joined_about(metadata, prompt_about(self.prompt))
            name = f"prompt {quoted(self.prompt)}"
        scale = metadata.get(HEADER_KEY)
        view = View.of_weights(metadata, name)
        return WeightsFacts(
            label=metadata.get("label", ""),
            view=view,
            scale=None if scale is None else ScoreScale.from_json(scale, name),
            heads=HeadConfig.from_header(metadata, name),
            anchors=heads and is_anchored_by(view),
            metadata=metadata,
        )

    def check(self, anchored: bool) -> None:
        """Raises InputError for weights that do not load or, with a source, cannot be compared.

        `anchored`: there is a source. Scores against one are VMAF points, to which weights of
        another label need a map.
        """
        _ = self.header
        facts = self.facts
        name = f"weights {quoted(self.weights)}"
        if facts.view:
            _check_view(self.network.loaded[0], facts.view, name)
        if anchored and facts.scale is None and not facts.label.startswith(VMAF):
            raise InputError(
                f"{name} predict {facts.label or 'no label they name'}, and a ladder's rules and "
                "guard are in VMAF points: without a map from one to the other they only score "
                "videos alone; train them on shards made with the sources of the data set, so "
                "that the map is learnt"
            )
        if anchored and facts.mode == "anchored" and not facts.anchors:
            view = facts.view
            clips = f"{view.kind} clips of {view.frames} frames" if view else "no anchored head"
            raise InputError(
                f"{name} cannot be anchored ({clips}), though their scale is of anchored answers; "
                "train them again"
            )


def is_anchored_by(view: View | None) -> bool:
    """Whether clips of a view are what a ladder compares with those of its source."""
    own = ("native", CLIP_FRAMES, 1, CLIP_SIZE)
    return view is None or (view.kind, view.frames, view.stride, view.size) == own


Kept = TypeVar("Kept", bound="tuple[Any, Anchor | Pair]")


class AnchorCache(SourceCache[Kept]):
    """The clips of the sources used last, and the anchor of those or the answers to them."""

    def __init__(self) -> None:
        super().__init__(_bytes, lambda: ANCHOR_BYTES)


def _bytes(kept: "tuple[Any, Anchor | Pair]") -> int:
    from vqaloop.quality.inference import bytes_of

    return bytes_of(kept[1])


def _check_view(student: "Student", view: View, name: str) -> None:
    """Raises InputError for a view whose clips the network does not take."""
    try:
        student.backbone.check_shape((1, 3, view.frames, view.side, view.side))
    except ValueError as error:
        raise InputError(
            f"{name} name a view that does not fit their network, {view.kind} clips of "
            f"{view.frames} frames of {view.side} pixels ({error}); train them again on clips "
            "that do"
        ) from error

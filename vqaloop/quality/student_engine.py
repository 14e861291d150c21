"""A student's weights on a device, and the features of sources that are computed once."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.quality.clip_views import View
from vqaloop.quality.crop_sampling import Crops

if TYPE_CHECKING:
    import torch

    from vqaloop.models.student import Anchor
    from vqaloop.quality.inference import Network

ANCHOR_BYTES = 256 << 20
"""Memory for anchors, the features of sources; those used longest ago are dropped first."""
LEAST_ANCHORS = 2
"""Anchors kept however large: of an excerpt and its title."""


class StudentEngine:
    """A student's weights on a device, loaded when first needed. Safe to call from threads."""

    def __init__(self, weights: Path, device: str = "auto", remote: str | None = None) -> None:
        """`device` is auto, cpu or cuda; `remote` is the device type of another machine that
        will run the network instead of this one."""
        self.weights, self.device_name, self._remote = weights, device, remote
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
                self._network = network_of(self.weights, self.device)
            return self._network

    @property
    def header(self) -> dict[str, str]:
        """Metadata of the weights file with its `sha256`. Raises InputError."""
        return self.network.loaded[1]

    @cached_property
    def view(self) -> View | None:
        """How the weights sample a video; None: by crops at its own size. Raises InputError."""
        return _read_view(self.header.get("view", "null"))

    def check(self, anchored: bool) -> None:
        """Raises InputError for weights that do not load or, if `anchored`, cannot be anchored.

        That takes an anchored head, trained on crops at their own size, which a ladder compares.
        """
        student, _ = self.network.loaded
        view = self.view
        remedy = "for a ladder or with --reference take others"
        if anchored and student.anchored is None:
            raise InputError(
                f"weights {quoted(self.weights)} were trained to judge videos alone; {remedy}"
            )
        if anchored and view is not None:
            raise InputError(
                f"weights {quoted(self.weights)} were trained on {view.kind} clips of "
                f"{view.frames} frames, and crops are compared at their own size; {remedy}"
            )


class AnchorCache:
    """Crops and anchors of the sources used last, each computed once by whoever asks first."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, tuple[Crops, Anchor]] = OrderedDict()
        self.locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(
        self, key: str, compute: "Callable[[], tuple[Crops, Anchor]]"
    ) -> "tuple[Crops, Anchor]":
        """The entry of a source; others that ask for it wait while it is computed."""
        with self._lock:
            one_at_a_time = self.locks.setdefault(key, threading.Lock())
        with one_at_a_time:
            with self._lock:
                if key in self.kept:
                    self.kept.move_to_end(key)
                    return self.kept[key]
            # without the common lock: other sources are anchored meanwhile
            made = compute()
            with self._lock:
                self.kept[key] = made
                self._evict()
            return made

    def _evict(self) -> None:
        from vqaloop.quality.inference import bytes_of

        held = sum(bytes_of(anchor) for _, anchor in self.kept.values())
        while held > ANCHOR_BYTES and len(self.kept) > LEAST_ANCHORS:
            key, (_, anchor) = self.kept.popitem(last=False)
            held -= bytes_of(anchor)
            self.locks.pop(key, None)


def _read_view(text: str) -> View | None:
    """The view in the header of weights; None for crops at their own size. Raises InputError."""
    try:
        found = json.loads(text)
        if found is None:
            return None
        given = {key: value for key, value in found.items() if key != "seed"}
        if all(type(value) is (str if key == "kind" else int) for key, value in given.items()):
            return View(**given)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the weights' header has no view that is known: {error}") from error
    raise InputError("the weights' header has no view that is known")

"""A student on its device: what several threads ask of it runs in common batches.

Whoever gets the lock runs the batch of all who wait, up to its size; the others find their answers
made. A batch that does not fit into memory is halved.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vqaloop.core.files import file_sha256
from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.colour import to_clips
from vqaloop.media.frames import Frames
from vqaloop.models.device import exact
from vqaloop.models.student import Anchor, Student
from vqaloop.models.weights import load_student

BATCH = {"cpu": 32, "cuda": 256}
"""Most clips at a time: on a CPU what its caches hold, on a GPU what keeps it busy."""
MOST_SHARED = 2
"""Networks kept for whoever asks next."""
SMALL_BYTES = 10_000_000
"""Weights files below this are of networks that gain nothing from many threads, nor from bf16."""

Made = TypeVar("Made")
Pair = tuple[Tensor, Tensor]

_shared: "OrderedDict[tuple[object, ...], Network]" = OrderedDict()
_sharing = threading.Lock()


def network_of(weights: Path, device: torch.device) -> "Network":
    """The network of these weights: one for all who ask, so that their clips share batches.

    Raises InputError for weights that cannot be read.
    """
    network = Network(weights, device)
    key = str(weights.absolute()), network.sha256, str(device)
    with _sharing:
        network = _shared.setdefault(key, network)
        _shared.move_to_end(key)
        while len(_shared) > MOST_SHARED:
            _shared.popitem(last=False)
        return network


@dataclass(eq=False)
class _Asked:
    """What one thread wants compared."""

    clips: Tensor
    anchor: Anchor
    taken: int = 0
    made: list[Pair] = field(default_factory=list)
    done: bool = False
    error: BaseException | None = None


class Network:
    """A student's weights, loaded when first needed. Safe to call from several threads.

    They are those that the file held at first: `sha256` and `size_bytes` are taken then, and
    another file that has come into its place is refused. Raises InputError for one that cannot be
    read.
    """

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.weights, self.device = weights, device
        try:
            self.size_bytes, self.sha256 = weights.stat().st_size, file_sha256(weights)
        except OSError as error:
            raise InputError(f"weights {quoted(weights)} cannot be read: {error}") from error
        self._waiting: deque[_Asked] = deque()
        self._queue = threading.Lock()
        self._running = threading.RLock()
        self._most: int | None = None

    @cached_property
    def loaded(self) -> tuple[Student, dict[str, str]]:
        """The student and what its file says of itself. Raises InputError."""
        with self._running:
            if "loaded" in self.__dict__:  # while this thread waited
                return self.__dict__["loaded"]  # type: ignore[no-any-return]
            student, about = load_student(self.weights)
            if about["sha256"] != self.sha256:
                raise InputError(
                    f"weights {quoted(self.weights)} were changed while they were in use (SHA-256 "
                    f"{about['sha256'][:12]}..., at first {self.sha256[:12]}...); start again"
                )
            made = student.to(self.device), about
            self.__dict__["loaded"] = made
            return made

    @property
    def small(self) -> bool:
        """Whether the network is one of few parameters."""
        return self.size_bytes < SMALL_BYTES

    @property
    def halved(self) -> bool:
        """Whether it runs in bf16: large networks on GPUs do."""
        return self.device.type == "cuda" and not self.small

    @contextmanager
    def settled(self) -> Iterator[Student]:
        """The student, for one thread at a time, in inference mode and full fp32."""
        student, _ = self.loaded
        # a small network's threads would wait for each other longer than they work
        alone = self.device.type == "cpu" and self.small
        with self._running, torch.inference_mode(), exact():
            threads = torch.get_num_threads()
            if alone:
                torch.set_num_threads(1)
            try:
                yield student
            finally:
                if alone:
                    torch.set_num_threads(threads)

    def anchor(self, clips: Frames) -> Anchor:
        """What comparisons need of (B, T, H·3/2, W) reference clips."""
        pixels = self._moved(clips)
        with self.settled() as student:

            def work(part: slice) -> Anchor:
                with self._precision():
                    return student.anchor(to_clips(self._arrived(pixels[part])))

            return joined(self._in_batches(work, len(pixels)))

    def alone(self, clips: Frames) -> Pair:
        """(B, K + 1) sums and weights without a reference."""
        pixels = self._moved(clips)
        with self.settled() as student:

            def work(part: slice) -> Pair:
                with self._precision():
                    return student.look(to_clips(self._arrived(pixels[part]))).alone

            sums, weights = zip(*self._in_batches(work, len(pixels)), strict=True)
            return torch.cat(sums), torch.cat(weights)

    def compare(self, clips: Frames, anchor: Anchor) -> Pair:
        """(B, K) sums and weights of clips against the anchor of the same crops.

        Runs in batches with what other threads ask for at the same time.
        """
        asked = _Asked(self._moved(clips), anchor)
        with self._queue:
            self._waiting.append(asked)
        while not asked.done:
            check_cancelled()
            with self.settled() as student:
                if not asked.done:
                    self._run_batch(student)
        if asked.error is not None:
            raise asked.error
        sums, weights = zip(*asked.made, strict=True)
        return torch.cat(sums), torch.cat(weights)

    def _run_batch(self, student: Student) -> None:
        """Compare what waits, the first first, up to a batch."""
        pieces: list[tuple[_Asked, slice]] = []
        room = self.most
        with self._queue:
            while room and self._waiting:
                asked = self._waiting[0]
                first, asked.taken = asked.taken, min(asked.taken + room, len(asked.clips))
                room -= asked.taken - first
                pieces.append((asked, slice(first, asked.taken)))
                if asked.taken == len(asked.clips):
                    self._waiting.popleft()
        try:
            # putting them side by side reads them, so each has to have arrived before
            pixels = _cat([self._arrived(asked.clips[part]) for asked, part in pieces])
            anchor = joined([part_of(asked.anchor, part) for asked, part in pieces])

            def work(part: slice) -> Pair:
                with self._precision():
                    return student.compare(to_clips(pixels[part]), part_of(anchor, part))

            sums, weights = (
                torch.cat(x) for x in zip(*self._in_batches(work, len(pixels)), strict=True)
            )
        except BaseException as error:
            with self._queue:
                for asked, _ in pieces:
                    asked.error, asked.done = error, True
                    if asked in self._waiting:
                        self._waiting.remove(asked)
            if not isinstance(error, Exception):
                raise
            return
        at = 0
        for asked, part in pieces:
            count = part.stop - part.start
            asked.made.append((sums[at : at + count], weights[at : at + count]))
            at += count
            asked.done = part.stop == len(asked.clips)

    @property
    def most(self) -> int:
        """Clips of a batch; fewer once memory was short."""
        if self._most is None:
            self._most = BATCH[self.device.type]
        return self._most

    def _in_batches(self, work: Callable[[slice], Made], count: int) -> list[Made]:
        """`work` of consecutive parts of `count` clips; smaller ones where memory is short.

        Raises ToolError when it is too short for a single clip.
        """
        made: list[Made] = []
        at = 0
        while at < count:
            part = slice(at, min(at + self.most, count))
            try:
                made.append(work(part))
                at = part.stop
                continue
            except torch.OutOfMemoryError as error:
                if self.most == 1:
                    raise ToolError(
                        f"{self.device.type} has too little free memory for one clip of this "
                        "network: end what else uses it, take --device cpu or a smaller student"
                    ) from error
            # out here the error no longer holds what filled the memory
            self._most = max(1, min(self.most, part.stop - part.start) // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return made

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.halved)

    @cached_property
    def _uploads(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _moved(self, clips: Frames) -> Tensor:
        """Clips on their way to the device, while it may be busy with another batch."""
        pixels = torch.from_numpy(clips)
        if self.device.type == "cpu":
            return pixels
        with torch.cuda.stream(self._uploads):
            return pixels.pin_memory().to(self.device, non_blocking=True)

    def _arrived(self, pixels: Tensor) -> Tensor:
        """Clips that the device's work may read from here on."""
        if self.device.type == "cuda":
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self._uploads)
            pixels.record_stream(now)
        return pixels


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def bytes_of(anchor: Anchor) -> int:
    """What an anchor takes of its device's memory."""
    held = anchor.embedding, *anchor.deep, anchor.context, anchor.weights
    return sum(values.nbytes for values in held)


def part_of(anchor: Anchor, part: slice | Tensor) -> Anchor:
    """The anchor of some of its clips."""
    return Anchor(
        anchor.embedding[part],
        tuple(tokens[part] for tokens in anchor.deep),
        anchor.context[part],
        anchor.weights[part],
    )


def joined(anchors: list[Anchor]) -> Anchor:
    """One anchor of the clips of several."""
    if len(anchors) == 1:
        return anchors[0]
    return Anchor(
        torch.cat([a.embedding for a in anchors]),
        tuple(torch.cat(tokens) for tokens in zip(*(a.deep for a in anchors), strict=True)),
        torch.cat([a.context for a in anchors]),
        torch.cat([a.weights for a in anchors]),
    )

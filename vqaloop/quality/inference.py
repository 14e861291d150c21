"""Batched inference of a student on its device, shared by threads.

The thread that gets the lock runs one batch for all that wait, up to its size; the others then
find their results ready. A batch that does not fit into memory is halved.
"""

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vqaloop.core.files import file_sha256
from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.colour import to_clips
from vqaloop.media.planes import Frames
from vqaloop.models.device import exact
from vqaloop.models.student import Anchor, Student
from vqaloop.models.style_prompt import hash_of_both, load_prompt
from vqaloop.models.weights import load_student

BATCH = {"cpu": 32, "cuda": 256}
"""Most clips at a time: on a CPU what its caches hold, on a GPU what keeps it busy."""
MOST_SHARED = 2
"""Networks kept loaded when their metrics are gone."""
SMALL_BYTES = 10_000_000
"""Size of weights files below which many threads, and bf16, make inference no faster."""

Made = TypeVar("Made")
Pair = tuple[Tensor, Tensor]

_shared: "OrderedDict[tuple[object, ...], Network]" = OrderedDict()
_sharing = threading.Lock()


def network_of(weights: Path, device: torch.device, prompt: Path | None = None) -> "Network":
    """The network of these weights: one for all callers, so that their clips share batches.

    Raises InputError for weights, or a prompt, that cannot be read.
    """
    network = Network(weights, device, prompt)
    key = str(weights.absolute()), network.sha256, str(device)
    with _sharing:
        network = _shared.setdefault(key, network)
        _shared.move_to_end(key)
        while len(_shared) > MOST_SHARED:
            _shared.popitem(last=False)
        return network


@dataclass(eq=False)
class _Request:
    """Clips that one thread waits to have compared with their anchor."""

    clips: Tensor
    anchor: Anchor
    taken: int = 0
    """Clips already in a batch."""
    made: list[Pair] = field(default_factory=list)
    done: bool = False
    error: BaseException | None = None


class Network:
    """A student's network, loaded when first needed. Safe to call from several threads.

    `sha256` and `size_bytes` are those of the weights file when the network is made, with a prompt
    `sha256` is of both (`style_prompt.hash_of_both`); a file that was replaced before it is loaded
    is refused. Raises InputError for one that cannot be read.
    """

    def __init__(self, weights: Path, device: torch.device, prompt: Path | None = None) -> None:
        self.weights, self.device, self.prompt = weights, device, prompt
        file, kind = weights, "weights"
        try:
            self.size_bytes, self.sha256 = weights.stat().st_size, file_sha256(weights)
            if prompt is not None:
                file, kind = prompt, "prompt"
                self.sha256 = hash_of_both(self.sha256, file_sha256(prompt))
        except OSError as error:
            raise InputError(f"{kind} {quoted(file)} cannot be read: {error}") from error
        self._waiting: deque[_Request] = deque()
        self._queue = threading.Lock()
        self._running = threading.RLock()
        self._batch_size: int | None = None
        self._loaded: tuple[Student, dict[str, str]] | None = None
        self._upload_stream: torch.cuda.Stream | None = None

    @property
    def loaded(self) -> tuple[Student, dict[str, str]]:
        """The student and the metadata of its file. Raises InputError."""
        # once loaded, no thread waits here for the batch of another
        if self._loaded is None:
            with self._running:
                if self._loaded is None:
                    self._loaded = self._load()
        return self._loaded

    def _load(self) -> tuple[Student, dict[str, str]]:
        student, about = load_student(self.weights)
        if self.prompt is not None:
            about = load_prompt(self.prompt, student, about)
        if about["sha256"] != self.sha256:
            raise InputError(
                f"weights {quoted(self.weights)} were changed while they were in use (SHA-256 "
                f"{about['sha256'][:12]}..., at first {self.sha256[:12]}...); start again"
            )
        if self.device.type == "cuda":
            # "cuda" alone is another GPU in each thread that has not chosen one
            index = self.device.index
            number = torch.cuda.current_device() if index is None else index
            self.device = torch.device("cuda", number)
            # one for all threads, since `_uploaded` waits for one
            self._upload_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        try:
            return student.to(self.device), about
        except torch.OutOfMemoryError as error:
            raise ToolError(
                f"{self.device} has too little free memory for the weights: end what else uses "
                "it, take --device cpu or a smaller student"
            ) from error

    @property
    def small(self) -> bool:
        """Whether it has few parameters, by the size of its file."""
        return self.size_bytes < SMALL_BYTES

    @property
    def uses_bf16(self) -> bool:
        """Whether it runs in bf16: large networks on GPUs do."""
        return self.device.type == "cuda" and not self.small

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Student]:
        """The student for one thread at a time, in inference mode, fp32 without TF32."""
        student, _ = self.loaded
        # a small network's threads would wait for each other longer than they work
        one_thread = self.device.type == "cpu" and self.small
        with self._running, torch.inference_mode(), exact():
            threads = torch.get_num_threads()
            if one_thread:
                torch.set_num_threads(1)
            try:
                yield student
            finally:
                if one_thread:
                    torch.set_num_threads(threads)

    def anchor(self, clips: Frames, canvas_height: int | None = None) -> Anchor:
        """The anchor of (B, T, H·3/2, W) reference clips.

        `canvas_height` is that of the pictures they are cut from, which not all heads take.
        """
        pixels = self._upload(clips)
        with self.exclusive() as student:

            def work(part: slice) -> Anchor:
                with self._autocast():
                    return student.anchor(to_clips(self._uploaded(pixels[part])), canvas_height)

            return joined(self._in_batches(work, len(pixels)))

    def alone(self, clips: Frames, canvas_height: int | None = None) -> Pair:
        """(B, S + 1) sums and weights of (B, T, H·3/2, W) clips without a reference.

        `canvas_height`: as of `anchor`.
        """
        pixels = self._upload(clips)
        with self.exclusive() as student:

            def work(part: slice) -> Pair:
                with self._autocast():
                    seen = to_clips(self._uploaded(pixels[part]))
                    return student.look(seen, canvas_height=canvas_height).alone

            sums, weights = zip(*self._in_batches(work, len(pixels)), strict=True)
            return torch.cat(sums), torch.cat(weights)

    def compare(self, clips: Frames, anchor: Anchor) -> Pair:
        """(B, S) sums and weights of (B, T, H·3/2, W) clips against the anchor of the same crops.

        Runs in common batches with the clips of other threads.
        """
        request = _Request(self._upload(clips), anchor)
        with self._queue:
            self._waiting.append(request)
        while not request.done:
            check_cancelled()
            # whoever gets the network runs a batch, which may be that of other threads
            with self.exclusive() as student:
                if not request.done:
                    self._run_batch(student)
        if request.error is not None:
            raise request.error
        sums, weights = zip(*request.made, strict=True)
        return torch.cat(sums), torch.cat(weights)

    def _run_batch(self, student: Student) -> None:
        """Compare one batch of waiting clips, first come, first served."""
        pieces: list[tuple[_Request, slice]] = []
        room = self.batch_size
        with self._queue:
            while room and self._waiting:
                request = self._waiting[0]
                first, request.taken = request.taken, min(request.taken + room, len(request.clips))
                room -= request.taken - first
                pieces.append((request, slice(first, request.taken)))
                if request.taken == len(request.clips):
                    self._waiting.popleft()
        count = sum(part.stop - part.start for _, part in pieces)

        def work(part: slice) -> Pair:
            some = _within(pieces, part)
            # concatenation reads them, so each copy has to be complete before
            pixels = _cat([self._uploaded(request.clips[piece]) for request, piece in some])
            anchor = joined([part_of(request.anchor, piece) for request, piece in some])
            with self._autocast():
                return student.compare(to_clips(pixels), anchor)

        try:
            sums, weights = (
                torch.cat(x) for x in zip(*self._in_batches(work, count), strict=True)
            )
        except BaseException as error:
            # the batch failed for all in it: each thread raises it, and none waits for ever
            with self._queue:
                for request, _ in pieces:
                    request.error, request.done = error, True
                    if request in self._waiting:
                        self._waiting.remove(request)
            if not isinstance(error, Exception):
                raise
            return
        at = 0
        for request, part in pieces:
            count = part.stop - part.start
            request.made.append((sums[at : at + count], weights[at : at + count]))
            at += count
            request.done = part.stop == len(request.clips)

    @property
    def batch_size(self) -> int:
        """Most clips in a batch; fewer once memory was short."""
        if self._batch_size is None:
            self._batch_size = BATCH[self.device.type]
        return self._batch_size

    def _in_batches(self, work: Callable[[slice], Made], count: int) -> list[Made]:
        """`work` of consecutive parts of `count` clips; smaller ones where memory is short.

        Raises ToolError when it is too short for a single clip.
        """
        made: list[Made] = []
        at = 0
        while at < count:
            part = slice(at, min(at + self.batch_size, count))
            try:
                made.append(work(part))
                at = part.stop
                continue
            except torch.OutOfMemoryError as error:
                if self.batch_size == 1:
                    raise ToolError(
                        f"{self.device.type} has too little free memory for one clip of this "
                        "network: end what else uses it, take --device cpu or a smaller student"
                    ) from error
            # out here the error no longer holds what filled the memory
            self._batch_size = max(1, min(self.batch_size, part.stop - part.start) // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return made

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.uses_bf16)

    def _upload(self, clips: Frames) -> Tensor:
        """Clips on their way to the device, copied while it works on another batch.

        Where it has no room for all of them they stay, and `_uploaded` copies them batch by batch.
        """
        pixels = torch.from_numpy(clips)
        if self.device.type == "cpu":
            return pixels
        self.loaded  # noqa: B018  the stream comes with it
        with torch.cuda.stream(self._upload_stream):
            pixels = pixels.pin_memory()
            with contextlib.suppress(torch.OutOfMemoryError):
                return pixels.to(self.device, non_blocking=True)
        return pixels

    def _uploaded(self, pixels: Tensor) -> Tensor:
        """The clips once their copy is complete, for the device's current stream."""
        if pixels.device.type != self.device.type:
            return pixels.to(self.device)
        if self._upload_stream is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self._upload_stream)
            pixels.record_stream(now)
        return pixels


def _within(pieces: list[tuple[_Request, slice]], part: slice) -> list[tuple[_Request, slice]]:
    """What of the pieces of a batch lies in a part of it."""
    found, at = [], 0
    for request, piece in pieces:
        first = piece.start + max(part.start - at, 0)
        last = min(piece.start + part.stop - at, piece.stop)
        if first < last:
            found.append((request, slice(first, last)))
        at += piece.stop - piece.start
    return found


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def bytes_of(kept: Anchor | Pair) -> int:
    """Bytes of device memory that an anchor holds, or the sums and weights of clips."""
    if isinstance(kept, Anchor):
        held = kept.embedding, *kept.deep, kept.context, kept.weights, *kept.maps
        return sum(values.nbytes for values in held)
    return sum(values.nbytes for values in kept)


def part_of(anchor: Anchor, part: slice | Tensor) -> Anchor:
    """The anchor of some of its clips."""
    return anchor.each(lambda values: values[part])


def joined(anchors: list[Anchor]) -> Anchor:
    """One anchor of the clips of several."""
    if len(anchors) == 1:
        return anchors[0]
    return Anchor(
        torch.cat([a.embedding for a in anchors]),
        tuple(torch.cat(tokens) for tokens in zip(*(a.deep for a in anchors), strict=True)),
        torch.cat([a.context for a in anchors]),
        torch.cat([a.weights for a in anchors]),
        tuple(torch.cat(features) for features in zip(*(a.maps for a in anchors), strict=True)),
    )

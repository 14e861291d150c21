"""The Ray worker: carries out orders on a node of the cluster, and answers them.

Errors of this package travel as data, so that they arrive with their own type and without a
traceback. The work runs in a thread beside the one that Ray interrupts: a cancelled order stops
its programs within a moment, and whatever kills the process leaves the rest to its guardian.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from vqaloop import errors
from vqaloop.cluster.connection import import_ray
from vqaloop.cluster.file_transfer import CHUNK_BYTES, Missing, Parcel, received
from vqaloop.cluster.parity import Tools, check_terms, check_version, same_ffmpeg
from vqaloop.core import guardian, scopes
from vqaloop.core.files import scratch
from vqaloop.core.folders import cache_folder
from vqaloop.core.text import quoted
from vqaloop.encoding.encode import encode
from vqaloop.errors import EncodeFailed, EncoderMissing, ToolError, VqaloopError
from vqaloop.quality.classical_metric import ClassicalMetric
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.cvvdp import find_program
from vqaloop.quality.cvvdp_metric import Cvvdp
from vqaloop.quality.metric import Metric
from vqaloop.quality.sampled_vmaf import SampledVmaf
from vqaloop.quality.ssimulacra2_metric import Ssimulacra2
from vqaloop.quality.student_engine import StudentEngine
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Encode, Score, Source

Made = TypeVar("Made")

METRICS_KEPT = 8
"""Metrics that a process keeps: as many as it has orders at once, since one that looks scene by
scene is of a single title. Those of the same weights share one network; what they keep of titles
(student_metric.ANCHOR_BYTES) is each one's own."""
LOOK_S = 0.1
"""Seconds between looks at whether an order was cancelled."""


@dataclass(frozen=True)
class Order:
    """Work for any node."""

    kind: str
    """One of WORK."""
    tools: Tools
    parcels: Mapping[str, Parcel]
    """Files it needs, by the names they go by in the work."""
    facts: Mapping[str, Any]
    """All other arguments of the work."""
    look: bool = True
    """Whether a file may be where its sender has it."""

    def with_sent(self, sha256: str, send: Callable[[Parcel], Parcel]) -> "Order":
        """The same, with the file of that content sent along."""
        parcels = {
            name: send(parcel) if parcel.sha256 == sha256 else parcel
            for name, parcel in self.parcels.items()
        }
        return replace(self, parcels=parcels)


@dataclass(frozen=True)
class Failure:
    """An error of this package, as data."""

    kind: str
    message: str
    again: bool = False

    def error(self) -> VqaloopError:
        kind = getattr(errors, self.kind, ToolError)
        if issubclass(kind, EncodeFailed):
            return EncodeFailed(self.message, again=self.again)
        made: VqaloopError = kind(self.message)
        return made


@dataclass(frozen=True)
class Answer:
    """The outcome of an order: a result, an error, or a file that the node lacks."""

    node: str
    made: Any = None
    failure: Failure | None = None
    missing: str | None = None
    """SHA-256 of a file that this node lacks."""


@dataclass(frozen=True)
class EncodedFile:
    """An encode, and the bytes of its file or Ray's references to them."""

    record: Encode
    chunks: tuple[Any, ...] = field(repr=False)


def node_name() -> str:
    """Host name and address of this node, for messages."""
    return f"{socket.gethostname()} ({import_ray().util.get_node_ip_address()})"


def carry_out(order: Order) -> Answer:
    """Carry out an order on this node."""
    ray = import_ray()
    guardian.live_apart()
    node, there = node_name(), dict[str, str]()
    try:
        with contextlib.ExitStack() as stack:
            # before any file is fetched, which would be in vain
            check_version(order.tools, node)
            files = {}
            for name, parcel in order.parcels.items():
                path = stack.enter_context(received(parcel, ray.get, look=order.look))
                files[name], there[os.fspath(path)] = path, parcel.path
            ffmpeg = same_ffmpeg(order.tools, node)
            return Answer(node, _interruptibly(lambda: WORK[order.kind](order, files, ffmpeg)))
    except Missing as missing:
        return Answer(node, missing=missing.sha256)
    except VqaloopError as error:
        message = str(error)
        for here, original in there.items():
            # the user knows the file by the name it has where it came from
            message = message.replace(quoted(here), quoted(original))
        if type(error) in (ToolError, EncoderMissing) and node not in message:
            message += f" (on node {node})"
        again = getattr(error, "again", False)
        return Answer(node, failure=Failure(type(error).__name__, message, again))


def _interruptibly(work: Callable[[], Made]) -> Made:
    """`work()` in a thread of its own where this is the one that Ray interrupts."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    call = scopes.BackgroundCall(work)
    try:
        while not call.over.wait(LOOK_S):
            pass
    except BaseException:
        call.scope.cancel()
        while not call.over.wait(LOOK_S):
            pass
        raise
    return call.result()


@contextlib.contextmanager
def pinned(count: int) -> Iterator[None]:
    """The programs this thread starts run on that many processors of their own.

    Of those that no other process of ours on this machine has; where too few are left, on any.
    """
    before = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        own: set[int] = set()
        # too few are let go again at once, or an encode that has no use for them keeps them
        with contextlib.suppress(OSError), contextlib.ExitStack() as locks:
            # a machine's own folder: that of the cache may be shared by several
            folder = cache_folder() / "processors" / socket.gethostname()
            folder.mkdir(parents=True, exist_ok=True)
            for number in sorted(before):
                # the lock is the kernel's, and goes with its holder
                file = locks.enter_context(open(folder / str(number), "wb"))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    own.add(number)
                if len(own) == count:
                    os.sched_setaffinity(0, own)
                    stack.enter_context(locks.pop_all())
                    stack.callback(os.sched_setaffinity, 0, before)
                    break
        yield


def _source(order: Order, files: Mapping[str, Path]) -> Source:
    """The title, with the path it has on this node."""
    found: Source = replace(order.facts["source"], path=files["source"])
    return found


def _encode(order: Order, files: Mapping[str, Path], ffmpeg: str) -> EncodedFile:
    facts = order.facts
    with scratch() as folder:
        out = Path(folder, "encode" + facts["suffix"])
        source = _source(order, files)
        limit_s = facts["timeout_s"]
        check_terms(facts["terms"], source, facts["rendition"], ffmpeg, node_name())
        with pinned(facts["processors"]):
            made = encode(source, facts["rendition"], out, ffmpeg=ffmpeg, timeout_s=limit_s)
        with out.open("rb") as file:
            if made.size_bytes <= CHUNK_BYTES:
                return EncodedFile(made, (file.read(),))
            return EncodedFile(
                made, tuple(map(import_ray().put, iter(lambda: file.read(CHUNK_BYTES), b"")))
            )


def _guard(order: Order, files: Mapping[str, Path], ffmpeg: str) -> dict[str, Score]:
    source = _source(order, files)
    plan, processors = order.facts["plan"], order.facts["processors"]
    with pinned(processors):
        found: dict[str, Score] = plan.measure(
            source, files["encode"], ffmpeg=ffmpeg, threads=processors
        )
        return found


def _score(order: Order, files: Mapping[str, Path], ffmpeg: str) -> Score:
    source = _source(order, files)
    metric = _metric(order, files, ffmpeg)
    if isinstance(metric, ClassicalMetric):
        # as it does itself, but with no more threads than this order has processors
        return _guard(order, files, ffmpeg)[metric.name]
    return metric.measure(source, files["encode"], order.facts["decoder"])


def _device() -> str:
    """cuda or cpu: where a network would run."""
    from vqaloop.models.device import pick_device

    return pick_device().type


WORK: dict[str, Callable[[Order, Mapping[str, Path], str], Any]] = {
    "encode": _encode,
    "guard": _guard,
    "score": _score,
    "device": lambda order, files, ffmpeg: _device(),
}

_metrics: OrderedDict[str, Metric] = OrderedDict()
_metrics_lock = threading.Lock()


@dataclass(frozen=True)
class StudentRecipe:
    """The arguments of a student metric, but for the files of its weights, prompt and ffmpeg."""

    name: str
    device: str
    sampling: CropSampling

    @classmethod
    def of(cls, metric: StudentMetric) -> "StudentRecipe":
        return cls(metric.name, metric.device.type, metric.sampling)

    def made(self, weights: Path, prompt: Path | None, ffmpeg: str) -> StudentMetric:
        engine = StudentEngine(weights, self.device, prompt=prompt)
        return StudentMetric(self.name, engine, ffmpeg, self.sampling)


def _metric(order: Order, files: Mapping[str, Path], ffmpeg: str) -> Metric:
    """The driver's metric, made here once, if here it gives the driver's scores.

    Raises ToolError for a node on which it would not.
    """
    sent, identity = order.facts["metric"], order.facts["identity"]
    key = json.dumps(identity, sort_keys=True)
    with _metrics_lock:
        if key in _metrics:
            _metrics.move_to_end(key)
            return _metrics[key]
        metric: Metric = sent
        if isinstance(sent, StudentRecipe):
            metric = sent.made(files["weights"], files.get("prompt"), ffmpeg)
        elif isinstance(sent, (ClassicalMetric, SampledVmaf, Ssimulacra2, Cvvdp)):
            metric = replace(sent, ffmpeg=ffmpeg)
        if isinstance(metric, Cvvdp):
            # where this node has it
            metric = replace(metric, program=find_program(None))
        for name, value in metric.identity().items():
            if value != identity.get(name):
                raise ToolError(
                    f"node {node_name()} would give other scores: its {name} is {value} and here "
                    f"it is {identity.get(name)}; install the same there"
                )
        _metrics[key] = metric
        while len(_metrics) > METRICS_KEPT:
            _metrics.popitem(last=False)
    return metric


class Scoring:
    """A process that keeps networks loaded and scores several encodes at once: a Ray actor."""

    def __init__(self, threads: int) -> None:
        """`threads`: of a network on processors; 0 leaves that to PyTorch."""
        import torch

        guardian.live_apart()
        if threads:
            torch.set_num_threads(threads)
        self._at_work: dict[int, scopes.Scope] = {}
        self._lock = threading.Lock()

    def score(self, number: int, order: Order) -> Answer:
        """`carry_out`; `number` is what `call_off` knows it by."""
        scope = scopes.Scope()
        with self._lock:
            self._at_work[number] = scope
        try:
            with scope.entered():
                return carry_out(order)
        finally:
            with self._lock:
                del self._at_work[number]

    def call_off(self, number: int) -> None:
        """Stop it, if it is still at work."""
        with self._lock:
            if number in self._at_work:
                self._at_work[number].cancel()

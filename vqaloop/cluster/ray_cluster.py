"""The Ray executor: encodes and scores are made on the nodes of a Ray cluster.

Every order waits here, in its caller's thread, until its turn; then Ray schedules it on a node
with as many free processors as an encode is to have. The orders of a node or process that is lost
are scheduled again.
"""

import contextlib
import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from vqaloop.cluster.connection import connect, dead_nodes, first_line, import_ray, nodes
from vqaloop.cluster.file_transfer import Parcel, Sender
from vqaloop.cluster.parity import Terms, Tools
from vqaloop.cluster.scoring import AT_ONCE, Scorers
from vqaloop.cluster.shares import Share, shares
from vqaloop.cluster.worker import Answer, EncodedFile, Order, StudentRecipe, carry_out
from vqaloop.core import scopes
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256, renamed_to
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, EncodeFailed, InputError, ToolError
from vqaloop.execution.executor import POLL_S, Turns
from vqaloop.quality.classical_metric import ClassicalMetric
from vqaloop.quality.guard import GuardPlan
from vqaloop.quality.metric import Metric
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Encode, Rendition, Score, Source

MOST_CRASHES = 3
"""Processes that may die while an order is alone in them, before the order fails."""
MOST_LOSSES = 10
"""Nodes that an order may lose before it is given up."""
PATIENCE_S = 5.0
"""Seconds that a cancelled order has to end by itself."""

SETTLE_S = 0.5
"""Seconds in which a node that died with a process is known to be dead."""

Taken = TypeVar("Taken")

log = logging.getLogger(__name__)


class RayCluster:
    """An executor over a Ray cluster. Leaving the with-block, or `close`, disconnects.

    Args:
        address: "auto" (the cluster of this machine), "local" (one is started here, and stopped
            again), HOST:PORT of a cluster that this machine is a node of, or ray://HOST:PORT.
        processors: CPU cores per encode, at least 1.
        workers: Encodes or scores that run at once, by default what fits on the processors;
            scores on GPUs come on top.

    Raises:
        InputError: There is no such cluster, or no node has that many processors.
    """

    def __init__(self, address: str, *, processors: int = 1, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"there must be at least one worker, not {workers}")
        if processors < 1:
            raise InputError(f"an encoder needs at least one processor, not {processors}")
        self._ray = import_ray()
        self._connected = connect(address, workers * processors if workers else None)
        try:
            there = nodes()
            places = sum(int(node.cpus // processors) for node in there)
            if not places:
                most = max((node.cpus for node in there), default=0)
                raise InputError(
                    f"no node of the Ray cluster has the {processors} processors that an encode "
                    f"is to have, the largest has {most:g}; give fewer with --processors"
                )
            on_gpus = AT_ONCE * sum(node.gpus for node in there)
            self.processors = processors
            self.workers: int = workers or places + min(on_gpus, places)
            self._turns = Turns(workers or places)
            # on GPUs scores take no place from encodes
            self._scoring_turns = Turns(on_gpus) if on_gpus else self._turns
            self._scorers = Scorers(had_gpus=on_gpus > 0)
            self._sender = Sender(self._ray.put)
            self._encodes = workers or places
            self._task = self._ray.remote(carry_out).options(num_cpus=processors, max_retries=0)
            self.losses = _losses(self._ray.exceptions)
            self._dead = set(dead_nodes())
        except BaseException:
            self._disconnect()
            raise
        self._lock = threading.Lock()
        self._numbers = count()
        self._apart = False
        """Whether some node shares no folder with this machine."""
        self._look = True
        self._speaks = True
        """Whether lost nodes are logged here."""

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the scoring processes and disconnect; a cluster that was started here ends too."""
        self._scorers.close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            self._ray.shutdown()

    def encode(
        self,
        source: Source,
        rendition: Rendition,
        out: Path,
        *,
        ffmpeg: str,
        timeout_s: float | None,
        whose: Hashable,
    ) -> Encode:
        facts = {
            "source": source,
            "rendition": rendition,
            "suffix": out.suffix,
            "processors": self.processors,
            "timeout_s": timeout_s,
            "terms": Terms.of(source, rendition, ffmpeg),
        }
        parcels = {"source": self._sender.parcel(source.path)}
        order = self._order("encode", ffmpeg, parcels, facts)
        with self._turns.taken(whose):
            return self._result(order, f"encoding {rendition}", lambda made: self._kept(made, out))

    def measure(
        self, metric: Metric, source: Source, path: Path, decoder: str, whose: Hashable
    ) -> Score:
        facts: dict[str, Any] = {
            "source": source,
            "decoder": decoder,
            "metric": metric,
            "identity": metric.identity(),
            "plan": GuardPlan({metric.name: 1}),
            "processors": self.processors,
        }
        parcels = self._pair(source, path)
        if isinstance(metric, StudentMetric):
            facts["metric"] = StudentRecipe.of(metric)
            parcels["weights"] = self._sender.parcel(metric.weights)
            if metric.engine.prompt is not None:
                parcels["prompt"] = self._sender.parcel(metric.engine.prompt)
        ffmpeg = getattr(metric, "ffmpeg", None) or ffmpeg_path()
        order = self._order("score", ffmpeg, parcels, facts)
        network = not isinstance(metric, ClassicalMetric)
        with (self._scoring_turns if network else self._turns).taken(whose):
            what = f"scoring {quoted(path.name)}"
            return self._result(order, what, _as_score, whose if network else None)

    def guard(
        self, source: Source, path: Path, plan: GuardPlan, *, ffmpeg: str, whose: Hashable
    ) -> dict[str, Score]:
        facts = {"source": source, "plan": plan, "processors": self.processors}
        order = self._order("guard", ffmpeg, self._pair(source, path), facts)

        def taken(made: Any) -> dict[str, Score]:
            return {name: _as_score(made[name]) for name in plan.every}

        with self._turns.taken(whose):
            return self._result(order, f"measuring {quoted(path.name)}", taken)

    def suited(self, metric: Metric) -> Metric:
        """The metric as it is on this cluster: a student that may choose runs on GPUs, if any.

        Raises ToolError where what runs on them does not answer.
        """
        if not isinstance(metric, StudentMetric) or not metric.may_choose:
            return metric
        device = "cpu"
        if any(node.gpus for node in nodes()):
            order = self._order("device", metric.ffmpeg, {}, {})
            device = self._result(order, "looking at a GPU", str, "any title")
        return metric if metric.device.type == device else metric.on(device)

    def shares(self) -> list[Share]:
        """Of the cluster as it is now: one for each process that is to search for a catalogue."""
        return shares(nodes(), self._encodes, self.processors)

    def keep_to(self, share: Share) -> None:
        """Score at the share's places alone, and leave it to others to log that a node is lost.

        Only before it is first used; the share's workers are those it was made with.
        """
        on_gpus = AT_ONCE * len(share.places) if share.node.gpus else 0
        self._scorers = Scorers(on_gpus > 0, share.places)
        self._scoring_turns = Turns(on_gpus) if on_gpus else self._turns
        self._speaks = False

    def _pair(self, source: Source, path: Path) -> dict[str, Parcel]:
        encode = self._sender.parcel(path)
        if self._apart:
            # sent at once: the node would only ask for it
            encode = self._sender.sent(encode)
        return {"source": self._sender.parcel(source.path), "encode": encode}

    def _order(
        self, kind: str, ffmpeg: str, parcels: Mapping[str, Parcel], facts: Mapping[str, Any]
    ) -> Order:
        tools = Tools(os.path.abspath(ffmpeg), file_sha256(ffmpeg))
        return Order(kind, tools, parcels, facts, self._look)

    def _result(
        self, order: Order, what: str, take: Callable[[Any], Taken], scorer: Hashable = None
    ) -> Taken:
        """What `take` makes of an order's result; an order that was lost is scheduled again.

        A scoring process does it where `scorer` names a title. One that dies while several orders
        are in it is held against none of them: each is repeated alone. Raises what the work
        raised.
        """
        attempts = _Attempts(order.kind, what)
        while True:
            try:
                answer = self._answer(order, scorer, attempts.alone)
                if answer.failure is not None:
                    raise answer.failure.error()
                if answer.missing is None:
                    return take(answer.made)
                # the node lacks a file: the same order again, with that file
                self._apart = True
                order = order.with_sent(answer.missing, self._sender.sent)
            except self.losses as error:
                lost = error if isinstance(error, _Lost) else _Lost(error)
                attempts.count(lost, with_node=self.lost_node(lost.error))
            except self._ray.exceptions.RayError as error:
                raise ToolError(
                    f"the Ray cluster failed while {what}: {cause_of(error)}"
                ) from error

    def _answer(self, order: Order, scorer: Hashable, alone: bool) -> Answer:
        if scorer is None:
            ref = self._task.remote(order)
            return self._awaited(ref, lambda: self._stop(ref))
        metric = order.facts.get("metric")
        on_gpu = isinstance(metric, StudentRecipe) and metric.device != "cpu"
        with self._scorers.taken(scorer, on_gpu=on_gpu, alone=alone) as visit:
            handle = visit.handle
            number = next(self._numbers)
            calls = handle.call_off.options(concurrency_group="calls")
            try:
                made = handle.score.remote(number, order)
                return self._awaited(made, lambda: calls.remote(number))
            except self.losses as error:
                known = not self._scorers.dropped(handle)
                raise _Lost(error, logged=known, shared=visit.shared) from error

    def _awaited(self, ref: Any, stop: Callable[[], object]) -> Answer:
        """The answer; if this thread's work is cancelled or interrupted, `stop()` is called."""
        done = threading.Event()
        future = ref.future()
        future.add_done_callback(lambda _: done.set())
        try:
            while not done.wait(POLL_S):
                scopes.check_cancelled()
        except BaseException:
            with contextlib.suppress(self._ray.exceptions.RayError):
                stop()
            raise
        answer: Answer = future.result()
        return answer

    def _stop(self, ref: Any) -> None:
        """Interrupt a task; kill its process where that does not help."""
        self._ray.cancel(ref)
        if not self._ray.wait([ref], timeout=PATIENCE_S)[0]:
            self._ray.cancel(ref, force=True)

    def lost_node(self, error: BaseException) -> bool:
        """Whether an order, or an actor, was lost with its node; logs nodes that are gone."""
        text, exceptions = str(error), self._ray.exceptions
        named = set(re.findall(r"\b[0-9a-f]{56}\b", text))
        kinds = (getattr(exceptions, name, ()) for name in _NODE_GONE)
        died = isinstance(error, tuple(kinds)) or "node has died" in text
        # only the loss of a process is certain: give Ray time to learn of a dead node
        if not died:
            time.sleep(SETTLE_S)
        dead, fresh = self.log_lost(named if died else ())
        return died or bool(named & dead) or bool(fresh and not named)

    def log_lost(self, named: Collection[str] = ()) -> tuple[set[str], set[str]]:
        """Log each node that is gone, once; their ids, and of those that are so since last time.

        `named`: ids of nodes that are certainly gone.
        """
        with self._lock:
            # looked at first, or one that goes between the two looks is in neither
            there = {node.id: node.name for node in nodes()}
            dead = dead_nodes()
            # Ray may know it here before it does everywhere
            dead |= {id: name for id, name in there.items() if id in named}
            fresh = dead.keys() - self._dead
            self._dead |= fresh
        for id in fresh if self._speaks else ():
            log.warning(
                "node %s left the Ray cluster; what it was doing is given out again", dead[id]
            )
        left = any(n.cpus >= self.processors for n in nodes() if n.id not in fresh)
        if fresh and self._speaks and not left:
            log.warning("the Ray cluster has no node left; waiting for one to join")
        return set(dead), fresh

    def _kept(self, made: Any, out: Path) -> Encode:
        """The encode with its file at `out`. Raises InputError or ToolError as `encode` does."""
        assert isinstance(made, EncodedFile)
        try:
            with renamed_to(out) as part, open(part, "xb") as file:
                for chunk in made.chunks:
                    file.write(chunk if isinstance(chunk, bytes) else self._ray.get(chunk))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ToolError(
                    f"{made.record.rendition}: the disk of the folder {quoted(out.parent)} is "
                    "full; free some"
                ) from error
            raise InputError(
                f"cannot write in the folder {quoted(out.parent)}: {error.strerror or error}; "
                "choose another folder or free it"
            ) from error
        return replace(made.record, path=out)


_NODE_GONE = ("NodeDiedError", "ActorUnschedulableError")
"""Ray's errors that mean the loss of a node."""

_FAILED = {"encode": EncodeFailed, "device": ToolError}
"""What is raised when an order kills its processes, by its kind."""


class _Attempts:
    """How often one order was lost, with its process or with its node."""

    def __init__(self, kind: str, what: str) -> None:
        self._kind, self._what = kind, what
        self._crashes = self._losses = 0
        self.alone = False
        """Whether it is to be in a process of its own, so that a crash is known to be its own."""

    def count(self, lost: "_Lost", *, with_node: bool) -> None:
        """Count a loss. Raises EncodeFailed, DecodeFailed or ToolError if there were too many."""
        if with_node:
            self._losses += 1
            if self._losses >= MOST_LOSSES:
                raise ToolError(
                    f"{self._losses} nodes of the Ray cluster were lost while {self._what}; see "
                    "to the cluster, and the same call goes on from here"
                ) from lost
            return
        self.alone = True
        self._crashes += not lost.shared
        given_up = self._crashes >= MOST_CRASHES
        if not lost.logged:
            log.warning(
                "a process of the Ray cluster died while %s; %s",
                self._what,
                "given up" if given_up else "it is given out again",
            )
        if given_up:
            kind = _FAILED.get(self._kind, DecodeFailed)
            raise kind(f"{self._what} failed: {self._crashes} processes died of it") from lost


class _Lost(Exception):
    """An order was lost; `error` is Ray's, `logged` whether the loss was logged for another order,
    `shared` whether other orders were in the process that died."""

    def __init__(
        self, error: BaseException, *, logged: bool = False, shared: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error, self.logged, self.shared = error, logged, shared


def _losses(exceptions: Any) -> tuple[type[BaseException], ...]:
    """Ray's errors after which the same order may well succeed."""
    names = (
        *("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "RayActorError"),
        *("ActorUnschedulableError", "ObjectLostError"),
    )
    found = (getattr(exceptions, name, None) for name in names)
    return (_Lost, *(kind for kind in found if kind is not None))


def cause_of(error: BaseException) -> str:
    """The cause in one line; of an exception on a node its message, not the traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ImportError):
        return f"a node cannot import {cause.name} ({cause}); install vqaloop on every node"
    return first_line(cause or error)


def _as_score(made: Any) -> Score:
    assert isinstance(made, Score)
    return made

"""Titles of a catalogue made in processes all over a Ray cluster.

A title's search and reports compute for some 4 % of the time that short tasks take, so that a
single Python process keeps no more than some twenty workers busy. On a larger cluster every node
therefore has processes (Ray actors) that each search some titles, with a share of the workers as
their own; this process hands out titles and takes in what they report, many at a time. They use
the folders of this process, so every node must see those: else everything is searched here.
"""

import contextlib
import importlib.metadata
import logging
import os
import queue
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqaloop.catalogue.entries import Entry
from vqaloop.catalogue.plan import Task, task_of
from vqaloop.catalogue.title import TitleThreads, failed, make_title
from vqaloop.catalogue.titles import Title
from vqaloop.cluster.connection import import_ray
from vqaloop.cluster.ray_cluster import MOST_CRASHES, RayCluster, cause_of
from vqaloop.cluster.shares import Share
from vqaloop.cluster.worker import node_name
from vqaloop.core import guardian, scopes
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256, scratch
from vqaloop.core.folders import cache_folder
from vqaloop.core.text import counted, quoted
from vqaloop.core.version import __version__
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import Cancelled, ToolError, VqaloopError
from vqaloop.ladder.options import LadderOptions
from vqaloop.quality.metric import Metric
from vqaloop.records import Event, Watcher

START_S = 600.0
"""Seconds in which a process must have begun."""
GATHER_S = 0.5
"""Seconds for which a process gathers news before it sends them."""
QUIET_S = 10.0
"""Seconds after which it answers that there are none."""
RENEW_S = 5.0
"""Seconds between looks at whether a process is to be started on a node."""
PATIENCE_S = 15.0
"""Seconds that processes have to end what they do before they are killed."""
SUSPECT = 2
"""Processes that died with a title in them, after which it is made with no other beside it."""
DECIDE = ("numpy", "optuna", "scipy")
"""Libraries by whose arithmetic a search decides."""
FILES = ("weights", "prompt", "cvvdp", "audience")
"""Options that name a file, besides the input and ffmpeg."""
OURS = "VQALOOP_"
"""Beginning of the names of environment variables that count."""

POLL_S = 0.2
GONE = "it is gone"

News = tuple[int, Event | Entry | str]
"""Of a title, by its number; or a warning, of number -1."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A title to make, as it travels."""

    index: int
    title: Title
    name: str
    folder: Path
    codec: str
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, index: int, task: Task) -> "Wanted":
        return cls(index, task.title, task.name, task.folder, task.codec, task.arguments)

    def task(self, metrics: dict[tuple[Any, ...], Metric]) -> Task:
        options = LadderOptions(codec=self.codec, **self.arguments)
        return task_of(self.title, self.name, self.folder, options, metrics)


@dataclass(frozen=True)
class Setting:
    """What a process must find on its node to make titles as the one that asks would."""

    version: str
    """Of vqaloop."""
    folder: str
    """In which the other works: paths may be relative to it."""
    marks: tuple[str, ...]
    """What the other made, for as long as it runs, in the folders in which both must write."""
    sizes: Mapping[str, int]
    """Bytes of the inputs."""
    hashes: Mapping[str, str]
    """SHA-256 of files that options name, of the programs above all."""
    encoders: Mapping[str, str]
    """Specifications, by name."""
    libraries: Mapping[str, str]
    """Versions, by name."""
    environment: Mapping[str, str]

    @classmethod
    def of(cls, tasks: Sequence[Task], marks: Sequence[str]) -> "Setting":
        named = {getattr(task.options, name) for task in tasks for name in FILES}
        files = {os.fspath(file) for file in named if file and os.path.isfile(file)}
        ffmpegs = {task.options.ffmpeg for task in tasks}
        files |= {ffmpeg_path(each) for each in ffmpegs}
        inputs = {os.fspath(task.title.input) for task in tasks}
        own = {k: v for k, v in os.environ.items() if k.startswith(OURS)}
        own |= {"VQALOOP_CACHE": os.path.abspath(cache_folder())}
        own |= {"VQALOOP_FFMPEG": ffmpeg_path()} if None in ffmpegs else {}
        own.pop(guardian.VARIABLE, None)
        return cls(
            __version__,
            os.getcwd(),
            tuple(map(os.path.abspath, marks)),
            # one that has gone is its title's failure alone
            {each: os.stat(each).st_size for each in inputs if os.path.exists(each)},
            {file: file_sha256(file) for file in sorted(files)},
            {task.spec.name: repr(task.spec) for task in tasks},
            _libraries(),
            own,
        )

    def adopt(self, node: str) -> None:
        """Work in it from now on, in this process. Raises ToolError where that cannot be."""
        if self.version != __version__:
            raise ToolError(f"node {node} has vqaloop {__version__} and this is {self.version}")
        if (own := _libraries()) != self.libraries:
            raise ToolError(f"node {node} has {own} and this machine {self.libraries}")
        for name, spec in self.encoders.items():
            if repr(get_encoder(name)) != spec:
                raise ToolError(f"node {node} has another encoders/{name}.toml")
        unseen = self.folder
        try:
            os.chdir(self.folder)
            for unseen in self.marks:
                os.rmdir(tempfile.mkdtemp(dir=unseen))
            for unseen, size in self.sizes.items():
                if os.stat(unseen).st_size != size:
                    raise OSError(0, "another file")
            for unseen, sha256 in self.hashes.items():
                if file_sha256(unseen) != sha256:
                    raise OSError(0, "another file")
        except OSError as error:
            raise ToolError(
                f"node {node} does not see {quoted(unseen)} of this machine ({error.strerror})"
            ) from error
        for name in [name for name in os.environ if name.startswith(OURS)]:
            if name != guardian.VARIABLE:
                del os.environ[name]
        os.environ.update(self.environment)


def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in DECIDE}


# --- in a process on a node ---------------------------------------------------------------------


class _Warnings(logging.Handler):
    """Sends warnings along with the news."""

    def __init__(self, into: "queue.SimpleQueue[News]") -> None:
        super().__init__(logging.WARNING)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        self._into.put((-1, record.getMessage()))


class TitleActor:
    """Makes titles in a process of its own: a Ray actor."""

    def __init__(self, share: Share, processors: int, known: Mapping[str, Any]) -> None:
        """`known`: what priors began with."""
        guardian.live_apart()
        self._share, self._processors, self._known = share, processors, known
        self._wanted: dict[int, Wanted] = {}
        self._metrics: dict[tuple[Any, ...], Metric] = {}
        self._planning = threading.Lock()
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()

    def begin(self, setting: Setting) -> str | None:
        """Be ready for titles; or why they cannot be made here."""
        try:
            setting.adopt(node_name())
        except VqaloopError as error:
            return str(error)
        logging.getLogger("vqaloop").addHandler(_Warnings(self._news))
        # connected it is already: it lives in the cluster
        share = self._share
        self._cluster = RayCluster("auto", processors=self._processors, workers=share.workers)
        self._cluster.keep_to(share)
        self._threads = TitleThreads(self._make, share.most_open)
        threading.Thread(target=self._forward, daemon=True).start()
        return None

    def _make(self, index: int, progress: Watcher) -> Entry:
        wanted = self._wanted.pop(index)
        try:
            # one at a time: titles of the same options share a metric
            with self._planning:
                task = wanted.task(self._metrics)
        except Exception as error:
            return failed(wanted, error)
        return make_title(task, self._cluster, self._known, progress)

    def _forward(self) -> None:
        # titles that are called off have no entries
        with contextlib.suppress(Cancelled):
            while True:
                for news in self._threads.news(QUIET_S):
                    self._news.put(news)

    def make(self, wanted: Sequence[Wanted]) -> None:
        """Begin titles: no more at a time than the share says."""
        self._wanted |= {each.index: each for each in wanted}
        self._threads.take(deque(each.index for each in wanted))

    def news(self) -> list[News]:
        """What is new, once there is something."""
        found = list[News]()
        with contextlib.suppress(queue.Empty):
            found.append(self._news.get(timeout=QUIET_S))
            time.sleep(GATHER_S)
            while True:
                found.append(self._news.get_nowait())
        return found

    def close(self) -> None:
        """End what is under way, and the scoring processes."""
        self._threads.close()
        self._cluster.close()


# --- in the process that asks -------------------------------------------------------------------


@dataclass(eq=False)
class _Process:
    """One of them, as it is known here."""

    share: Share
    actor: Any
    answer: Any
    """Ray's reference to what it was asked last: at first whether it can begin."""
    asked: float
    """When that was, by the monotonic clock."""
    begun: bool = False
    open: set[int] = field(default_factory=set)
    """Titles begun there and not ended."""

    @property
    def room(self) -> int:
        """Titles that it can take."""
        return self.share.most_open - len(self.open) if self.begun else 0


@contextlib.contextmanager
def opened_actors(
    tasks: Sequence[Task],
    cluster: RayCluster,
    known: Mapping[str, Any],
    folder: Path,
    here: TitleThreads,
) -> "Iterator[TitleActors | TitleThreads]":
    """Processes for the titles; `here` where this one is enough, or a node sees not its folders.

    `folder` is the catalogue's.
    """
    if len(cluster.shares()) < 2:
        yield here
        return
    with contextlib.ExitStack() as stack:
        places = [folder]
        if any(task.options.cache for task in tasks):
            places.append(cache_folder())
            places[-1].mkdir(parents=True, exist_ok=True)
        marks = [stack.enter_context(scratch(place)) for place in places]
        made = TitleActors(tasks, cluster, known, Setting.of(tasks, marks), here)
        stack.enter_context(contextlib.closing(made))
        if not (reason := made.begun()):
            yield made
            return
    log.warning("titles are searched on this machine alone, which may be too slow: %s", reason)
    yield here


class TitleActors:
    """Hands out titles to processes on nodes; those of a process that is lost are made again."""

    def __init__(
        self,
        tasks: Sequence[Task],
        cluster: RayCluster,
        known: Mapping[str, Any],
        setting: Setting,
        here: TitleThreads,
    ) -> None:
        """`here`: makes them where no node can."""
        self._tasks, self._cluster, self._known = tasks, cluster, known
        self._setting, self._here, self._ray = setting, here, import_ray()
        self._processes: list[_Process] = []
        self._unfit: set[str] = set()
        """Nodes on which none can begin."""
        self._lost: deque[int] = deque()
        """Titles to begin again."""
        self._deaths, self._alone = Counter[int](), Counter[int]()
        """Processes that died with a title in them, and with it alone."""
        self._suspects: deque[int] = deque()
        self._apart: _Process | None = None
        """Where suspects are made one by one."""
        self._renew()

    def begun(self) -> str | None:
        """Wait until all have begun; the reason of one that cannot."""
        while any(not process.begun for process in self._processes):
            scopes.check_cancelled()
            for process in self._answered(POLL_S):
                if process.begun:
                    continue
                if (reason := self._began(process)) and reason != GONE:
                    return reason
        return None

    def _renew(self) -> None:
        """Start processes on nodes that have none."""
        self._renewed = time.monotonic()
        self._cluster.log_lost()
        has = self._unfit | {process.share.node.id for process in self._processes}
        for share in self._cluster.shares():
            if share.node.id not in has:
                self._start(share)

    def _start(self, share: Share) -> None:
        actor = _actor(share, self._cluster.processors, self._known)
        answer = actor.begin.remote(self._setting)
        self._processes.append(_Process(share, actor, answer, time.monotonic()))

    def _answered(self, timeout_s: float) -> list[_Process]:
        """Those that have answered, are lost, or do not begin in time."""
        asked = {process.answer: process for process in self._processes}
        ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        late = time.monotonic() - START_S
        found = [asked[reference] for reference in ready]
        return found + [
            process
            for process in self._processes
            if not process.begun and process.asked < late and process not in found
        ]

    def _began(self, process: _Process) -> str | None:
        """Ask a process that has begun for its news; else drop it and give the reason."""
        try:
            reason: str | None = self._ray.get(process.answer, timeout=POLL_S)
        except self._ray.exceptions.RayError as error:
            # a node that is gone is spoken of apart
            gone = self._cluster.lost_node(error)
            reason = f"no process begins on node {process.share.node.name}: {cause_of(error)}"
            reason = GONE if gone else reason
        if reason is None:
            process.begun = True
            self._ask(process)
            return None
        self._unfit.add(process.share.node.id)
        self._drop(process)
        return reason

    def _ask(self, process: _Process) -> None:
        process.answer = process.actor.news.options(concurrency_group="waits").remote()

    def _drop(self, process: _Process) -> None:
        self._processes.remove(process)
        if self._apart is process:
            self._apart = None
        with contextlib.suppress(Exception):
            self._ray.kill(process.actor)

    def take(self, waiting: deque[int]) -> None:
        """Begin those of the titles that there is room for."""
        if time.monotonic() - self._renewed > RENEW_S:
            self._renew()
        waiting.extendleft(reversed(self._lost))
        self._lost.clear()
        if not self._processes and self._cluster.shares():
            # there are nodes, and none can: as where there is one machine
            waiting.extend(self._suspects)
            self._suspects.clear()
            self._here.take(waiting)
            return
        begun = [process for process in self._processes if process.begun]
        given: dict[_Process, list[int]] = {process: [] for process in begun}
        if not self._suspects:
            self._apart = None
        elif begun:
            # from now on nothing else is begun there, so that it empties
            self._apart = self._apart or min(begun, key=lambda each: len(each.open))
            if not self._apart.open:
                given[self._apart].append(self._suspects.popleft())
        room = {process: process.room for process in begun if process is not self._apart}
        while waiting and room and max(room.values()) > 0:
            process = max(room, key=lambda each: room[each])
            given[process].append(waiting.popleft())
            room[process] -= 1
        for process, titles in given.items():
            if titles:
                process.open |= set(titles)
                process.actor.make.remote([Wanted.of(n, self._tasks[n]) for n in titles])

    def news(self, timeout_s: float) -> list[tuple[int, Event | Entry]]:
        """What titles reported, and the entries of those that ended, once there is any."""
        if not self._processes:
            return self._here.news(timeout_s)
        found = self._here.news(0)
        for process in self._answered(timeout_s):
            if not process.begun:
                if (reason := self._began(process)) and reason != GONE:
                    log.warning("%s; it only encodes", reason)
                continue
            try:
                told: list[News] = self._ray.get(process.answer)
            except self._cluster.losses as error:
                found += self._bereft(process, error)
                continue
            except self._ray.exceptions.RayError as error:
                raise ToolError(f"the Ray cluster failed: {cause_of(error)}") from error
            self._ask(process)
            for index, what in told:
                if isinstance(what, str):
                    log.warning("%s", what)
                    continue
                if isinstance(what, Entry):
                    process.open.discard(index)
                found.append((index, what))
        return found

    def _bereft(self, process: _Process, error: BaseException) -> list[tuple[int, Entry]]:
        """A process is lost: its titles are made again, but for one that it surely died of."""
        self._drop(process)
        titles = sorted(process.open)
        if self._cluster.lost_node(error):
            self._lost += titles
            return []
        log.warning(
            "a process of the Ray cluster died while it searched %s; they are taken up again",
            counted(len(titles), "title"),
        )
        self._start(process.share)
        self._deaths.update(titles)
        if len(titles) == 1:
            self._alone.update(titles)
        ended = list[tuple[int, Entry]]()
        for index in titles:
            if self._alone[index] >= MOST_CRASHES:
                reason = f"its search failed: {MOST_CRASHES} processes died of it"
                ended.append((index, failed(self._tasks[index], ToolError(reason))))
            elif self._deaths[index] >= SUSPECT:
                self._suspects.append(index)
            else:
                self._lost.append(index)
        return ended

    def close(self) -> None:
        """End what is under way, then the processes."""
        closing = [process.actor.close.remote() for process in self._processes if process.begun]
        with contextlib.suppress(self._ray.exceptions.RayError):
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=PATIENCE_S)
        for process in list(self._processes):
            self._drop(process)


def _actor(share: Share, processors: int, known: Mapping[str, Any]) -> Any:
    ray = import_ray()
    strategies = ray.util.scheduling_strategies
    # who waits for news has a thread of its own: to begin titles, or end them, must not wait
    actor = ray.remote(concurrency_groups={"waits": 1})(TitleActor).options(
        num_cpus=0,
        max_concurrency=2,
        max_restarts=0,
        scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(share.node.id, soft=False),
    )
    return actor.remote(share, processors, known)

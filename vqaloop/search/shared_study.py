"""Optuna studies that are persistent and shared by processes, on one machine or several.

A study is a table of trials: parameters, owner, result. Every process that runs the same command
against the same storage reads finished trials, claims waiting ones, and waits for those that
others have claimed; the trials of a process that died are enqueued again. So an answer that is a
function of finished trials alone is the same whoever made them, and however often it was
interrupted.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import filelock
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, SQLAlchemyError

from vqaloop.core.folders import STUDY_FILE
from vqaloop.core.scopes import check_cancelled
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError

DELIVERING = f".{STUDY_FILE}.delivering"
"""There while files are put into an output folder."""

JOURNAL = "journal:"

BEAT_S = 10.0
"""Seconds between two heartbeats of a process."""
STALE_S = 60.0
"""Seconds without a heartbeat after which a process on another machine counts as dead."""
POLL_S = 0.25
TRIES = 4
"""Attempts to open a database."""

Params = Mapping[str, Any]
Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a trial."""

    values: tuple[float, ...] | None
    """One for each direction of the study; None when the trial failed."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Kept with it; JSON values only."""


def open_storage(where: str | None) -> BaseStorage:
    """A storage: in memory (None), `journal:FILE`, or an SQLAlchemy URL such as sqlite:///FILE.

    Raises InputError for one that cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if where is None:
        return InMemoryStorage()
    remedy = "give sqlite:///FILE, another database URL, or journal:FILE"
    # one that nobody named lies in the output folder: its remedy is another
    own = where.endswith(f"/{STUDY_FILE}") and Path(where.removeprefix("sqlite:///")).is_file()
    if own:
        remedy = "delete it (what was encoded is in the cache), or name another folder with -o"
    try:
        if where == JOURNAL:
            raise InputError("journal: needs a file; write it as journal:FILE")
        if where.startswith(JOURNAL):
            return JournalStorage(JournalFileBackend(where.removeprefix(JOURNAL)))
        if "://" not in where:
            raise InputError(f"storage {where!r} is no URL; {remedy}")
        # a database that others write to is waited for
        options = {"connect_args": {"timeout": 60}} if where.startswith("sqlite") else {}
        for _ in range(TRIES - 1):
            # two processes that make the same database at once get in each other's way
            with contextlib.suppress(IntegrityError, OperationalError):
                return RDBStorage(where, engine_kwargs=options)
            time.sleep(POLL_S)
        return RDBStorage(where, engine_kwargs=options)
    except InputError:
        raise
    except Exception as error:  # SQLAlchemy's and every driver's own
        why = _first_line(error)
        raise InputError(f"cannot open the storage {shown(where)!r}: {why}; {remedy}") from error


@contextlib.contextmanager
def kept_in(where: str | None) -> Iterator[None]:
    """Trouble with the storage while inside becomes a ToolError that says so."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, json.JSONDecodeError) as error:
        raise ToolError(
            f"the study could not be kept in {shown(where)!r}: {_first_line(error)}; make room "
            "there or give another --storage; what was encoded is in the cache"
        ) from error


def shown(where: str | None) -> str:
    """A storage as it may be shown and written down: without its password."""
    if not where or where.startswith(JOURNAL):
        return where or ""
    try:
        return make_url(where).render_as_string(hide_password=True)
    except ArgumentError:
        return where.partition("://")[0]


def _first_line(error: BaseException) -> str:
    lines = str(error.__cause__ or error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def default_storage(folder: Path) -> str:
    """URL of the SQLite file in an output folder, whose name may hold any letter."""
    path = os.fspath(folder.absolute() / STUDY_FILE)
    # not all versions of SQLAlchemy undo percent signs
    for written in (path, quote(os.fsencode(path))):
        if make_url(f"sqlite:///{written}").database == path:
            # Optuna takes it for a template
            return f"sqlite:///{written}".replace("{", "{{").replace("}", "}}")
    raise InputError(f"no study can be kept in a folder named {quoted(folder)}; rename it")


class SharedStudy:
    """This process's part in a study. Use it as a context manager.

    Safe to use from several threads.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        directions: Sequence[Literal["minimize", "maximize"]],
        distributions: Mapping[str, BaseDistribution],
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=list(directions),
            load_if_exists=True,
            # asked only when another process took the last waiting trial first
            sampler=sampler or optuna.samplers.RandomSampler(seed=0),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        self.distributions = dict(distributions)
        self._shared = not isinstance(storage, InMemoryStorage)
        self._me = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._claims = _claims_lock(storage)
        self._leaving = threading.Event()
        self._forgiven: set[int] = set()
        self._pulse = threading.Thread(target=self._beat_on, daemon=True)

    def __enter__(self) -> "SharedStudy":
        with self._lock, self._claims:
            beats = self.study.user_attrs
            if not any(_is_alive(beats[name]) for name in beats if name.startswith("alive ")):
                # what failed an earlier run may not fail this one: a full disk, a killed encoder
                failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
                # written down, so that whoever joins forgives the same
                self.study.set_user_attr("forgiven", [trial.number for trial in failed])
            self._forgiven = set(self.study.user_attrs.get("forgiven", ()))
            if self._shared:
                self._beat(time.time())
        if self._shared:
            self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shared:
            self._leaving.set()
            self._pulse.join()
            # a last heartbeat; without it the process counts as dead a little later
            with contextlib.suppress(StorageInternalError, SQLAlchemyError, OSError):
                self._beat(0.0)

    def settle(
        self,
        wanted: Sequence[Params],
        work: Callable[[dict[str, Any]], Outcome],
        crew: Callable[[Callable[[int], None]], object] = lambda drain: drain(0),
    ) -> list[FrozenTrial]:
        """The finished trials of these points, in their order; made here where nobody has.

        `work` makes one; `crew` runs the function it is given once in every worker, and each takes
        trials until none is waiting. A trial whose `work` raises is enqueued again.
        """
        while True:
            with self._lock, self._claims:
                trials = self.standing()
                # inside the lock, or two processes would enqueue the same point
                for params in wanted:
                    if key_of(params) not in trials:
                        self.study.enqueue_trial(dict(params), user_attrs={"asked": True})
            crew(lambda _: self._drain(work))
            trials = self.standing()
            found = [trials.get(key_of(params)) for params in wanted]
            done = [trial for trial in found if trial is not None and trial.state.is_finished()]
            if len(done) == len(wanted):
                return done
            # others are at work on the rest, or died of it
            self.release_lost()
            check_cancelled()
            time.sleep(POLL_S)

    def begun(self, name: str, make: Callable[[], Any]) -> Any:
        """The study's value of this name (JSON only), made by the process that asks first."""
        with self._lock, self._claims:
            if name not in self.study.user_attrs:
                self.study.set_user_attr(name, make())
            return self.study.user_attrs[name]

    def ask(self) -> optuna.Trial:
        """A trial of the sampler's choice, marked as ours."""
        with self._lock, self._claims:
            trial = self.study.ask(self.distributions)
            trial.set_user_attr("owner", self._me)
            return trial

    def tell(self, trial: optuna.Trial | FrozenTrial, values: Sequence[float] | None) -> bool:
        """End a trial: with its values, or (None) as failed. False when it has ended already."""
        try:
            if values is None:
                self.study.tell(trial.number, state=TrialState.FAIL)
            else:
                self.study.tell(trial.number, list(values))
        except ValueError:  # it was taken for lost, by us or by another
            return False
        return True

    def standing(self) -> dict[Key, FrozenTrial]:
        """The trial of each point, by its parameters: the first that is not lost."""
        found: dict[Key, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            lost = trial.state == TrialState.FAIL and "error" not in trial.user_attrs
            if lost or trial.number in self._forgiven:
                continue
            found.setdefault(key_of(_params(trial)), trial)
        return found

    def release_lost(self) -> int:
        """Fail the running trials whose process is dead, so that they are enqueued again."""
        lost = 0
        alive: dict[str, bool] = {self._me: True}
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # read after the trials: a process has sent a heartbeat before it claims one
        beats = self.study.user_attrs
        for trial in running:
            owner = trial.user_attrs.get("owner")
            if owner is None:
                # its process died between claiming and signing it, or is just about to sign
                started = trial.datetime_start
                gone = started is not None and time.time() - started.timestamp() > STALE_S
            else:
                if owner not in alive:
                    alive[owner] = _is_alive(beats.get(f"alive {owner}"))
                gone = not alive[owner]
            if gone:
                lost += self.tell(trial, None)
        return lost

    def _drain(self, work: Callable[[dict[str, Any]], Outcome]) -> None:
        while (trial := self._claim()) is not None:
            outcome = work(dict(trial.params))
            # unless it was taken for lost meanwhile, and given out again
            with contextlib.suppress(UpdateFinishedTrialError):
                for name, value in outcome.attrs.items():
                    trial.set_user_attr(name, value)
                self.tell(trial, outcome.values)

    def _claim(self) -> optuna.Trial | None:
        """A waiting trial that is now ours, or None when there is none."""
        with self._lock, self._claims:
            while self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                trial = self.study.ask(self.distributions)
                trial.set_user_attr("owner", self._me)
                first = self.standing().get(key_of(trial.params))
                if "asked" in trial.user_attrs and first and first.number == trial.number:
                    return trial
                # asked for twice, by two processes at once; or one of the sampler's own making
                self.tell(trial, None)
        return None

    def _beat_on(self) -> None:
        while not self._leaving.wait(BEAT_S):
            # a storage that fails for a while is no reason to stop working
            with contextlib.suppress(StorageInternalError, SQLAlchemyError, OSError):
                self._beat(time.time())

    def _beat(self, at: float) -> None:
        host = _host()
        self.study.set_user_attr(
            f"alive {self._me}",
            {"host": host, "process": os.getpid(), "born": _born(os.getpid()), "at": at},
        )


def _claims_lock(storage: BaseStorage) -> contextlib.AbstractContextManager[Any]:
    """Held while a trial is taken: SQLite, unlike others, gives the same one to two at once."""
    if isinstance(storage, RDBStorage) and storage.engine.url.get_backend_name() == "sqlite":
        file = storage.engine.url.database
        if file and file != ":memory:":
            path = Path(file.removeprefix("file:"))
            # hidden, since it lies in the folder that is delivered
            return filelock.FileLock(path.with_name(f".{path.name}.lock"))
    return contextlib.nullcontext()


def key_of(params: Params) -> Key:
    """Parameters as a key: the same for the same point, in whatever order they were set."""
    return tuple(sorted(params.items()))


def _params(trial: FrozenTrial) -> Params:
    """A trial's point: what it was asked for, since its own parameters are set one by one."""
    asked: Params = trial.system_attrs.get("fixed_params", trial.params)
    return asked


def _host() -> str:
    """This machine, with the namespace in which its process ids are valid."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _born(process: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks; None when there is none."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _is_alive(beat: Mapping[str, Any] | None) -> bool:
    if not beat or not beat["at"]:
        return False
    if beat["host"] != _host():
        return bool(time.time() - beat["at"] <= STALE_S)
    # of a process of this machine the kernel knows, whatever the clocks say
    born = _born(beat["process"])
    return born is not None and born == beat.get("born", born)

"""Long calls in the background: their events, cancellation and result, also in asyncio.

    job = Job(vqaloop.encode_to_target, "in.mp4", "out.mp4", codec="av1", target_score=90)
    for event in job:
        print(event.message)
    print(job.result().score)

In asyncio `async for event in job` and `await job`; a task that is cancelled there takes the call
with it, programs and temporary files included.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from vqaloop.core import scopes
from vqaloop.errors import CalledOff, Cancelled
from vqaloop.records import Event

Result = TypeVar("Result")


class Job(Generic[Result]):
    """A call on a thread of its own, begun at once.

    Iterating over it, with `for` or `async for`, yields its `Event`s until it ends. Events are
    kept until they are taken, each given out once. To stop iterating does not stop the call;
    `cancel` does, and so does the cancellation of an asyncio task that awaits it.

    Args:
        call: A function that takes `progress`, such as `build_ladder`.
        *args: Its arguments.
        **options: Its keyword arguments, without `progress`.
    """

    def __init__(self, call: Callable[..., Result], /, *args: Any, **options: Any) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._answer: list[Result] = []
        self._error: BaseException | None = None
        # an event of our own: a join that is interrupted may take a thread for ended
        self._over, self._scope = threading.Event(), scopes.Scope()
        self._thread = threading.Thread(
            target=self._run, args=(call, args, options), name="vqaloop job", daemon=True
        )
        self._thread.start()

    def _run(self, call: Callable[..., Result], args: Any, options: dict[str, Any]) -> None:
        try:
            with self._scope.entered():
                self._answer.append(call(*args, progress=self._on_event, **options))
        except CalledOff:
            self._error = Cancelled(
                "called off; what was finished is kept, and the same call goes on"
            )
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()
            self._events.put(None)

    def _on_event(self, event: Event) -> None:
        self._events.put(event)
        # so that a call that runs no program ends as well
        scopes.check_cancelled()

    @property
    def running(self) -> bool:
        """Whether the call has not ended yet."""
        return not self._over.is_set()

    def cancel(self) -> None:
        """Cancel the call: its programs are killed at once.

        Wait for `result` to know that it has ended. What was encoded stays in the cache, and the
        same call goes on from there.
        """
        self._scope.cancel()

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the call.

        Args:
            timeout_s: Seconds to wait at most, by default as long as it takes.

        Returns:
            What the call returned.

        Raises:
            Cancelled: It was cancelled.
            TimeoutError: It did not end in time.
            Exception: Whatever else the call raised.
        """
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"not done after {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def __iter__(self) -> Iterator[Event]:
        while (event := self._events.get()) is not None:
            yield event
        # so that another loop ends as well
        self._events.put(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            while True:
                try:
                    event = self._events.get_nowait()
                except queue.Empty:
                    await asyncio.sleep(_POLL_S)
                    continue
                if event is None:
                    self._events.put(None)
                    return
                yield event
        except asyncio.CancelledError:
            # the task ends with the call, or its programs would outlive it
            await self._ended()
            raise

    def __await__(self) -> Generator[Any, None, Result]:
        return self._awaited().__await__()

    async def _awaited(self) -> Result:
        try:
            while self.running:
                await asyncio.sleep(_POLL_S)
        except asyncio.CancelledError:
            await self._ended()
            raise
        return self.result()

    async def _ended(self) -> None:
        self.cancel()
        while self.running:
            await asyncio.sleep(_POLL_S)


_POLL_S = 0.05
"""Seconds between two checks of a job from asyncio: far less than any encode takes."""

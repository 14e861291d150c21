"""A headless Chromium led through its debugging pipe, for tests of pages."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

LIMIT_S = 90.0
"""Seconds that one answer may take; a busy machine may stall."""


def chromium() -> str:
    """The browser's own binary, past a distribution's launcher where there is one."""
    names = (os.environ.get("CHROMIUM", ""), "/usr/lib/chromium/chromium", "chromium", "chrome")
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found is None:
        pytest.skip("no Chromium here (name one in $CHROMIUM)")
    return found


class Tab:
    """One tab; what its console says of trouble is kept in `complaints`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest = b""
        self._count = 0
        self._session: str | None = None
        self._seen: list[str] = []
        self.complaints: list[str] = []
        made = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + LIMIT_S
        while (answer := self._next(until)).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser never answered"
            data = os.read(self._from, 1 << 20)
            assert data, "the browser ended"
            self._rest += data
        text, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(text)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        self._seen.append(method)
        if method == "Log.entryAdded":
            self.complaints.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))

    def open(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Load a file in a window of that width."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._seen.clear()
        self.call("Page.navigate", url=page.absolute().as_uri())
        until = time.monotonic() + LIMIT_S
        while "Page.loadEventFired" not in self._seen:
            self._note(self._next(until))

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "Tab": 9, "End": 35}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the mouse, from one point of the window to another."""
        for kind, (x, y), buttons in (
            ("mousePressed", start, 1),
            ("mouseMoved", end, 1),
            ("mouseReleased", end, 0),
        ):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1,
            )  # fmt: skip

    def picture(self, box: Sequence[float] | None = None) -> Image.Image:
        """A screenshot of the whole page, or of a box (left, top, width, height) of it."""
        if box is None:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            box = 0, 0, size["width"], size["height"]
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True))
        shot = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}
        )
        return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A browser with one empty tab; it is gone afterwards."""
    pipes = [os.pipe(), os.pipe()]
    # numbers that the browser's own, 3 and 4, do not overwrite
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (pipes[0][0], pipes[1][1])]
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"),
        *("--hide-scrollbars", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
        f"--user-data-dir={profile}",
    ]
    moved = "import os, sys; [os.dup2(int(sys.argv[n]), n + 2) for n in (1, 2)]"
    browser = subprocess.Popen(
        [
            *(sys.executable, "-c", f"{moved}; os.execv(sys.argv[3], sys.argv[3:])"),
            *(str(ends[0]), str(ends[1]), chromium(), *options),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=ends,
        start_new_session=True,
    )
    for fd in (*ends, pipes[0][0], pipes[1][1]):
        os.close(fd)
    try:
        yield Tab(pipes[0][1], pipes[1][0])
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        for fd in (pipes[0][1], pipes[1][0]):
            os.close(fd)

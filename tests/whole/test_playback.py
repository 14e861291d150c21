"""Deliveries in a real browser: headless Chromium, with hls.js and dash.js as npm has them.

The page (player.html) plays a manifest in real time, climbs through the rungs and posts what
happened; nothing but the page, the players and the delivery is served.
"""

import functools
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.deliveries import FRAMES, RUNGS, make_ladder, make_title
from tests.support.media import REPOSITORY
from vqaloop.delivery.package import package_ladder

pytestmark = pytest.mark.slow

LIMIT_S = 60
"""Seconds a title of 14 may take; a busy machine may stall."""
PLAYERS = {
    "hls.js": "node_modules/hls.js/dist/hls.min.js",
    "dash.js": "node_modules/dashjs/dist/modern/umd/dash.all.min.js",
}


def chromium() -> str:
    """The browser's own binary, past a distribution's launcher where there is one."""
    names = (os.environ.get("CHROMIUM", ""), "/usr/lib/chromium/chromium", "chromium", "chrome")
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found is None:
        pytest.skip("no Chromium here (name one in $CHROMIUM)")
    return found


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page and both players."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no node or npm here")
    folder = tmp_path_factory.mktemp("site")
    command = [
        npm,
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "hls.js@1",
        "dashjs@5",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm could not install the players: {done.stderr.strip()[-200:]}")
    for name, place in PLAYERS.items():
        shutil.copy(folder / place, folder / name)
    shutil.copy(REPOSITORY / "tests" / "support" / "player.html", folder)
    return folder


@pytest.fixture(scope="session")
def shown(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 as HLS and DASH, and VP9 and H.264 together, inside the site."""
    place = tmp_path_factory.mktemp("ladders")
    source = make_title(place / "title.mkv")
    for codec in ("h264", "vp9"):
        make_ladder(place / "both" / codec, source, codec)
        package_ladder(place / "both" / codec, out=site / codec, segment_s=2)
    package_ladder(place / "both", out=site / "both")
    return site


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, takes one answer, says nothing."""

    answers: "queue.Queue[dict[str, Any]]"

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        self.answers.put(json.loads(self.rfile.read(size)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, "queue.Queue[dict[str, Any]]"]]:
    """The folder on a free port of this machine alone, and where its answers arrive."""
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    handler = type("Bound", (Handler,), {"answers": answers})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=os.fspath(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def play(site: Path, kind: str, url: str, profile: Path, *, climb: bool = True) -> dict[str, Any]:
    """What the page says after it has played a manifest to its end, or given up."""
    with served(site) as (port, answers):
        asked = {"kind": kind, "url": url, "limit": LIMIT_S, "climb": "yes" if climb else "no"}
        query = urllib.parse.urlencode(asked)
        browser = subprocess.Popen(
            [
                chromium(),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio"),
                *("--autoplay-policy=no-user-gesture-required", "--no-first-run"),
                *("--disable-dev-shm-usage", f"--user-data-dir={profile}"),
                f"http://127.0.0.1:{port}/player.html?{query}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return answers.get(timeout=LIMIT_S + 60)
        except queue.Empty:
            pytest.fail("the browser never answered")
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


@pytest.mark.parametrize(
    ("kind", "codec", "url"),
    [
        ("hls", "h264", "h264/master.m3u8"),
        ("dash", "h264", "h264/manifest.mpd"),
        ("dash", "vp9", "vp9/manifest.mpd"),
        ("dash", "h264", "both/manifest.mpd"),
    ],
)
def test_a_browser_plays_to_the_end_through_all_rungs(
    kind: str, codec: str, url: str, shown: Path, tmp_path: Path
) -> None:
    answer = play(shown, kind, url, tmp_path / "profile")
    print(json.dumps(answer))
    assert answer["errors"] == [] and answer["fault"] is None
    assert answer["ended"], answer
    assert answer["rungs"] == len(RUNGS[codec])
    # it showed every rung, and came back to one that it had left
    wanted = [f"{width}x{height}" for width, height, _ in RUNGS[codec]]
    assert set(answer["sizes"]) == set(wanted)
    assert len(answer["sizes"]) > len(wanted)
    assert answer["corrupted"] == 0
    # a browser without a GPU draws few of them, and each change of rung begins anew
    assert answer["frames"] > FRAMES // 10
    # the sound was decoded too, and the time is that of the title
    assert answer["sound"] > 0
    assert abs(answer["duration"] - FRAMES * 1001 / 30000) < 0.1


@pytest.mark.parametrize(
    ("kind", "url"), [("hls", "h264/master.m3u8"), ("dash", "vp9/manifest.mpd")]
)
def test_a_browser_decodes_every_frame_of_a_rung(
    kind: str, url: str, shown: Path, tmp_path: Path
) -> None:
    answer = play(shown, kind, url, tmp_path / "profile", climb=False)
    print(json.dumps(answer))
    assert answer["errors"] == [] and answer["fault"] is None and answer["ended"]
    assert len(answer["sizes"]) == 1 and len(answer["buffered"]) == 1
    assert answer["frames"] == FRAMES and answer["corrupted"] == 0
    # no stall after the one at the start
    assert all(time < 0.5 for time in answer["stalls"])

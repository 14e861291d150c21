"""The page that plays a delivery: what it holds, what it is refused for, and that it plays."""

import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import browsing
from tests.support.commandline import Room
from tests.support.deliveries import make_ladder
from vqaloop.delivery.package import package_ladder
from vqaloop.errors import InputError
from vqaloop.records import Ladder, Source


def test_the_page_names_the_rungs_and_is_listed(room: Room, h264_ladder: Path) -> None:
    said = room.run("deliver", h264_ladder, "--page", "-o", "a b", "--json", "a.json")
    assert said.status == 0, said.err
    assert f"http.server -d '{room.folder}/a b'" in said.out and "/play.html" in said.out
    about = json.loads((room.folder / "a.json").read_text())
    text = (room.folder / "a b" / "play.html").read_text()
    held = json.loads(text.split('id="delivery">')[1].split("</script>")[0])
    assert [rung["id"] for rung in held["rungs"]] == [r["id"] for r in about["renditions"]]
    assert len(held["rungs"]) == 3
    assert held["rungs"][0]["words"].startswith("128x72, ") and "score 40.0" in text
    assert held["audio"]["id"] == about["audio"]["id"] == "audio"
    listed = {each["path"]: each["bytes"] for each in about["files"]}
    assert listed["play.html"] == len(text.encode())
    # nothing comes from elsewhere, and without being asked for there is no page
    policy = text.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy
    assert "http" not in policy
    room.run("deliver", h264_ladder, "-o", "a b")
    assert not (room.folder / "a b" / "play.html").exists()


def test_names_are_data(own_ladder: Ladder, tmp_path: Path) -> None:
    document = own_ladder.to_json()
    document["source"]["path"] = "/x/</script><b>&\n.mkv"
    (own_ladder.folder / "ladder.json").write_text(json.dumps(document))
    made = package_ladder(own_ladder.folder, out=tmp_path / "out", page=True)
    text = (made.folder / "play.html").read_text()
    assert "<b>&" not in text and text.count("</script>") == 2
    assert "script&gt;&lt;b&gt;&amp;\\n.mkv</h1>" in text


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"hls": False}, "or deliver HLS too"), ({"keys": "k.toml"}, "or --encrypt")],
)
def test_what_the_page_cannot_play_is_refused(
    own_ladder: Ladder, tmp_path: Path, asked: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=f"--page plays HLS that is not encrypted.*{why}"):
        package_ladder(own_ladder.folder, out=tmp_path / "out", page=True, **asked)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_codecs_that_hls_has_not_are_refused(short_title: Source, tmp_path: Path) -> None:
    folder = make_ladder(tmp_path / "vp9", short_title, "vp9", [(128, 72, 55)]).folder
    with pytest.raises(InputError, match="none of these codecs"):
        package_ladder(folder, out=tmp_path / "out", page=True)
    assert not (tmp_path / "out").exists()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a plain server of a folder, which knows no byte ranges."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("single_file", [False, True])
def test_a_browser_plays_it_and_takes_another_rung(
    codec_ladders: Path, tmp_path: Path, single_file: bool
) -> None:
    made = package_ladder(
        [codec_ladders / codec for codec in ("h264", "av1")],
        out=tmp_path / "out", single_file=single_file, page=True,
    )  # fmt: skip

    def until(condition: str) -> None:
        deadline = time.monotonic() + 60
        while not tab.ask(f"(video => {condition})(document.querySelector('video'))"):
            state = tab.ask("document.querySelector('#state').textContent")
            assert time.monotonic() < deadline, (condition, state)
            time.sleep(0.1)

    with served(made.folder) as address, browsing(tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=f"{address}/play.html")
        until("video && video.readyState === 4 && video.videoWidth === 320")
        tab.ask("document.querySelector('video').play()")
        until("video.currentTime > 1")
        # while it stands still another rung is shown at once
        tab.ask("document.querySelector('video').pause()")
        # the lowest rung of the other codec
        chosen = (
            "(m => { m.value = [...m.options].findIndex(o => /^128.*av1$/.test(o.text));"
            " m.dispatchEvent(new Event('change')); })"
        )
        tab.ask(f"{chosen}(document.querySelector('select'))")
        until("video.videoWidth === 128")
        assert tab.ask("document.querySelector('video').currentTime") < 10
        tab.ask("document.querySelector('video').play()")
        tab.ask("document.querySelector('video').currentTime = 12")
        until("video.ended && video.currentTime > 14")
        assert tab.complaints == []

"""A real server: jobs and pages over HTTP, hostile requests, what a kill leaves, the page."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.browser import Tab, browsing
from tests.support.commandline import Room, running
from tests.support.media import make_clip
from vqaloop.errors import InputError
from vqaloop.report.events import SCHEMA
from vqaloop.service.gate import Rate, is_loopback
from vqaloop.service.job_store import ATTEMPTS, Job, JobStore
from vqaloop.service.places import NotThere, inside, make_places
from vqaloop.service.server import read_token
from vqaloop.service.submission import allowed_options, asked_work, read_submission
from vqaloop.service.titles import TitleWork

httpx = pytest.importorskip("httpx")
for name in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(name)

TOKEN = "a-token-of-the-tests-0123456789"
SECRET = "the secret of another folder"
SMALL = {
    **{"metric": "psnr", "preset": "ultrafast", "rungs": 2, "min-step": 0.2},
    "min_ratio": "1.2",
}
"""Options of a ladder that takes about a second."""
WORK = TitleWork(("h264",), ("--codec", "h264"), None)


@dataclass
class Server:
    """A server process, and a client of it."""

    process: "subprocess.Popen[str]"
    address: str
    client: Any

    def submit(self, **more: Any) -> Any:
        job = {"codec": "h264", "options": SMALL, **more}
        return self.client.post("/api/v1/jobs", json=job)

    def ended(self, id: str, within_s: float = 240) -> dict[str, Any]:
        return self.until(id, {"done", "untrusted", "failed", "cancelled"}, within_s)

    def until(self, id: str, states: set[str], within_s: float = 240) -> dict[str, Any]:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            found: dict[str, Any] = self.client.get(f"/api/v1/jobs/{id}").json()
            if found["state"] in states:
                return found
            time.sleep(0.1)
        raise AssertionError(f"still {found}")


@contextlib.contextmanager
def serving(room: Room, *options: str, token: str = "", ends: bool = True) -> Iterator[Server]:
    """`vqaloop serve srv --media media` on a free port; interrupted at the end."""
    (room.folder / "media").mkdir(exist_ok=True)
    words = [sys.executable, "-m", "vqaloop", "serve", "srv", "--media", "media", "--port", "0"]
    env = {**os.environ, "VQALOOP_TOKEN": token, "PYTHONPATH": os.getcwd()}
    env = {**env, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        [*words, "--max-rate", "1000000", *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=room.folder,
        env=env,
    )
    assert process.stderr
    address, said = "", ""
    for line in process.stderr:
        said += line
        if found := re.search(r"serving on (http://\S+)", line):
            address = found[1]
            break
    assert address, said
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            yield Server(process, address, client)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    if ends:
        assert process.returncode == 130


def made_job(room: Room) -> Job:
    """A job that is done, with files that may be seen and some that may not."""
    places = make_places(room.folder / "srv", [])
    store = JobStore(places.folder / "jobs.db")
    assert store.add("uploads/x.mp4", {}, WORK, 9)
    job = store.claim()
    assert job
    store.end(job, "done")
    store.close()
    ladder = places.job(job.id) / "ladder"
    ladder.mkdir(parents=True)
    (ladder / "report.html").write_text("<p>the report</p>")
    (ladder / ".study.db.lock").write_text(SECRET)
    (ladder / "study.db").write_text(SECRET)
    (ladder / "link.mp4").symlink_to(room.folder / "secret/secret.mp4")
    (ladder / "linked").symlink_to(room.folder / "secret")
    return job


NAMES = (
    *("../secret/secret.mp4", "../../secret/secret.mp4", "../../../../secret/secret.mp4"),
    *("..%2f..%2fsecret%2fsecret.mp4", "%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret/secret.mp4"),
    *("%252e%252e%252fsecret.mp4", "..%5c..%5csecret.mp4", "..\\..\\secret.mp4", "....//x.mp4"),
    *("/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "/etc/passwd%00.mp4", "x%00.mp4"),
    *("link.mp4", "linked/secret.mp4", "./link.mp4", "linked/../link.mp4", "..;/secret.mp4"),
    *(".study.db.lock", "study.db", "..", ".", "%ff%fe.mp4", "a" * 3000, "%0d%0aSet-Cookie:x.mp4"),
    *("file:///etc/passwd", "http://127.0.0.1/x.mp4", "concat:a.mp4|b.mp4", "-o.mp4", "~/x.mp4"),
)
"""What leads out of a folder, to hidden files, or nowhere."""


def hostile_gets(id: str) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    for name in NAMES:
        for base in (f"/jobs/{id}/ladder", f"/jobs/{id}/log", "/jobs"):
            # all names of logs are the one log, which is not there
            yield "GET", f"{base}/{name}", {}, b""
    for path in (
        *("/compare", "/compare?a=x&b=../../etc", f"/compare?a={id}/../..&b={id}"),
        *(f"/jobs/{id}%00", f"/jobs/{id}/../../srv", "/api/v1/jobs/%2e%2e", "/api/v1/jobs/'--"),
        *("/api/v1/jobs?limit=-1", "/api/v1/jobs?limit=99999999999", "/api/v1/jobs?state=x'--"),
        *("/api/v1/jobs?before=" + "9" * 400, "/openapi.json", "/docs", "/jobs.db", "/.lock"),
    ):
        yield "GET", path, {}, b""


def hostile_jobs() -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    json_type = {"Content-Type": "application/json"}
    bodies: list[bytes] = [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 9000, b" " * 70_000),
        *(b'{"input": "media/a.mp4"}', b'{"input": 1, "codec": 2}', b"\x00" * 100),
    ]
    title = {"input": "media/clip.mp4", "codec": "h264"}
    inputs = [*NAMES, *(f"media/{name}" for name in NAMES), *(f"uploads/{name}" for name in NAMES)]
    jobs: list[dict[str, Any]] = [{**title, "input": name} for name in inputs]
    jobs += [
        {**title, "codec": codec} for codec in ("", "-h", "h264,h264", "x" * 999, "\0", "mpeg9")
    ]
    jobs += [{**title, "profile": name} for name in ("../x", "no such", "\0")]
    for options in (
        *({"ffmpeg": "/bin/sh"}, {"weights": "/etc/passwd"}, {"out": "/tmp/x"}, {"cache": False}),
        *({"storage": "sqlite:////tmp/x.db"}, {"audience": "/etc/passwd"}, {"prompt": "x"}),
        *({"workers": 99}, {"rungs": "1; rm -rf /"}, {"rungs": [1, 2]}, {"preset": "--help"}),
        *({"preset": "a\nb"}, {"preset": "x\0"}, {"rungs": True}, {"no-cap": "yes"}, {"-o": "x"}),
        *({"metric": {"a": 1}}, {"min-step": 1e400}, {"rungs": 10**400}, {"": ""}, {"guard": "x"}),
        *({"preset": "y" * 9999}, {"device": "cpu"}, {"notify": "touch x"}, {"log": "/tmp/x"}),
    ):
        jobs.append({**title, "options": options})
    jobs += [{**title, "extra": 1}, {**title, "deliver": "yes"}, {**title, "options": "rungs=3"}]
    bodies += [json.dumps(job).encode() for job in jobs]
    for body in bodies:
        yield "POST", "/api/v1/jobs", json_type, body
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        yield "POST", "/api/v1/jobs", {"Content-Type": kind}, json.dumps(title).encode()


def hostile_rest(id: str) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    for name in (
        *(n for n in NAMES if n != "link.mp4"),
        "clip.txt",
        ".x.mp4",
        "clip",
        "a/b.mp4",
        "x" * 300 + ".mp4",
        "%0a.mp4",
    ):
        yield "PUT", f"/api/v1/uploads/{name}", {}, b"frames"
    yield "PUT", "/api/v1/uploads/large.mp4", {}, b"x" * 5000
    for method in ("PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "X" * 100, "DELETE", "PUT"):
        for path in ("/", "/api/v1/jobs", f"/jobs/{id}"):
            yield method, path, {}, b""
    delete = f"/api/v1/jobs/{id}"
    for more in (
        *({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}),
        *({"Origin": "http://[", "Sec-Fetch-Site": "same-site"}, {"Content-Length": "-1"}),
        *({"Content-Length": "99999999999999999999999"}, {"Content-Length": "1e3"}),
        *({"Authorization": word} for word in ("", "Bearer", "Bearer x", "Basic x", "Basic Og==")),
        *({"Authorization": word} for word in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}")),
        *({"Authorization": "Bearer " + "y" * 5000}, {"Authorization": f"Digest {TOKEN}"}),
    ):
        yield "DELETE", delete, more, b""


def raw(address: str, text: bytes) -> bytes:
    """The answer to bytes that no client would send."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        with contextlib.suppress(OSError):
            wire.sendall(text)
            wire.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(OSError):
            while piece := wire.recv(65536):
                found += piece
        return found


def requests_of(id: str) -> list[bytes]:
    """All hostile requests, as bytes, each with a good token unless that is what is wrong."""
    found = []
    every = [*hostile_gets(id), *hostile_jobs(), *hostile_rest(id)]
    for method, path, more, body in every:
        path = quote(path, safe="/%?&=.;:'\\|~+,-") if not path.isascii() else path
        headers = {"Host": "localhost", "Authorization": f"Bearer {TOKEN}", "Connection": "close"}
        headers |= {"Content-Length": str(len(body)), **more}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        found.append("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
    token = f"Authorization: Bearer {TOKEN}\r\n".encode()
    post = b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + token
    put = b"PUT /api/v1/uploads/cut.mp4 HTTP/1.1\r\nHost: a\r\n" + token
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    found += [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n" + token + b"\r\n",
        b"GET / HTTP/1.1\r\n" + token + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + token + token + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: a\r\n" + token + b"\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 50,
        post + b"Content-Length: 5\r\n" + chunked + b"0\r\n\r\n",
        post + chunked + b"11170\r\n" + b"{" * 70_000 + b"\r\n0\r\n\r\n",
        post + b"Content-Length: 60\r\n\r\n{",
        post + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        put + b"Content-Length: 9\r\n\r\nx",
        put + chunked + b"1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n",
    ]
    random.Random(0).shuffle(found)
    return found


def test_hostile_requests_change_and_show_nothing(room: Room) -> None:
    for folder in ("secret", "media"):
        (room.folder / folder).mkdir()
    for file in ("secret/secret.mp4", "secret.mp4"):
        (room.folder / file).write_text(SECRET)
    (room.folder / "media/link.mp4").symlink_to(room.folder / "secret/secret.mp4")
    (room.folder / "media/linked").symlink_to(room.folder / "secret")
    os.mkfifo(room.folder / "media/pipe.mp4")
    (room.folder / "media/clip.mp4").write_text("no video")
    job = made_job(room)
    with serving(room, "--max-upload", "4K", token=TOKEN) as server:
        before = room.tree()
        hostile = requests_of(job.id)
        assert len(hostile) >= 200
        for request in hostile:
            answer = raw(server.address, request)
            status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 400
            assert 400 <= status < 500, (request[:300], answer[:300])
            assert SECRET.encode() not in answer and b"root:" not in answer, request[:300]
            assert b"Set-Cookie" not in answer.partition(b"\r\n\r\n")[0], request[:300]
        # it is still there, with the jobs it had
        found = server.client.get("/api/v1/jobs").json()["jobs"]
        assert [(one["id"], one["state"]) for one in found] == [(job.id, "done")]
        seen = server.client.get(f"/jobs/{job.id}/ladder/report.html")
        assert seen.text == "<p>the report</p>" and seen.headers["x-frame-options"] == "DENY"
        after = room.tree()
        own = {path for path in {*before, *after} if "jobs.db" in path}
        changed = {path for path in {*before, *after} - own if before.get(path) != after.get(path)}
        # the folder's time changes with what is written in it and goes again
        assert changed <= {str(room.folder / "srv/uploads")}
        assert not list((room.folder / "srv/uploads").iterdir())
        assert server.client.get("/healthz", headers={"Authorization": ""}).status_code == 200
        # a browser's way of sending the token
        plain = httpx.get(f"{server.address}/", auth=("anybody", TOKEN))
        assert plain.status_code == 200


def test_a_job_over_http(room: Room) -> None:
    """Submitted, refused, listed, streamed, cancelled; its child is a real command that fails."""
    with serving(room, "--max-queue", "2") as server:
        client = server.client
        kept = client.put("/api/v1/uploads/a%20title%20é.mp4", content=b"garbage").json()
        assert kept == {"input": "uploads/a title é.mp4", "bytes": 7}
        again = client.put("/api/v1/uploads/a%20title%20é.mp4", content=b"other")
        assert again.status_code == 409
        assert client.get("/api/v1/media").json() == {"videos": ["uploads/a title é.mp4"]}
        first = server.submit(input="uploads/a title é.mp4")
        assert first.status_code == 201
        id = first.json()["id"]
        with client.stream("GET", f"/api/v1/jobs/{id}/events") as stream:
            lines = list(stream.iter_lines())
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        states = [event["state"] for event in data if "state" in event]
        assert states[-1] == "failed" and set(states) <= {"queued", "running", "failed"}
        ends = [event for event in data if event.get("event") == "end"]
        assert ends[0]["schema"] == SCHEMA and ends[0]["outcome"] == "refused"
        ids = [line[4:] for line in lines if line.startswith("id: ")]
        with client.stream(
            "GET", f"/api/v1/jobs/{id}/events", headers={"Last-Event-ID": ids[-1]}
        ) as stream:
            rest = list(stream.iter_lines())
        assert not [line for line in rest if line.startswith("id: ")]
        job = client.get(f"/api/v1/jobs/{id}").json()
        assert "not a video that can be read" in job["error"] and job["ended"]
        page = client.get("/").text
        assert "1 failed" in page and "not a video that can be read" in page
        assert "a title é.mp4" in client.get(f"/jobs/{id}").text
        assert "end: refused" in client.get(f"/jobs/{id}/log/run.log").text
        # of a queue of two a third is not taken; a waiting one is cancelled at once
        several = [server.submit(input="uploads/a title é.mp4") for _ in range(5)]
        codes = [answer.status_code for answer in several]
        assert codes[:2] == [201, 201] and 503 in codes
        last = [answer.json()["id"] for answer in several if answer.status_code == 201][-1]
        assert client.delete(f"/api/v1/jobs/{last}").status_code == 202
        assert server.ended(last)["state"] == "cancelled"
        figures = client.get("/metrics").text
        assert 'vqaloop_jobs{state="cancelled"} 1.0' in figures
        # without a token other names than this machine's are not answered
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 421


def test_a_store_keeps_its_jobs(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    jobs = [store.add(f"uploads/{n}.mp4", {"n": n}, WORK, 3) for n in range(4)]
    assert [bool(job) for job in jobs] == [True, True, True, False]
    one, two = store.claim(), store.claim()
    assert one and two and (one.input, two.input) == ("uploads/0.mp4", "uploads/1.mp4")
    assert (one.work, one.asked, one.attempts) == (WORK, {"n": 0}, 1)
    store.cancel(two.id)
    store.close()
    # killed: the running one waits again, the one that was being cancelled is
    store = JobStore(tmp_path / "jobs.db")
    assert store.recover() == 1
    assert [job.state for job in store.latest()] == ["queued", "cancelled", "queued"]
    for _ in range(ATTEMPTS - 1):
        again = store.claim()
        assert again and again.id == one.id
        store.recover()
    last = store.get(one.id)
    assert last and last.state == "failed" and "killed each time" in str(last.error)
    assert store.latest(before=2)[0].number == 1 and store.latest(state="queued", limit=1)
    store.close()
    (tmp_path / "bad.db").write_bytes(b"no database" * 99)
    with pytest.raises(InputError, match=r"bad\.db"):
        JobStore(tmp_path / "bad.db")


def test_no_name_leads_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/x.mp4").write_text("x")
    (tmp_path / "out.mp4").write_text(SECRET)
    (tmp_path / "in/link.mp4").symlink_to(tmp_path / "out.mp4")
    (tmp_path / "in/within.mp4").symlink_to("sub/x.mp4")
    (tmp_path / "in/loop.mp4").symlink_to("loop.mp4")
    assert inside(tmp_path / "in", "sub/x.mp4") == inside(tmp_path / "in", "within.mp4")
    for name in (
        *("", ".", "sub", "link.mp4", "loop.mp4", "../out.mp4", "sub/../../out.mp4"),
        *("/etc/passwd", "sub//x.mp4", "x\0.mp4", "a\nb", "sub\\x.mp4", "y" * 5000),
    ):
        with pytest.raises(NotThere):
            inside(tmp_path / "in", name)
    for media in ("in", "in/sub"):
        with pytest.raises(InputError, match="lies in"):
            make_places(tmp_path / "in/sub/served", [tmp_path / media])
    (tmp_path / "served/in").mkdir(parents=True)
    with pytest.raises(InputError, match="lies in"):
        make_places(tmp_path / "served", [tmp_path / "served/in"])
    (tmp_path / "other/in").mkdir(parents=True)
    with pytest.raises(InputError, match="taken"):
        make_places(tmp_path / "srv", [tmp_path / "in", tmp_path / "other/in"])


def test_jobs_have_options_of_ladders_and_no_files(tmp_path: Path) -> None:
    names = set(allowed_options())
    assert {"rungs", "metric", "preset", "min-ratio", "budget", "no-cap", "audience"} <= names
    assert not {"ffmpeg", "weights", "prompt", "output", "storage", "workers", "no-cache"} & names
    (tmp_path / "vqaloop.toml").write_text('[profiles.ours]\nrungs = 3\nmetric = "psnr"\n')
    body = {"input": "x", "codec": "H.264", "profile": "ours", "options": {"min_ratio": 1.5}}
    asked = read_submission(json.dumps({**body, "deliver": False}).encode())
    work = asked_work(asked, tmp_path, tmp_path / "vqaloop.toml")
    assert (work.codecs, work.deliver) == (("h264",), None)
    pairs = list(zip(work.ladder, work.ladder[1:], strict=False))
    assert {("--rungs", "3"), ("--metric", "psnr"), ("--min-ratio", "1.5")} <= set(pairs)


def test_tokens_hosts_and_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQALOOP_TOKEN", raising=False)
    assert read_token(None) is None
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    for text in ("", "short", "two words of a token", "\xff" * 20, "x" * 15):
        (tmp_path / "token").write_text(text)
        with pytest.raises(InputError, match="token"):
            read_token(tmp_path / "token")
    monkeypatch.setenv("VQALOOP_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    assert is_loopback("127.0.0.5") and is_loopback("::1") and is_loopback("localhost")
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
    rate = Rate(3)
    assert [rate.allows("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert rate.allows("b")


def test_a_server_that_cannot_be_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQALOOP_TOKEN", raising=False)
    (room.folder / "media").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, reason in (
            (("--host", "0.0.0.0"), "takes a token"),
            (("--port", port), f"port {port}"),
            (("--port", "70000"), "--port"),
            (("--host", "no.such.host.invalid", "--token-file", "token"), "cannot listen"),
            (("--token-file", "nowhere"), "nowhere"),
            (("--media", "nowhere"), "no folder"),
            (("--media", "."), "lies in"),
            (("--max-upload", "many"), "--max-upload"),
        ):
            (room.folder / "token").write_text(TOKEN)
            said = room.run("serve", "srv", *words)
            assert said.status == 2 and reason in said.err, (words, said.err)


# ---- with real ladders


@pytest.mark.slow
def test_a_ladder_over_http(room: Room) -> None:
    make_clip(room.folder / "clip.mp4", size="64x64", frames=10)
    with serving(room) as server:
        client = server.client
        os.link(room.folder / "clip.mp4", room.folder / "media/clip.mp4")
        answers = [
            server.submit(input="media/clip.mp4"),
            server.submit(input="media/clip.mp4", options={**SMALL, "preset": "superfast"}),
        ]
        jobs = [server.ended(answer.json()["id"]) for answer in answers]
        assert {job["state"] for job in jobs} <= {"done", "untrusted"}, jobs
        one, two = (job["id"] for job in jobs)
        report = client.get(jobs[0]["reports"]["h264"])
        assert "<svg" in report.text and report.headers["content-type"].startswith("text/html")
        document = client.get(f"/jobs/{one}/ladder/ladder.json").json()
        rung = document["rungs"][0]["file"]
        part = client.get(f"/jobs/{one}/ladder/{rung}", headers={"Range": "bytes=0-9"})
        assert part.status_code == 206 and len(part.content) == 10
        assert client.get(f"/jobs/{one}/delivery/master.m3u8").text.startswith("#EXTM3U")
        compared = client.get("/compare", params={"a": one, "b": f"{two}/h264"})
        assert compared.status_code == 200 and "two ladders" in compared.text


@pytest.mark.slow
def test_a_killed_server_loses_no_job(room: Room) -> None:
    make_clip(room.folder / "clip.mp4", size="192x108", frames=30)
    (room.folder / "media").mkdir()
    os.link(room.folder / "clip.mp4", room.folder / "media/clip.mp4")
    with serving(room, ends=False) as server:
        ids = [server.submit(input="media/clip.mp4").json()["id"] for _ in range(3)]
        events = room.folder / "srv/jobs" / ids[0] / "events.ndjson"
        end = time.monotonic() + 240
        while not (events.is_file() and '"trial": {' in events.read_text()):
            assert time.monotonic() < end
            time.sleep(0.05)
        listed = subprocess.run(
            ["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True
        )
        server.client.delete(f"/api/v1/jobs/{ids[2]}")
        server.process.kill()
    end = time.monotonic() + 30
    while any(running(int(pid)) for pid in listed.stdout.split()):
        assert time.monotonic() < end, "a child runs on"
        time.sleep(0.1)
    with serving(room) as server:
        found = [server.ended(id) for id in ids]
        assert [job["state"] in ("done", "untrusted") for job in found] == [True, True, False]
        assert found[2]["state"] == "cancelled"
        assert "going on: " in events.read_text()
        # a running job is cancelled with its programs, and the server goes on
        more = server.submit(input="media/clip.mp4", options={"metric": "vmaf"}).json()["id"]
        server.until(more, {"running"})
        time.sleep(1)
        server.client.delete(f"/api/v1/jobs/{more}")
        assert server.ended(more, within_s=30)["state"] == "cancelled"


@pytest.mark.slow
def test_the_page_in_a_browser(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(room.folder / "clip.mp4", size="64x64", frames=10)
    (room.folder / "media").mkdir()
    os.link(room.folder / "clip.mp4", room.folder / "media/clip.mp4")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(room))
        # the browser keeps a socket there, whose path has to be short
        monkeypatch.setenv("TMPDIR", "/tmp")
        tab = stack.enter_context(browsing(tmp_path / "profile"))
        tab.call("Page.navigate", url=f"{server.address}/")
        until(tab, "document.querySelector('#submit') !== null")
        for name, value in {
            "input": "media/clip.mp4",
            "options": "metric=psnr preset=ultrafast rungs=2 min-step=0.2 min-ratio=1.2",
        }.items():
            tab.ask(f"document.querySelector('#submit').elements.{name}.value = '{value}'")
        tab.ask("document.querySelector('#submit select').value = 'h264'")
        tab.ask("document.querySelector('#submit').requestSubmit()")
        until(tab, "document.querySelector('output').textContent === 'submitted'")
        until(tab, "document.querySelectorAll('#done tbody tr').length === 1")
        # a bad option is shown where it was typed
        tab.ask("document.querySelector('#submit').elements.options.value = 'nonsense=1'")
        tab.ask("document.querySelector('#submit').elements.input.value = 'media/clip.mp4'")
        tab.ask("document.querySelector('#submit').requestSubmit()")
        until(tab, "document.querySelector('output').textContent.includes('nonsense')")
        tab.ask("document.querySelector('input[name=a]').checked = true")
        tab.ask("document.querySelector('input[name=b]').checked = true")
        tab.ask("document.querySelector('#compare').click()")
        until(tab, "document.title.includes('two ladders')")
        refused = [text for text in tab.complaints if "422" not in text and "favicon" not in text]
        assert not refused


def until(tab: Tab, condition: str, within_s: float = 240) -> None:
    end = time.monotonic() + within_s
    while not tab.ask(condition):
        assert time.monotonic() < end, f"{condition}: {tab.ask('document.body.innerText')}"
        time.sleep(0.2)

"""The server's API and pages: what a request asks of jobs, uploads and reports."""

import asyncio
import contextlib
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from vqaloop.core.files import unfinished
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, VqaloopError
from vqaloop.ladder.compare import compare_ladders
from vqaloop.ladder.compare_page import pair_page
from vqaloop.service.gate import TooLarge
from vqaloop.service.job_store import ENDED, STATES, Job
from vqaloop.service.metrics import Figures, metrics_text
from vqaloop.service.pages import job_page, overview_page
from vqaloop.service.places import NotThere, inside
from vqaloop.service.runner import EVENTS, JobRunner, read_events
from vqaloop.service.submission import asked_work, read_submission
from vqaloop.service.titles import DELIVERY, LADDER

MOST_UPLOADS = 4
"""At a time."""
MOST_STREAMS = 64
"""Streams of events at a time."""
SILENCE_S = 60.0
"""Seconds without a byte after which an upload is given up."""
SPARE = 1 << 30
"""Bytes that an upload leaves free on the disk."""
LOOK_S = 0.3
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".m4s": "video/iso.segment",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".mpd": "application/dash+xml",
}
"""Types of files that are sent; all others are bytes."""


class Service:
    """What the routes share."""

    def __init__(self, runner: JobRunner, settings: Path | None, most_queued: int) -> None:
        self.runner, self.store, self.places = runner, runner.store, runner.places
        self.settings, self.most_queued = settings, most_queued
        self.figures: Figures | None = None
        self.stopping = False
        """True once streams shall end."""
        self._uploads = self._streams = 0
        # plots are drawn one at a time, and one submission is checked at a time
        self._drawing, self._checking = threading.Lock(), threading.Lock()

    def app(self) -> FastAPI:
        """The application, without its gate."""
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        app.router.redirect_slashes = False
        for method, path, handler in (
            ("GET", "/", self.overview),
            ("GET", "/healthz", self.health),
            ("GET", "/metrics", self.metrics),
            ("GET", "/compare", self.compare),
            ("GET", "/jobs/{id}", self.page),
            ("GET", "/jobs/{id}/{kind}/{path:path}", self.file),
            ("GET", "/api/v1/jobs", self.jobs),
            ("POST", "/api/v1/jobs", self.submit),
            ("GET", "/api/v1/jobs/{id}", self.job),
            ("DELETE", "/api/v1/jobs/{id}", self.cancel),
            ("GET", "/api/v1/jobs/{id}/events", self.events),
            ("GET", "/api/v1/media", self.media),
            ("PUT", "/api/v1/uploads/{name}", self.upload),
        ):
            app.add_api_route(path, handler, methods=[method], response_model=None)
        app.add_exception_handler(NotThere, _answering(404))
        app.add_exception_handler(VqaloopError, _answering(422))
        app.add_exception_handler(TooLarge, _answering(413, "the body is too large"))
        app.add_exception_handler(ClientDisconnect, _answering(400, "the body was cut off"))
        return app

    # ---- jobs

    def health(self) -> Response:
        return JSONResponse({"status": "ok"})

    def jobs(self, request: Request) -> Response:
        asked = request.query_params
        state = asked.get("state")
        if state is not None and state not in STATES:
            raise InputError(f"state is one of {', '.join(STATES)}")
        limit = _number(asked.get("limit", "100"), "limit", 1, 1000)
        before = _number(asked.get("before", str(2**62)), "before", 0, 2**62)
        found = self.store.latest(state, limit, before)
        return JSONResponse({"jobs": [self._shown(job) for job in found]})

    def job(self, id: str) -> Response:
        return JSONResponse(self._shown(self._job(id)))

    async def submit(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return _error(415, "a job is sent as application/json")
        body = await request.body()
        return await run_in_threadpool(self._submit, body)

    def _submit(self, body: bytes) -> Response:
        asked = read_submission(body)
        self.places.video(asked.input)
        with self._checking:
            work = asked_work(asked, self.places.folder / "jobs", self.settings)
        about = {"options": asked.options, "profile": asked.profile, "deliver": asked.deliver}
        job = self.store.add(asked.input, {"codec": asked.codec, **about}, work, self.most_queued)
        if job is None:
            return _error(503, f"the queue is full: {self.most_queued} jobs wait")
        self.runner.wake()
        place = {"Location": f"/api/v1/jobs/{job.id}"}
        return JSONResponse(self._shown(job), status_code=201, headers=place)

    def cancel(self, id: str) -> Response:
        job = self.runner.cancel(self._job(id).id)
        return JSONResponse(self._shown(job or self._job(id)), status_code=202)

    def _job(self, id: str) -> Job:
        job = self.store.get(id)
        if job is None:
            raise NotThere("there is no job of that id")
        return job

    def _shown(self, job: Job) -> dict[str, Any]:
        about = job.to_json()
        progress = self.runner.progress(job.id)
        about["progress"] = (
            {key: progress.get(key) for key in ("stage", "message", "done", "total", "left_s")}
            if progress
            else None
        )
        about["reports"] = self._reports(job)
        return about

    def _reports(self, job: Job) -> dict[str, str]:
        """Paths of a job's reports on this server, by codec."""
        found = {}
        for codec, folder in job.work.ladder_folders(self.places.job(job.id)).items():
            if (folder / "report.html").is_file():
                inner = folder.relative_to(self.places.job(job.id))
                found[codec] = f"/jobs/{job.id}/{inner}/report.html"
        return found

    async def events(self, id: str, request: Request) -> Response:
        """A stream of a job's events; it goes on after the one of the header Last-Event-ID."""
        job = await run_in_threadpool(self._job, id)
        after = request.headers.get("last-event-id") or request.query_params.get("after", "0")
        begin = _number(after, "Last-Event-ID", 0, 2**53)
        if self._streams >= MOST_STREAMS:
            return _error(503, "too many streams of events are open")
        return StreamingResponse(
            self._stream(job, begin), media_type="text/event-stream; charset=utf-8"
        )

    async def _stream(self, job: Job, offset: int) -> AsyncIterator[bytes]:
        """The id of an event is the place after it in the job's file of events."""
        path, state, quiet = self.places.job(job.id) / EVENTS, "", 0.0
        self._streams += 1
        try:
            while not self.stopping:
                now = await run_in_threadpool(self._job, job.id)
                shown = now.to_json()["state"]
                if shown != state:
                    state = shown
                    yield f"event: state\ndata: {json.dumps(now.to_json())}\n\n".encode()
                lines, after = await run_in_threadpool(read_events, path, offset)
                for line in lines:
                    offset += len(line) + 1
                    yield b"id: %d\ndata: %s\n\n" % (offset, line)
                if lines:
                    quiet = 0.0
                    continue
                offset = after
                if now.state in ENDED:
                    return
                quiet += LOOK_S
                if quiet > 15:
                    # so that a reader who is gone is seen to be
                    quiet = 0.0
                    yield b": waiting\n\n"
                await asyncio.sleep(LOOK_S)
        finally:
            self._streams -= 1

    # ---- files

    def media(self) -> Response:
        return JSONResponse({"videos": self.places.videos()})

    async def upload(self, name: str, request: Request) -> Response:
        """Keeps the body as a video, whole or not at all; what is there is not replaced."""
        target = self.places.upload(name)
        length = int(request.headers.get("content-length", "0"))
        free = shutil.disk_usage(self.places.uploads).free
        if target.exists():
            return _error(409, f"{quoted(name)} is there already")
        if length + SPARE > free:
            return _error(507, "there is no room for it on the server's disk")
        if self._uploads >= MOST_UPLOADS:
            return _error(503, f"{MOST_UPLOADS} uploads are under way")
        self._uploads += 1
        part = unfinished(self.places.uploads)
        try:
            size = await self._receive(request, part, free - SPARE)
            # unlike a rename it replaces nothing
            os.link(part, target)
        except TimeoutError:
            return _error(408, f"nothing came for {SILENCE_S:.0f} s")
        except FileExistsError:
            return _error(409, f"{quoted(name)} is there already")
        except OSError as error:
            return _error(507, f"it could not be written: {error.strerror or error}")
        finally:
            self._uploads -= 1
            with contextlib.suppress(OSError):
                part.unlink()
        return JSONResponse({"input": f"uploads/{name}", "bytes": size}, status_code=201)

    async def _receive(self, request: Request, part: Path, most: int) -> int:
        size, chunks = 0, request.stream()
        with open(part, "xb") as file:
            while True:
                try:
                    chunk = await asyncio.wait_for(anext(chunks), SILENCE_S)
                except StopAsyncIteration:
                    break
                size += len(chunk)
                if size > most:
                    raise TooLarge
                await run_in_threadpool(file.write, chunk)
        return size

    def file(self, id: str, kind: str, path: str) -> Response:
        """A file of a job: of its ladder, its delivery, or its log."""
        folder = self.places.job(self._job(id).id)
        if kind not in (LADDER, DELIVERY, "log"):
            raise NotThere("there is no such file of that job")
        found = inside(folder, "run.log") if kind == "log" else inside(folder / kind, path)
        if found.suffix == ".db":
            raise NotThere("there is no such file of that job")
        return FileResponse(found, media_type=KINDS.get(found.suffix, "application/octet-stream"))

    # ---- pages

    def overview(self) -> Response:
        groups = {state: self.store.latest(state) for state in STATES}
        shown = {state: [self._shown(job) for job in jobs] for state, jobs in groups.items()}
        return HTMLResponse(overview_page(shown, self.store.counts(), self.places.videos()))

    def page(self, id: str) -> Response:
        job = self._job(id)
        folder = self.places.job(job.id)
        delivery = folder / DELIVERY
        files = [name for name in ("master.m3u8", "manifest.mpd") if (delivery / name).is_file()]
        return HTMLResponse(job_page(self._shown(job), files, log=(folder / "run.log").is_file()))

    def compare(self, request: Request) -> Response:
        """The page of two jobs' ladders; of several codecs `ID/CODEC` names one."""
        places = [self._ladder(request.query_params.get(name, "")) for name in ("a", "b")]
        with self._drawing:
            return HTMLResponse(pair_page(compare_ladders(*places)))

    def _ladder(self, name: str) -> Path:
        id, _, codec = name.partition("/")
        job = self._job(id)
        folders = job.work.ladder_folders(self.places.job(job.id))
        folder = folders.get(codec) if codec else next(iter(folders.values()))
        if folder is None or not (folder / "ladder.json").is_file():
            raise NotThere("that job has no such ladder yet")
        return folder

    def metrics(self) -> Response:
        assert self.figures is not None
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(metrics_text(self.figures), media_type=kind)


def _number(text: str, name: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InputError(f"{name} is a whole number")
    if not least <= int(text) <= most:
        raise InputError(f"{name} lies within {least} and {most}")
    return int(text)


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


def _answering(status: int, text: str = "") -> Any:
    """A handler of exceptions: their message, or another text, as an answer."""

    def answer(request: Request, error: Exception) -> Response:
        return _error(status, text or str(error)[:2000])

    return answer

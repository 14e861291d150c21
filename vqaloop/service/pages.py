"""The pages of a server: the team's overview, and one of each job."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from vqaloop.core.version import __version__
from vqaloop.encoding.registry import codecs
from vqaloop.report.html import render
from vqaloop.service.submission import allowed_options


def overview_page(
    jobs: Mapping[str, Sequence[Mapping[str, Any]]],
    counts: Mapping[str, int],
    videos: Sequence[str],
) -> str:
    """Queue, running, done and failed jobs, forms to submit one and to compare two ladders."""
    made = [*jobs["done"], *jobs["untrusted"]]
    return render(
        "service.html",
        script="service.js",
        connects=True,
        title="vqaloop",
        summary=", ".join(f"{count} {state}" for state, count in counts.items()),
        running=[_row(job) for job in jobs["running"]],
        # the next one first
        queued=[_row(job) for job in reversed(jobs["queued"])],
        made=[_row(job) for job in sorted(made, key=lambda job: -job["number"])],
        failed=[_row(job) for job in [*jobs["failed"], *jobs["cancelled"]]],
        videos=videos,
        codecs=codecs(),
        options=sorted(allowed_options()),
        version=__version__,
    )


def job_page(job: Mapping[str, Any], files: Sequence[str], log: bool) -> str:
    """One job: what was asked for, how far it is, and its results."""
    return render(
        "service_job.html",
        script="service.js",
        connects=True,
        title=f"{job['input']} - vqaloop",
        job=_row(job),
        asked=[[name, str(value)] for name, value in job["asked"].items() if value],
        files=files,
        log=log,
        live=job["state"] in ("queued", "running", "cancelling"),
        version=__version__,
    )


def _row(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job as the pages show it."""
    progress = job["progress"] or {}
    count = f"{progress['done']}/{progress['total']} " if progress.get("total") else ""
    begun, over = job["started"], job["ended"]
    return {
        **job,
        "codec": ", ".join(job["codecs"]),
        "now": f"{progress['stage']} {count}{progress['message']}" if progress else "",
        "created": _clock(job["created"]),
        "ended": _clock(over),
        "took": f"{over - begun:.0f} s" if begun and over else "",
        "reports": list(job["reports"].items()),
    }


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds else ""

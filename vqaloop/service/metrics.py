"""The figures of a server for Prometheus, read when they are asked for."""

from collections.abc import Iterator
from typing import Any

from vqaloop.core.version import __version__
from vqaloop.service.gate import Gate
from vqaloop.service.runner import JobRunner


class Figures:
    """A collector of prometheus-client."""

    def __init__(self, runner: JobRunner, gate: Gate) -> None:
        self._runner, self._gate = runner, gate

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        yield InfoMetricFamily("vqaloop", "The server", value={"version": __version__})
        jobs = GaugeMetricFamily("vqaloop_jobs", "Jobs by state, of all time", labels=["state"])
        for state, count in self._runner.store.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        ended = CounterMetricFamily(
            "vqaloop_jobs_ended", "Jobs that ended since the start", labels=["outcome"]
        )
        for outcome, count in list(self._runner.ended.items()):
            ended.add_metric([outcome], count)
        yield ended
        yield CounterMetricFamily(
            "vqaloop_job_seconds", "Wall seconds that they took", value=self._runner.seconds
        )
        asked = CounterMetricFamily(
            "vqaloop_http_requests", "Requests since the start", labels=["method", "status"]
        )
        for (method, status), count in list(self._gate.answers.items()):
            asked.add_metric([method, str(status)], count)
        yield asked


def metrics_text(figures: Figures) -> bytes:
    """All figures in the text format of Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)
    found: bytes = generate_latest(registry)
    return found

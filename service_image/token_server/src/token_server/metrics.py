"""What /metrics shows: names token_server_*, base units, counters end in _total, no label with unbounded values."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from token_server.start import STAGES

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/verifyz")
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The server's series, in a registry of their own. Every series stands at 0 from the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._described = False
        self.requests = Counter(
            "token_server_requests_total", "Answered requests.", ["route", "status"], registry=self.registry
        )
        self.duration = Histogram(
            "token_server_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "token_server_prompt_tokens_total", "Tokens of prompts that were answered.", registry=self.registry
        )
        self.generated_tokens = Counter(
            "token_server_generated_tokens_total", "Tokens generated.", registry=self.registry
        )
        self.first_token = Histogram(
            "token_server_time_to_first_token_seconds",
            "From a request's arrival to its first token, waiting included.",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.queue = Gauge("token_server_queue_length", "Requests that wait for a generation.", registry=self.registry)
        self.in_flight = Gauge("token_server_generations_in_flight", "Answers being generated.", registry=self.registry)
        self.cancelled = Counter(
            "token_server_cancelled_generations_total",
            "Answers that ended because the client went away or the server stopped.",
            registry=self.registry,
        )
        self.stages = Gauge(
            "token_server_start_stage_seconds", "How long a stage of the start took.", ["stage"], registry=self.registry
        )
        self.ready = Gauge("token_server_ready", "1 while /readyz answers 200.", registry=self.registry)
        ProcessCollector(namespace="token_server", registry=self.registry)
        for route in ROUTES:
            self.requests.labels(route, "200")
            self.duration.labels(route)
        for stage in STAGES:
            self.stages.labels(stage).set(0)

    def watch_queue(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """The two gauges are read where they are known, when they are asked for."""
        self.queue.set_function(waiting)
        self.in_flight.set_function(running)

    def describe_environment(self) -> None:
        """Versions and number of installed packages, for audits of what serves. Slow (0.1 s), so not at import, and
        done once.
        """
        if self._described:
            return
        self._described = True
        versions = {name: _version(name) for name in ("token-server", "torch", "transformers")}
        packages = sum(1 for _ in importlib.metadata.distributions())
        labels = {name.replace("-", "_"): version for name, version in versions.items()}
        info = Gauge(
            "token_server_environment_info", "Versions in use; always 1.", [*labels, "python"], registry=self.registry
        )
        info.labels(**labels, python=platform.python_version()).set(1)
        Gauge("token_server_environment_packages", "Python packages in the environment.", registry=self.registry).set(
            packages
        )

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def route_label(path: str) -> str:
    """A known route, or `other`: paths are the caller's and must not become series."""
    for route in ROUTES:
        if path == route or path.startswith(f"{route}/"):
            return route
    return "other"

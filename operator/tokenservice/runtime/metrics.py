"""Prometheus metrics under the stock names of controllers and clients (stock dashboards work), 0 from the start."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from tokenservice.api.v1alpha1 import LastStart
from tokenservice.runtime.controller import Outcome

STAGES = ("lock", "build")
ROLLOUT_STAGES = ("pre-pull", "update", "verify", "roll-back")
MISSES = (
    *("Empty", "NotFound", "Filling", "ShapeMismatch", "NameConflict", "Rejected", "InvalidTemplate"),
    *("LoadFailed", "AssignmentRefused", "Unreachable", "ProgressDeadlineExceeded"),
)
"""Why a pod that a warm one was to be is a cold one, or none: reasons of WarmPoolReady, and that none waited."""
_LOADED = ("imports", "prepare", "weights", "warmup")
START_STAGES = {
    "Cold": ("scheduling", "pull", "container", *_LOADED, "endpoint"),
    "Prepulled": ("scheduling", "pull", "container", *_LOADED, "endpoint"),
    "Warm": ("claim", "weights", "warmup"),
}
_START_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_AGE_SECONDS = (10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)
_STAGE_SECONDS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The process's registry and its series.

    registry: a fresh one by default, never the global one, so that tests do not share numbers.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        name, controller = ["name"], ["controller"]
        self.workqueue_depth = Gauge("workqueue_depth", "Keys that wait for a worker.", name, registry=registry)
        self.workqueue_adds = Counter("workqueue_adds_total", "Keys added.", name, registry=registry)
        self.workqueue_retries = Counter(
            "workqueue_retries_total", "Keys added after a failure.", name, registry=registry
        )
        self.workqueue_queue_duration = Histogram(
            "workqueue_queue_duration_seconds", "Time a key waited.", name, buckets=_SECONDS, registry=registry
        )
        self.workqueue_work_duration = Histogram(
            "workqueue_work_duration_seconds", "Time a key was worked on.", name, buckets=_SECONDS, registry=registry
        )
        self.reconcile_total = Counter(
            "controller_runtime_reconcile_total", "Reconciles by result.", [*controller, "result"], registry=registry
        )
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors_total", "Reconciles that failed.", controller, registry=registry
        )
        self.terminal_errors = Counter(
            "controller_runtime_terminal_reconcile_errors_total",
            "Reconciles that failed and are not retried before something changes.",
            controller,
            registry=registry,
        )
        self.reconcile_time = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Time of a reconcile.",
            controller,
            buckets=_SECONDS,
            registry=registry,
        )
        self.active_workers = Gauge(
            "controller_runtime_active_workers", "Reconciles under way.", controller, registry=registry
        )
        self.rest_requests = Counter(
            "rest_client_requests_total", "Requests to the API server.", ["code", "method", "host"], registry=registry
        )
        self.leading = Gauge("leader_election_master_status", "1 while this process leads.", name, registry=registry)
        self.services = Gauge("tokenservice_services", "TokenServices known.", registry=registry)
        self.environments = Gauge(
            "tokenservice_environments",
            "CondaEnvironments known, by the status of Ready.",
            ["ready"],
            registry=registry,
        )
        for ready in ("True", "False"):
            self.environments.labels(ready)
        self.environment_stage = Histogram(
            "tokenservice_environment_stage_seconds",
            "Time from the making of a Job to its result.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        for stage in STAGES:
            self.environment_stage.labels(stage)
        self.rollout_stages = Histogram(
            "tokenservice_rollout_stage_seconds",
            "Time that a rollout spent in a stage.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        for stage in ROLLOUT_STAGES:
            self.rollout_stages.labels(stage)
        self.rollbacks = Counter(
            "tokenservice_rollbacks_total", "Revisions that gave way to the last good one.", registry=registry
        )
        self.start = Histogram(
            "tokenservice_start_seconds",
            "Time from the making of a pod, or from its claim, until it served.",
            ["path"],
            buckets=_START_SECONDS,
            registry=registry,
        )
        self.start_stages = Histogram(
            "tokenservice_start_stage_seconds",
            "Where the time of a pod's start went.",
            ["stage", "path"],
            buckets=_START_SECONDS,
            registry=registry,
        )
        for path, stages in START_STAGES.items():
            self.start.labels(path)
            for stage in stages:
                self.start_stages.labels(stage, path)
        self.hits = Counter("tokenservice_pool_hits_total", "Warm pods that were taken from pools.", registry=registry)
        self.pool_age = Histogram(
            "tokenservice_pool_age_seconds",
            "How old pods were when they were taken from a pool.",
            buckets=_AGE_SECONDS,
            registry=registry,
        )
        self.pool_pods = Gauge(
            "tokenservice_pool_pods", "Pods of pools, by whether they are warm.", ["warm"], registry=registry
        )
        for ready in ("True", "False"):
            self.pool_pods.labels(ready)
        self.misses = Counter(
            "tokenservice_pool_misses_total",
            "Pods that a warm one was to be, and for which none waited, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in MISSES:
            self.misses.labels(reason)
        self.watch_events = Counter(
            "tokenservice_watch_events_total", "Events received by watches.", ["resource", "type"], registry=registry
        )
        self.watch_restarts = Counter(
            "tokenservice_watch_restarts_total",
            "Watches begun again, by cause.",
            ["resource", "cause"],
            registry=registry,
        )
        self.watch_event_age = Gauge(
            "tokenservice_watch_last_event_age_seconds",
            "Time since a watch last heard from the API server.",
            ["resource"],
            registry=registry,
        )
        self.events_dropped = Counter(
            "tokenservice_events_dropped_total", "Kubernetes events not posted, by cause.", ["cause"], registry=registry
        )
        for cause in ("repeated", "full", "refused"):
            self.events_dropped.labels(cause)

    def queue(self, name: str) -> QueueSeries:
        """The series of one queue."""
        return QueueSeries(self, name)

    def controller(self, name: str) -> ControllerSeries:
        """The series of one controller."""
        return ControllerSeries(self, name)

    def stage(self, stage: str, seconds: float) -> None:
        """A stage of a CondaEnvironment is done: what their reconciler reports."""
        self.environment_stage.labels(stage).observe(seconds)

    def rollout_stage(self, stage: str, seconds: float) -> None:
        """A stage of a rollout is over: what the TokenServices' reconciler reports."""
        self.rollout_stages.labels(stage).observe(seconds)

    def rolled_back(self) -> None:
        """A revision failed and gave way: what the TokenServices' reconciler reports."""
        self.rollbacks.inc()

    def pool_hit(self, age: float) -> None:
        """A pod was taken from a pool, so many seconds old: what the TokenServices' reconciler reports."""
        self.hits.inc()
        self.pool_age.observe(age)

    def pool_misses(self, reason: str, pods: int) -> None:
        """No pods were there to be claimed: what the TokenServices' reconciler reports."""
        self.misses.labels(reason).inc(pods)

    def started(self, start: LastStart) -> None:
        """A pod serves: what the TokenServices' reconciler, and the timer of starts, report."""
        self.start.labels(start.path).observe(start.seconds)
        for stage, seconds in msgspec.structs.asdict(start.stages).items():
            if seconds is not None:
                self.start_stages.labels(stage, start.path).observe(seconds)

    def watch(self, resource: str, age: Callable[[], float]) -> None:
        """Shows the series of one watch from the start. age: seconds since its last event."""
        for kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
            self.watch_events.labels(resource, kind)
        for cause in ("closed", "expired", "unreachable", "refused", "undecodable"):
            self.watch_restarts.labels(resource, cause)
        self.watch_event_age.labels(resource).set_function(age)

    def event(self, resource: str, kind: str) -> None:
        """A watch event came: what an informer reports."""
        self.watch_events.labels(resource, kind).inc()

    def restarted(self, resource: str, cause: str) -> None:
        """A watch began again: what an informer reports."""
        self.watch_restarts.labels(resource, cause).inc()

    def request(self, method: str, host: str, code: str) -> None:
        """A request was answered: what the API client reports."""
        self.rest_requests.labels(code, method, host).inc()

    def event_dropped(self, cause: str) -> None:
        """An event was not posted: what the event recorder reports."""
        self.events_dropped.labels(cause).inc()


class QueueSeries:
    """One queue's view of the metrics; see `runtime.queue.QueueMetrics`."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._depth = metrics.workqueue_depth.labels(name)
        self._adds = metrics.workqueue_adds.labels(name)
        self._retries = metrics.workqueue_retries.labels(name)
        self._waited = metrics.workqueue_queue_duration.labels(name)
        self._worked = metrics.workqueue_work_duration.labels(name)

    def depth(self, value: int) -> None:
        self._depth.set(value)

    def added(self) -> None:
        self._adds.inc()

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def worked(self, seconds: float) -> None:
        self._worked.observe(seconds)

    def retried(self) -> None:
        self._retries.inc()


class ControllerSeries:
    """One controller's view of the metrics; see `runtime.controller.ControllerMetrics`."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        outcomes: tuple[Outcome, ...] = ("success", "requeue_after", "error")
        self._total = {outcome: metrics.reconcile_total.labels(name, outcome) for outcome in outcomes}
        self._errors = metrics.reconcile_errors.labels(name)
        self._terminal = metrics.terminal_errors.labels(name)
        self._seconds = metrics.reconcile_time.labels(name)
        self._active = metrics.active_workers.labels(name)

    def reconciled(self, outcome: Outcome, seconds: float) -> None:
        self._total[outcome].inc()
        self._seconds.observe(seconds)

    def failed(self, *, terminal: bool) -> None:
        self._errors.inc()
        if terminal:
            self._terminal.inc()

    def active(self, workers: int) -> None:
        self._active.set(workers)

"""Reconciling CondaEnvironments against a stand-in that keeps what is written; the tests play Jobs and kubelet."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment, CondaEnvironmentStatus, EnvironmentBytes
from tokenservice.api.jobs import CollectRequest, JobResult, LockRequest, Request, decode_request, encode_result
from tokenservice.api.meta import Pod
from tokenservice.environments.attempts import Job
from tokenservice.environments.controller import HOUSEKEEPING, Collection, Reconciler
from tokenservice.environments.jobs import Caches, Jobs, explained
from tokenservice.environments.store import Key, Store, read
from tokenservice.kube.client import Client, Resource
from tokenservice.kube.errors import ApiError
from tokenservice.kube.events import EventRecorder
from tokenservice.kube.status import status_patch

from tests.support.merge_patch import merge_patch
from tests.unit.environments.standin_jobs import (
    NOW,
    SPEC,
    build_result,
    digest,
    environment,
    lock_result,
    problem,
)

KEY = ("team", "nlp")
TEMPLATE = {"spec": {"template": {"spec": {"containers": [{"name": "job", "image": "operator"}]}}}}


class CrashError(Exception):
    """The end of the operator's process."""


class Cluster:
    """The API server and the caches in one: keeps what is written, refuses what a test tells it to."""

    def __init__(self, *, template: bool = True, collect: bool = False) -> None:
        self.now = NOW
        self.version = 0
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.resources: dict[Key, dict[str, Any]] = {}
        self.nodes: list[dict[str, str]] = []
        self.logs: dict[str, bytes] = {}
        self.job_events: list[dict[str, Any]] = []
        self.refusals: dict[str, ApiError] = {}
        self.writes: list[str] = []
        self.asked: list[str] = []
        self.events: list[tuple[str, str, str]] = []
        self.queued: list[Key] = []
        self.stages: list[tuple[str, float]] = []
        self.crash_at: int | None = None
        """The operator dies with the answer to the write of that number on its way."""
        self._template = TEMPLATE if template else None
        self._collect = collect
        self.restart()

    def restart(self) -> None:
        """The operator begins anew: it remembers nothing, and reads what is there."""
        self.store = Store(lambda _old, _new: None)
        for raw in self.resources.values():
            self.store.observe(read(msgspec.json.encode(raw)))
        caches = Caches(Cache(self, self.jobs, Job), Cache(self, self.pods, Pod))
        self.reconciler = Reconciler(
            cast("Client", self),
            self.store,
            Jobs(cast("Client", self), caches, "ops", self._template, clock=self.seconds),
            cast("EventRecorder", self),
            ask=self.queued.append,
            metrics=self,
            collection=Collection((), complete=lambda: True) if self._collect else None,
            keep_images=3,
            now=self.clock,
        )

    def clock(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()

    def stage(self, stage: str, seconds: float) -> None:
        self.stages.append((stage, seconds))

    # -- what users, Jobs and the kubelet do

    def ask(self, spec: dict[str, Any] | None = None, *, name: str = "nlp", retry: str = "") -> None:
        """A new generation of the CondaEnvironment, or another retry annotation."""
        known = self.resources.get(("team", name))
        generation = known["metadata"]["generation"] + (spec is not None) if known else 1
        made = environment(spec or (known["spec"] if known else SPEC), name=name, generation=generation, retry=retry)
        raw = msgspec.to_builtins(made)
        raw["metadata"]["resourceVersion"] = self._next()
        raw["status"] = known["status"] if known else {}
        self.resources["team", name] = raw
        self.store.observe(read(msgspec.json.encode(raw)))

    def ends(
        self, name: str, result: JobResult | str | None = None, *, kind: str = "Complete", reason: str = ""
    ) -> None:
        """A Job ends, its pod with this result."""
        job = self.jobs[name]
        if result is not None:
            self.pod(name, result)
        condition = {"type": kind, "status": "True", "reason": reason, "message": "m", "lastTransitionTime": self.stamp}
        job["status"] = {"conditions": [condition]}
        self._changed(job)

    def pod(self, job: str, result: JobResult | str | None = None, **state: Any) -> str:
        name = f"{job}-p{len(self.pods)}"
        owner = {"kind": "Job", "name": job, "uid": self.jobs[job]["metadata"]["uid"], "controller": True}
        if result is not None:
            text = result if isinstance(result, str) else encode_result(result, 4096).decode()
            state = {"terminated": {"exitCode": 1, "message": text}}
        labels = {**self.jobs[job]["metadata"]["labels"], "batch.kubernetes.io/job-name": job}
        metadata = {
            "name": name,
            "namespace": "ops",
            "uid": f"uid {name}",
            "ownerReferences": [owner],
            "labels": labels,
        }
        metadata["creationTimestamp"] = self.stamp
        self.pods[name] = {"metadata": metadata, "status": {"containerStatuses": [{"name": "job", "state": state}]}}
        return name

    def passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # -- what is there

    @property
    def stamp(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def environment(self, name: str = "nlp") -> CondaEnvironment:
        found = self.store.get("team", name)
        assert found
        return found

    def says(self, kind: str, name: str = "nlp") -> tuple[str, str]:
        found = self.environment(name).status.condition(kind)
        assert found
        return found.status, found.reason

    def only(self, stage: str) -> str:
        (name,) = (name for name in self.jobs if name.startswith(stage))
        return name

    def request_of(self, job: str) -> Request:
        (container,) = self.jobs[job]["spec"]["template"]["spec"]["containers"]
        (variable,) = container["env"]
        return decode_request(variable["value"])

    async def reconcile(self, name: str = "nlp") -> list[str]:
        """One look, and a second one, which must find nothing to do. Returns what was written."""
        self.writes.clear()
        await self.reconciler.reconcile(("team", name))
        done, self.writes = self.writes, []
        await self.reconciler.reconcile(("team", name))
        assert self.writes == [], "a second look writes nothing"
        return done

    async def tidy(self) -> list[str]:
        self.writes.clear()
        await self.reconciler.reconcile(HOUSEKEEPING)
        return self.writes

    async def until_ready(self) -> None:
        await self.reconcile()
        self.ends(self.only("lock"), lock_result())
        await self.reconcile()
        self.ends(self.only("build"), build_result())
        await self.reconcile()
        assert self.says("Ready") == ("True", "Built")

    # -- the client

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> bytes:
        assert (resource.plural, namespace) == ("jobs", "ops")
        name = body["metadata"]["name"]
        stage = body["metadata"]["labels"][names.LABEL_JOB]
        if stage in self.refusals:
            raise self.refusals[stage]
        if name in self.jobs:
            raise ApiError(409, "AlreadyExists", f'jobs "{name}" already exists')
        made = json.loads(json.dumps(body))
        made["metadata"] |= {"uid": f"uid {self._next()}", "creationTimestamp": self.stamp}
        self.jobs[name] = self._changed(made)
        self._wrote(f"create {stage}")
        return msgspec.json.encode(made)

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> bytes:
        assert (resource.plural, namespace) == ("jobs", "ops")
        if name not in self.jobs:
            raise ApiError(404, "NotFound")
        if self.jobs[name]["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict")
        del self.jobs[name]
        self._wrote(f"delete {name.partition('-')[0]}")
        return b"{}"

    async def request(self, method: str, path: str, *, query: Mapping[str, str]) -> bytes:
        assert method == "GET"
        self.asked.append(path.rpartition("/")[2])
        if path.endswith("/log"):
            assert query == {"container": "job", "tailLines": "1", "limitBytes": "65536"}
            found = self.logs.get(path.split("/")[-2])
            if found is None:
                raise ApiError(404, "NotFound", "no such pod")
            return found
        assert path == "/api/v1/namespaces/ops/events"
        if "events" in self.refusals:
            raise self.refusals["events"]
        return msgspec.json.encode({"items": self.job_events})

    async def list(self, resource: Resource) -> AsyncIterator[bytes]:
        assert resource.plural == "nodes"
        self.asked.append("nodes")
        if "nodes" in self.refusals:
            raise self.refusals["nodes"]
        for labels in self.nodes:
            yield msgspec.json.encode({"metadata": {}, "items": [{"metadata": {"name": "n", "labels": labels}}]})

    async def patch_status(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> bytes:
        assert resource.plural == "condaenvironments"
        raw = self.resources.get((namespace, name))
        if raw is None:
            raise ApiError(404, "NotFound")
        raw = {**raw, "status": merge_patch(raw["status"], body["status"])}
        raw["metadata"] = {**raw["metadata"], "resourceVersion": self._next()}
        self.resources[namespace, name] = raw
        self._wrote("status")
        return msgspec.json.encode(raw)

    def event(self, _about: object, reason: str, note: str, *, type: str, **_: Any) -> None:
        self.events.append((type, reason, note))

    def _wrote(self, what: str) -> None:
        self.writes.append(what)
        if self.crash_at == len(self.writes):
            raise CrashError

    def _changed(self, raw: dict[str, Any]) -> dict[str, Any]:
        raw["metadata"]["resourceVersion"] = self._next()
        return raw

    def _next(self) -> str:
        self.version += 1
        return str(self.version)


class Cache:
    """What the cluster holds of one kind."""

    def __init__(self, cluster: Cluster, held: dict[str, dict[str, Any]], kind: type[Any]) -> None:
        self._cluster, self._held, self._kind = cluster, held, kind

    def all(self) -> list[Any]:
        return [msgspec.convert(raw, self._kind) for raw in self._held.values()]

    def by_index(self, key: str) -> tuple[Any, ...]:
        label = names.LABEL_ENVIRONMENT_HASH if self._kind is Job else "batch.kubernetes.io/job-name"
        return tuple(item for item in self.all() if item.metadata.labels.get(label) == key)

    def decode(self, data: bytes) -> Any:
        return msgspec.json.decode(data, type=self._kind)

    def observe(self, obj: Any) -> None:
        """It is there already."""


async def test_from_a_spec_to_an_image() -> None:
    cluster = Cluster()
    cluster.ask()
    assert await cluster.reconcile() == ["create lock", "status"]
    lock = cluster.only("lock")
    request = cluster.request_of(lock)
    assert isinstance(request, LockRequest)
    assert request.environment == {"name": "env", "variables": {}, **SPEC}
    assert cluster.says("Locked") == ("Unknown", "Locking")
    found = cluster.environment().status.condition("Locked")
    assert found
    assert found.message == f"Job {lock} in namespace ops"
    cluster.passes(5)
    cluster.ends(lock, lock_result())
    assert await cluster.reconcile() == ["create build", "status"]
    assert cluster.says("Built") == ("Unknown", "Building")
    cluster.passes(7)
    cluster.ends(cluster.only("build"), build_result())
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Ready") == ("True", "Built")
    assert cluster.environment().status.image == build_result().build.image  # type: ignore[union-attr]
    assert [(kind, reason) for kind, reason, _ in cluster.events] == [("Normal", "Locked"), ("Normal", "Built")]
    assert cluster.stages == [("lock", 5), ("build", 7)]
    cluster.restart()
    assert await cluster.reconcile() == []
    cluster.jobs.clear()
    cluster.pods.clear()
    assert await cluster.reconcile() == [], "a Job that is gone after its result was taken in is not made again"


async def test_a_second_resource_of_the_same_content_shares_the_jobs() -> None:
    cluster = Cluster()
    cluster.ask()
    cluster.ask({**SPEC, "name": "other"}, name="two")
    await cluster.reconcile()
    assert await cluster.reconcile("two") == ["status"]
    cluster.ends(cluster.only("lock"), lock_result())
    await cluster.reconcile("two")
    assert await cluster.reconcile() == ["status"]
    cluster.ends(cluster.only("build"), build_result())
    for name in ("nlp", "two"):
        assert await cluster.reconcile(name) == ["status"]
        assert cluster.says("Ready", name) == ("True", "Built")
    assert len(cluster.jobs) == 2


MONTHLY = {**SPEC, "rebuild": {"schedule": "@monthly"}}
FIRES = datetime(2026, 4, 1, tzinfo=NOW.tzinfo)


async def test_a_firing_of_the_schedule_leads_to_a_newer_base() -> None:
    cluster = Cluster()
    cluster.ask(MONTHLY)
    await cluster.until_ready()
    image = cluster.environment().status.image
    first = cluster.only("build")
    cluster.now = FIRES - timedelta(seconds=90)
    assert await cluster.reconcile() == []
    result = await cluster.reconciler.reconcile(KEY)
    assert result.requeue_after == 90
    cluster.passes(90)
    assert await cluster.reconcile() == ["create build", "status"]
    assert cluster.environment().status.image == image, "what runs keeps running"
    assert (cluster.says("Locked"), cluster.says("Ready")) == (("True", "Locked"), ("False", "Building"))
    (again,) = (name for name in cluster.jobs if name.startswith("build") and name != first)
    assert cluster.request_of(again) == cluster.request_of(first)
    cluster.passes(60)
    cluster.restart()
    assert await cluster.reconcile() == []
    cluster.ends(again, build_result("b"))
    assert await cluster.reconcile() == ["status"]
    status = cluster.environment().status
    assert status.image == build_result("b").build.image  # type: ignore[union-attr]
    assert [past.image for past in status.history] == [status.image, image]
    assert cluster.says("Ready") == ("True", "Built")
    cluster.jobs.clear()
    cluster.restart()
    assert await cluster.reconcile() == [], "until the next one"


async def test_a_firing_changes_nothing_where_the_base_is_the_same() -> None:
    cluster = Cluster()
    cluster.ask(MONTHLY)
    await cluster.until_ready()
    before = cluster.environment().status
    cluster.jobs.clear()
    cluster.now = FIRES
    assert await cluster.reconcile() == ["create build", "status"]
    cluster.ends(cluster.only("build"), build_result())
    assert await cluster.reconcile() == ["status"]
    status = cluster.environment().status
    assert cluster.says("Ready") == ("True", "Built")
    assert (status.image, status.lock_digest, status.hash) == (before.image, before.lock_digest, before.hash)
    assert status.history == before.history
    assert status.build_hash != before.build_hash
    assert len(cluster.jobs) == 1, "nothing is locked anew"


async def test_a_mistake_in_a_schedule_is_told_and_what_was_built_stands() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.until_ready()
    image = cluster.environment().status.image
    cluster.ask({**SPEC, "rebuild": {"schedule": "0 0 31 2 *"}})
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Ready") == ("False", "InvalidEnvironment")
    assert cluster.environment().status.image == image
    assert "rebuild.schedule" in cluster.events[-1][2]
    cluster.ask(SPEC)
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Ready") == ("True", "Built")


def test_a_count_that_falls_to_nothing_is_written() -> None:
    before = CondaEnvironmentStatus(observed_generation=1, bytes=EnvironmentBytes(total=5, pushed=5), image="a")
    after = CondaEnvironmentStatus(observed_generation=2, bytes=EnvironmentBytes(total=7, shared=7), image="a")
    patched = merge_patch(msgspec.to_builtins(before), status_patch(before, after)["status"])
    assert msgspec.convert(patched, CondaEnvironmentStatus) == after


async def test_a_conflict_keeps_what_runs_and_heals_with_the_next_edit() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.until_ready()
    image = cluster.environment().status.image
    cluster.jobs.clear()
    cluster.ask({**SPEC, "dependencies": ["python=3.11", "torch=99"]})
    await cluster.reconcile()
    request = cluster.request_of(cluster.only("lock"))
    assert isinstance(request, LockRequest)
    assert request.previous == f"r/e@{digest('lock a')}"
    cluster.ends(
        cluster.only("lock"), problem("Unsolvable", "no torch\nmore"), kind="Failed", reason="PodFailurePolicy"
    )
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Ready") == ("False", "Unsolvable")
    assert cluster.events[-1] == ("Warning", "Unsolvable", "no torch")
    assert cluster.environment().status.image == image
    cluster.ask(SPEC)
    assert await cluster.reconcile() == ["status"], "the lock of this spec is still there"
    assert cluster.says("Ready") == ("True", "Built")


async def test_what_cannot_be_solved_is_tried_again_on_demand_and_after_an_hour() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    first = cluster.only("lock")
    cluster.ends(first, problem("Unsolvable"), kind="Failed", reason="PodFailurePolicy")
    await cluster.reconcile()
    cluster.passes(600)
    assert await cluster.reconcile() == []
    cluster.ask(retry="now")
    assert await cluster.reconcile() == ["create lock", "status"]
    (second,) = set(cluster.jobs) - {first}
    cluster.ends(second, problem("Unsolvable"), kind="Failed", reason="PodFailurePolicy")
    await cluster.reconcile()
    cluster.passes(3601)
    await cluster.reconciler.reconcile(KEY)
    assert second not in cluster.jobs
    await cluster.reconciler.reconcile(KEY)
    assert second in cluster.jobs


async def test_what_may_pass_is_tried_again_after_a_minute_without_any_noise() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    for _ in range(3):
        lock = cluster.only("lock")
        cluster.ends(lock, problem("ChannelUnavailable", "no answer"), kind="Failed", reason="BackoffLimitExceeded")
        await cluster.reconciler.reconcile(KEY)
        result = await cluster.reconciler.reconcile(KEY)
        assert result.requeue_after == 60
        cluster.passes(60)
        cluster.writes.clear()
        await cluster.reconciler.reconcile(KEY)
        await cluster.reconciler.reconcile(KEY)
        assert cluster.writes == ["delete lock", "create lock"]
    assert [reason for _, reason, _ in cluster.events] == ["ChannelUnavailable"]
    cluster.ends(cluster.only("lock"), lock_result())
    await cluster.reconcile()
    assert cluster.says("Locked") == ("True", "Locked")


async def test_a_job_deleted_by_hand_is_made_again() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    cluster.jobs.clear()
    assert await cluster.reconcile() == ["create lock"]


async def test_pods_of_an_earlier_job_of_the_same_name_do_not_count() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    cluster.pod(cluster.only("lock"), problem("DiskFull"))
    cluster.jobs.clear()
    await cluster.reconcile()
    assert cluster.says("Locked") == ("Unknown", "Locking")


async def test_a_long_explanation_is_read_from_the_log_once() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    full = problem("Unsolvable", "because\n" * 2000)
    name = cluster.pod(cluster.only("lock"), full)
    cluster.ends(cluster.only("lock"), kind="Failed", reason="PodFailurePolicy")
    await cluster.reconcile()
    found = cluster.environment().status.condition("Locked")
    assert found
    assert len(found.message) < 4096, "where the log cannot be read, what there is"
    cluster.logs[name] = encode_result(full)
    await cluster.reconcile()
    found = cluster.environment().status.condition("Locked")
    assert found
    assert found.message == ("because\n" * 2000).strip()
    assert cluster.asked.count("log") <= 4
    asked = len(cluster.asked)
    await cluster.reconcile()
    assert len(cluster.asked) == asked


@pytest.mark.parametrize("limit", [60, 200, 201, 202, 203, 204, 205, 206, 10_000])
def test_an_explanation_that_is_cut_is_read_as_far_as_it_goes(limit: int) -> None:
    line = encode_result(problem("Unsolvable", 'a"b\n\\ä€\x01' * 100))
    found = explained(line[:limit])
    assert found is not None
    assert ('a"b\n\\ä€\x01' * 100).startswith(found)
    assert found or limit < 100


def test_a_line_that_is_no_result_explains_nothing() -> None:
    assert explained(b"Traceback") is None
    assert explained(encode_result(lock_result())) is None


async def test_cuda_comes_from_the_nodes_when_a_lock_is_about_to_be_made() -> None:
    cluster = Cluster()
    cluster.nodes = [{"nvidia.com/cuda.runtime-version.full": "12.8"}, {"nvidia.com/cuda.runtime-version.full": "12.4"}]
    cluster.ask()
    await cluster.reconcile()
    request = cluster.request_of(cluster.only("lock"))
    assert isinstance(request, LockRequest)
    assert request.virtual_packages.cuda == "12.4"
    assert cluster.asked == ["nodes"]
    cluster.nodes = []
    assert await cluster.reconcile() == []
    given = {**SPEC, "virtualPackages": {"cuda": "11.8"}}
    cluster.ask(given, name="given")
    await cluster.reconcile("given")
    assert cluster.asked == ["nodes"], "not listed where the spec says it"


async def test_without_the_right_to_list_nodes_no_cuda_is_assumed() -> None:
    cluster = Cluster()
    cluster.refusals["nodes"] = ApiError(403, "Forbidden", "nodes is forbidden")
    cluster.ask()
    assert await cluster.reconcile() == ["create lock", "status"]
    request = cluster.request_of(cluster.only("lock"))
    assert isinstance(request, LockRequest)
    assert request.virtual_packages.cuda is None


async def test_a_quota_on_jobs_is_told_and_heals() -> None:
    cluster = Cluster()
    cluster.refusals["lock"] = ApiError(403, "Forbidden", "exceeded quota: count/jobs.batch=0")
    cluster.ask()
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Locked") == ("False", "Rejected")
    del cluster.refusals["lock"]
    assert await cluster.reconcile() == []
    cluster.passes(61)
    assert await cluster.reconcile() == ["create lock", "status"]
    assert cluster.says("Locked") == ("Unknown", "Locking")


async def test_a_quota_on_pods_is_told_in_its_own_words_and_heals() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    cluster.passes(11)
    cluster.job_events = [
        {"reason": "FailedCreate", "message": "older", "lastTimestamp": "2026-03-01T12:00:01Z"},
        {"reason": "FailedCreate", "message": "exceeded quota: pods=0", "lastTimestamp": "2026-03-01T12:00:09Z"},
    ]
    assert await cluster.reconcile() == ["status"]
    found = cluster.environment().status.condition("Locked")
    assert found
    assert (found.status, found.reason, found.message) == ("False", "FailedCreate", "exceeded quota: pods=0")
    cluster.pod(cluster.only("lock"), running={})
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Locked") == ("Unknown", "Locking")


async def test_without_the_right_to_read_events_it_waits() -> None:
    cluster = Cluster()
    cluster.refusals["events"] = ApiError(403, "Forbidden", "events is forbidden")
    cluster.ask()
    await cluster.reconcile()
    cluster.passes(11)
    assert await cluster.reconcile() == []


async def test_without_a_template_nothing_is_made() -> None:
    cluster = Cluster(template=False)
    cluster.ask()
    assert await cluster.reconcile() == ["status"]
    assert cluster.says("Ready") == ("False", "BuilderDisabled")
    assert cluster.jobs == {}
    assert await cluster.tidy() == []


async def test_an_environment_that_is_gone_leaves_no_job_at_work() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    assert await cluster.tidy() == []
    del cluster.resources[KEY]
    cluster.store.remove(KEY)
    await cluster.reconciler.reconcile(KEY)
    assert cluster.queued == [HOUSEKEEPING]
    cluster.passes(31)
    assert await cluster.tidy() == ["delete lock"]


async def test_a_job_that_did_its_work_keeps_its_log() -> None:
    """Its pod tells the result a moment before the Job is known to have ended."""
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    cluster.pod(cluster.only("lock"), lock_result())
    await cluster.reconcile()
    cluster.passes(31)
    assert await cluster.tidy() == []


async def test_an_edit_leaves_no_job_at_work_for_what_was_asked_before() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    before = cluster.only("lock")
    cluster.ask({**SPEC, "dependencies": ["python=3.12"]})
    await cluster.reconcile()
    assert cluster.queued == [HOUSEKEEPING]
    cluster.passes(31)
    assert await cluster.tidy() == ["delete lock"]
    assert before not in cluster.jobs


async def test_after_a_start_nothing_is_swept_before_every_environment_was_looked_at() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    cluster.passes(31)
    cluster.restart()
    assert await cluster.tidy() == []
    await cluster.reconcile()
    assert await cluster.tidy() == []
    assert len(cluster.jobs) == 1


async def test_why_a_job_failed_is_kept_as_long_as_somebody_wants_to_know() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    cluster.ends(cluster.only("lock"), problem("Unsolvable"), kind="Failed", reason="PodFailurePolicy")
    await cluster.reconcile()
    cluster.passes(60)
    assert await cluster.tidy() == []
    cluster.store.remove(KEY)
    await cluster.reconciler.reconcile(KEY)
    assert await cluster.tidy() == ["delete lock"]


async def test_images_are_collected_once_nothing_is_at_work_and_at_most_once_an_hour() -> None:
    cluster = Cluster(collect=True)
    cluster.ask()
    await cluster.reconcile()
    assert await cluster.tidy() == [], "a Job is at work"
    cluster.ends(cluster.only("lock"), lock_result())
    await cluster.reconcile()
    cluster.ends(cluster.only("build"), build_result())
    await cluster.reconcile()
    assert await cluster.tidy() == ["create collect"]
    collect = cluster.only("collect")
    assert cluster.request_of(collect) == CollectRequest(keep=tuple(sorted((digest("lock a"), digest("image a")))))
    assert await cluster.tidy() == []
    cluster.ends(collect, "")
    cluster.ask(name="gone")
    cluster.store.remove(("team", "gone"))
    await cluster.reconciler.reconcile(("team", "gone"))
    assert await cluster.tidy() == []
    cluster.passes(3601)
    assert await cluster.tidy() == ["delete collect"], "the same digests are to be kept: the same name"
    assert await cluster.tidy() == ["create collect"]


async def test_images_are_not_collected_unless_the_owner_says_so() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.until_ready()
    assert await cluster.tidy() == []


async def test_a_job_that_the_watch_has_not_told_of_is_waited_for_and_somebody_elses_is_left_alone() -> None:
    cluster = Cluster()
    cluster.ask()
    await cluster.reconcile()
    labels = cluster.jobs[cluster.only("lock")]["metadata"]["labels"]
    cluster.jobs[cluster.only("lock")]["metadata"]["labels"] = {}  # unknown to the cache
    with pytest.raises(ApiError, match="AlreadyExists"):
        await cluster.reconciler.reconcile(KEY)
    cluster.passes(6)
    await cluster.reconcile()
    assert cluster.says("Locked") == ("False", "Rejected")
    cluster.jobs[cluster.only("lock")]["metadata"]["labels"] = labels
    await cluster.reconcile()
    assert cluster.says("Locked") == ("Unknown", "Locking")


@pytest.mark.parametrize("crash_at", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_a_crash_with_any_write_is_harmless(stage: int, crash_at: int) -> None:
    """The operator dies with the answer to each write on its way, in each step from a spec to an image."""
    cluster = Cluster()
    cluster.ask()
    for step in range(3):
        if step == 1:
            cluster.ends(cluster.only("lock"), lock_result())
        if step == 2:
            cluster.ends(cluster.only("build"), build_result())
        if step == stage:
            cluster.writes.clear()
            cluster.crash_at = crash_at
            try:
                await cluster.reconciler.reconcile(KEY)
            except CrashError:
                cluster.crash_at = None
                cluster.restart()
            cluster.crash_at = None
        await cluster.reconcile()
    assert cluster.says("Ready") == ("True", "Built")
    assert sorted(name.partition("-")[0] for name in cluster.jobs) == ["build", "lock"]

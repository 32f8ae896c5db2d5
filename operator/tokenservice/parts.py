"""The parts of the manager that live as long as it leads: stores, caches, queues and controllers, tied together."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import msgspec

from tokenservice.api import names
from tokenservice.api.environments import CondaEnvironment
from tokenservice.api.meta import ControllerRevision, Deployment, Node, Object, ObjectMeta, Pod
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import LastStart
from tokenservice.environments import controller as environments
from tokenservice.environments import jobs
from tokenservice.environments.attempts import Job
from tokenservice.environments.controller import HOUSEKEEPING
from tokenservice.environments.render import Manifest
from tokenservice.environments.store import Store as EnvironmentStore
from tokenservice.handover.assigner import Assigner
from tokenservice.handover.claim import CLAIMS, POOL, on_its_way
from tokenservice.handover.tally import Tally
from tokenservice.handover.timer import Timer
from tokenservice.kube.client import Client, Resource
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.events import EventRecorder
from tokenservice.kube.informer import HasMetadata, Informer
from tokenservice.kube.namespaced import Namespaced
from tokenservice.kube.resources import (
    BUDGETS,
    CONDAENVIRONMENTS,
    DEPLOYMENTS,
    JOBS,
    NODES,
    PODS,
    REVISIONS,
    SERVICES,
    TOKENSERVICES,
    WARMPOOLS,
)
from tokenservice.nodes.fit import lost, unfit
from tokenservice.options import Options
from tokenservice.pods.failures import pod_failures, readiness
from tokenservice.pods.source import SchemaSource
from tokenservice.pools import controller as pools
from tokenservice.pools.waiting import Waiting
from tokenservice.runtime.controller import Controller, Result, Verdict
from tokenservice.runtime.metrics import Metrics
from tokenservice.runtime.queue import KeyedQueue
from tokenservice.services import revisions
from tokenservice.services.caches import PULLS, Caches
from tokenservice.services.controller import Reconciler
from tokenservice.services.store import Key, Store, decode, read
from tokenservice.services.taking import Around, WarmPods
from tokenservice.services.verify import Asker
from tokenservice.watch import Kind

T = TypeVar("T", bound=HasMetadata)


POOL_SECONDS = 0.2
"""For so long a pool waits for more of its pods to change: in a burst many do, and a look takes milliseconds."""
MANY_CLAIMS = 8
"""More than that, claimed or sent requests at once, are many: whatever else is written makes it last longer. Those
that load their models do not count: that is no work for the cluster."""


class Parts:
    """Stores, caches, queues and controllers of one reign, each tied to the others."""

    def __init__(
        self,
        options: Options,
        metrics: Metrics,
        client: Client,
        recorder: EventRecorder,
        *,
        template: Manifest | None,
        key: bytes,
    ) -> None:
        self.schemas = SchemaSource(client)
        self._options = options
        self._metrics = metrics
        self._client = client
        self.services = Store()
        self.informers: list[Informer[Any]] = []
        self.environments = EnvironmentStore(self._environment_changed)
        self._unreadable: set[Key] = set()
        """TokenServices of which nobody knows what they use."""
        self._queue: KeyedQueue[Key] = KeyedQueue("tokenservice", metrics=metrics.queue("tokenservice"))
        self._environment_queue: KeyedQueue[Key] = KeyedQueue(
            "condaenvironment", metrics=metrics.queue("condaenvironment")
        )
        self._pool_queue: KeyedQueue[Key] = KeyedQueue("warmpool", metrics=metrics.queue("warmpool"))
        metrics.services.set_function(lambda: len(self.services))
        for ready in ("True", "False"):
            metrics.environments.labels(ready).set_function(lambda ready=ready: _count(self.environments, ready))
        self.kinds = (Kind(TOKENSERVICES, self._take_service, self._remove_service, self._note_unreadable),)
        # Not watched by kopf: when one of its watches fails it leaves the others running without looking after them.
        for namespace in options.namespaces or (None,):
            self._informer(
                CONDAENVIRONMENTS, CondaEnvironment, self.environment_told, None, selector=None, namespace=namespace
            )
        self._pools = Namespaced(options.namespaces, self._pool_informer)
        for warm_pods in (True, False):
            metrics.pool_pods.labels(str(warm_pods)).set_function(
                lambda warm_pods=warm_pods: self._pool_pods(warm=warm_pods)
            )
        self._waiting = Waiting()
        self._asker = Asker(on_answer=lambda pod: self._queue.add(owner_key(pod.metadata)), now=_now)
        self._assigner = Assigner(
            key, on_outcome=lambda pod: self._queue.add(owner_key(pod.metadata), urgent=True), clock=time.monotonic
        )
        self._timer = Timer(client, on_timed=self._timed)
        tally = Tally(self._look_at)
        caches, nodes = self._caches(), self._nodes()
        warm = pools.Reconciler(
            client,
            pools.Caches(
                self._pools,
                caches["pods"],
                self.environments,
                nodes.all if nodes else tuple,
                waiting=self._waiting.in_namespace,
                taken=lambda namespace, name: self._taken(caches, namespace, name),
                pools_in=self._pools_of_namespace,
                claimed=self._claimed,
            ),
            self.schemas,
            recorder,
            key=key,
            now=_now,
            on_made=self._ask_users,
            tally=tally,
            nonce=lambda: secrets.token_hex(8),
            hurry=lambda pool: self._hurry() and not self._warm_pods.waiting_for(pool),
        )
        self._warm_pods = WarmPods(
            client,
            Around(
                caches["pods"],
                self._pools,
                spec=warm.spec,
                node=(lambda name: nodes.get("", name)) if nodes else None,
            ),
            assigner=self._assigner,
            timer=self._timer,
            tally=tally,
            metrics=metrics,
            now=_now,
        )
        services = Reconciler(
            client,
            self.services,
            Caches(
                **caches,
                environments=self.environments,
                nodes=nodes.all if nodes else tuple,
                pools=self._pools_in,
                warm_pools=self._pools,
            ),
            self.schemas,
            recorder,
            asker=self._asker,
            warm_pods=self._warm_pods,
            metrics=metrics,
            cluster_domain=options.cluster_domain,
            now=_now,
            hurry=self._hurry,
        )
        collection = environments.Collection(
            self.services,
            complete=lambda: not self._unreadable,
            more=lambda: (*map(revisions.image, caches["revisions"].all()), *map(_pool_image, self._pools.all())),
        )
        cenvs = environments.Reconciler(
            client,
            self.environments,
            jobs.Jobs(client, self._job_caches(enabled=template is not None), options.job_namespace, template),
            recorder,
            ask=self._environment_queue.add,
            metrics=metrics,
            collection=collection if options.collect_images else None,
            keep_images=options.keep_images,
            now=_now,
        )
        self.controllers = (
            self._controller("tokenservice", self._queue, services.reconcile),
            self._controller("condaenvironment", self._environment_queue, cenvs.reconcile),
            self._controller("warmpool", self._pool_queue, warm.reconcile),
        )

    async def aclose(self) -> None:
        """Ends what is under way in the background."""
        await self._asker.close()
        await self._assigner.close()
        await self._timer.close()

    def ask_all(self) -> None:
        """Has every resource looked at."""
        for service in self.services:
            self._queue.add((service.metadata.namespace, service.metadata.name))
        for environment in self.environments:
            self._environment_queue.add((environment.metadata.namespace, environment.metadata.name))
        self._environment_queue.add(HOUSEKEEPING)
        for pool in self._pools.all():
            self._pool_queue.add((pool.metadata.namespace, pool.metadata.name))

    def _controller(
        self, name: str, queue: KeyedQueue[Key], reconcile: Callable[[Key], Awaitable[Result]]
    ) -> Controller[Key]:
        return Controller(
            name,
            queue,
            reconcile,
            classify=classify,
            describe=lambda key: {"namespace": key[0], "name": key[1]},
            workers=self._options.workers,
            metrics=self._metrics.controller(name),
        )

    # -- what the watches of our own kinds tell

    def _take_service(self, raw: Mapping[str, Any] | msgspec.Raw) -> None:
        service = read(raw) if isinstance(raw, msgspec.Raw) else decode(raw)
        key = (service.metadata.namespace, service.metadata.name)
        known = self.services.get(key)
        if self.services.observe(service):
            # Somebody may wait for a warm pod after an edit, and nobody for what our own status comes back with.
            edited = known is not None and known.metadata.generation != service.metadata.generation
            self._queue.add(key, urgent=edited and service.pool_name is not None)

    def _hurry(self) -> bool:
        """Whether for many TokenServices there is something to do for which somebody waits: they take pods of a pool
        and were edited, or their pods can be claimed or sent requests.
        """
        return self._queue.urgent > MANY_CLAIMS

    def _look_at(self, pool: Key) -> None:
        """Has a WarmPool reconciled, once more of its pods may have changed."""
        self._pool_queue.add_after(pool, pools.HURRIED_SECONDS if self._hurry() else POOL_SECONDS)

    def _remove_service(self, key: Key) -> None:
        self.services.remove(key)
        self._queue.add(key)

    def _note_unreadable(self, key: Key, unreadable: bool) -> None:
        (self._unreadable.add if unreadable else self._unreadable.discard)(key)

    def environment_told(self, old: CondaEnvironment | None, new: CondaEnvironment | None) -> None:
        """What the watch of CondaEnvironments says; the store knows already what we wrote ourselves."""
        if new:
            self.environments.observe(new)
        elif old:
            self.environments.remove((old.metadata.namespace, old.metadata.name))

    def _environment_changed(self, old: CondaEnvironment | None, new: CondaEnvironment | None) -> None:
        """Asks the CondaEnvironment's controller, and the TokenServices that run in it or made it."""
        metadata = cast(CondaEnvironment, new or old).metadata
        key = (metadata.namespace, metadata.name)
        self._environment_queue.add(key)
        if old and new and same(old, new):
            return
        for user in self.services.users_of(*key):
            self._queue.add(user)
        if names.LABEL_SERVICE in metadata.labels:
            self._queue.add(owner_key(metadata))
        for pool in self._pools_in(*key):
            self._pool_queue.add((key[0], pool.metadata.name))

    # -- what the informers tell

    def _timed(self, pod: Pod, start: LastStart | None) -> None:
        """A pod's start was looked into."""
        if start:
            self._metrics.started(start)
            self._queue.add(owner_key(pod.metadata))

    def _child_changed(self, old: HasMetadata | None, new: HasMetadata | None) -> None:
        if old and new and same(old, new):
            return
        for key in {owner_key(item.metadata) for item in (old, new) if item}:
            self._queue.add(key)

    def _pools_in(self, namespace: str, name: str) -> tuple[WarmPool, ...]:
        """The WarmPools that run in the CondaEnvironment of that name."""
        return self._pools.by_index(f"{namespace}/{name}")

    def _pools_of_namespace(self, namespace: str) -> tuple[WarmPool, ...]:
        """All of them: pools are few, and this is asked only while a pod finds no room."""
        return tuple(pool for pool in self._pools.all() if pool.metadata.namespace == namespace)

    def _pool_changed(self, old: WarmPool | None, new: WarmPool | None) -> None:
        if old and new and same(old, new):
            return
        metadata = cast(WarmPool, new or old).metadata
        self._pool_queue.add((metadata.namespace, metadata.name))
        if old is None or new is None:
            self._ask_users((metadata.namespace, metadata.name))

    def _claimed(self, namespace: str, name: str) -> int:
        """How many pods TokenServices have taken from a WarmPool that have not settled, as far as they say."""
        takers = (self.services.get(key) for key in self.services.takers_of(namespace, name))
        return sum(taker.status.warm_replicas for taker in takers if taker)

    def _taken(self, caches: Mapping[str, Namespaced[Any]], namespace: str, name: str) -> int:
        """How many places of its Deployment a TokenService is about to fill with pods from a pool. What is claimed in
        place of a replica that the Deployment is not asked for fills none.
        """
        service, deployment = self.services.get((namespace, name)), caches["deployments"].get(namespace, name)
        if service is None or deployment is None:
            return 0
        key = f"{namespace}/{name}"
        pods = (*caches["pods"].by_index(key), *caches["pods"].by_index(f"{key}{CLAIMS}"))
        deployed: int = deployment.spec.replicas
        return sum(map(on_its_way, pods)) - max(0, service.spec.replicas - deployed)

    def _pool_pods(self, *, warm: bool) -> int:
        statuses = [pool.status for pool in self._pools.all()]
        ready = sum(status.ready_replicas for status in statuses)
        return ready if warm else sum(status.replicas for status in statuses) - ready

    def _ask_users(self, pool: Key) -> None:
        """Asks the TokenServices that take pods from a WarmPool."""
        for user in self.services.takers_of(*pool):
            self._queue.add(user)

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        """Cordoned, lost or back: pods that wait there count as warm no more, or again."""
        if (unfit(old) if old else "gone") != (unfit(new) if new else "gone"):
            for pool in self._pools.all():
                key = (pool.metadata.namespace, pool.metadata.name)
                self._look_at(key)
                for waiting in self._warm_pods.waiting_for(key):
                    self._queue.add_after(waiting, POOL_SECONDS)
        if old and lost(old) != (new is None or lost(new)):
            # The news of the pods there may have come before.
            for service in self.services:
                if service.spec.warm_pool:
                    self._queue.add_after((service.metadata.namespace, service.metadata.name), POOL_SECONDS)

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if old and new is None:
            self._asker.forget(old.metadata.uid)
            self._assigner.forget(old.metadata.uid)
            self._timer.forget(old.metadata.uid)
            self._warm_pods.forget(old.metadata.uid)
        if self._waiting.told(old, new):
            namespace = cast(Pod, new or old).metadata.namespace
            for giver in self._pools_of_namespace(namespace):
                self._look_at((namespace, giver.metadata.name))
        if (self._matters(old) if old else None) == (self._matters(new) if new else None):
            return
        for item in (old, new):
            pool = item.metadata.labels.get(names.LABEL_POOL) if item else None
            if item and pool:
                self._look_at((item.metadata.namespace, pool))
            elif item:
                self._queue.add(owner_key(item.metadata))
        pool = new.metadata.labels.get(names.LABEL_POOL) if new else None
        if new and pool and readiness(new):
            for waiting in self._warm_pods.waiting_for((new.metadata.namespace, pool)):
                self._queue.add(waiting, urgent=True)

    def _matters(self, pod: Pod) -> object:
        """What of a pod leads to another plan: counts come from the Deployment."""
        metadata = pod.metadata
        if names.LABEL_PRE_PULL in metadata.labels:
            return pod.status, metadata.deletion_timestamp
        found = pod_failures(pod), readiness(pod) is not None, pod.status.pod_ip
        if names.LABEL_POOL in metadata.labels:
            return *found, pod.status.phase, metadata.deletion_timestamp, pod.spec.node_name
        service = self.services.get(owner_key(metadata))
        if service is None or (service.spec.warm_pool is None and names.LABEL_CLAIM not in metadata.labels):
            return found
        # Whether it is still to start, and whose it is: warm pods take the places of others.
        begun = [status.state.running is not None for status in pod.status.container_statuses]
        return *found, begun, metadata.deletion_timestamp, metadata.labels, metadata.controller

    def _job_changed(self, old: HasMetadata | None, new: HasMetadata | None) -> None:
        """Of a Job or of one of its pods."""
        if old and new and same(old, new):
            return
        waiting = self.environments.waiting_for(_need(cast(HasMetadata, new or old)))
        for key in waiting or (HOUSEKEEPING,):
            self._environment_queue.add(key)

    def _caches(self) -> dict[str, Namespaced[Any]]:
        return {
            "deployments": self._children(DEPLOYMENTS, Deployment, self._child_changed),
            "services": self._children(SERVICES, Object, self._child_changed),
            "budgets": self._children(BUDGETS, Object, self._child_changed),
            "pods": self._children(PODS, Pod, self._pod_changed, _service_of),
            "revisions": self._children(REVISIONS, ControllerRevision, self._child_changed, _service_of),
        }

    def _nodes(self) -> Informer[Node] | None:
        if self._options.namespaces:  # whoever looks after namespaces alone may not see nodes
            return None
        return self._informer(NODES, Node, self._node_changed, None, selector=None, namespace=None)

    def _job_caches(self, *, enabled: bool) -> jobs.Caches:
        if not enabled:
            return jobs.Caches(jobs.Nothing(), jobs.Nothing())
        where = {"selector": names.LABEL_JOB, "namespace": self._options.job_namespace}
        return jobs.Caches(
            jobs=self._informer(JOBS, Job, self._job_changed, _need, **where),
            pods=self._informer(PODS, Pod, self._job_changed, jobs.job_of, **where),
        )

    def _children(
        self, resource: Resource, kind: type[T], on_change: Callable[[T | None, T | None], None], index: Any = None
    ) -> Namespaced[T]:
        def make(namespace: str | None) -> Informer[T]:
            return self._informer(
                resource, kind, on_change, index, selector=names.MANAGED_SELECTOR, namespace=namespace
            )

        return Namespaced(self._options.namespaces, make)

    def _pool_informer(self, namespace: str | None) -> Informer[WarmPool]:
        # Not watched by kopf, for the same reason as CondaEnvironments.
        return self._informer(
            WARMPOOLS, WarmPool, self._pool_changed, _environment_of, selector=None, namespace=namespace
        )

    def _informer(
        self,
        resource: Resource,
        kind: type[T],
        on_change: Callable[[T | None, T | None], None],
        index: Callable[[T], str | None] | None,
        *,
        selector: str | None,
        namespace: str | None,
    ) -> Informer[T]:
        informer = Informer(
            self._client,
            resource,
            kind,
            label_selector=selector,
            namespace=namespace,
            on_change=on_change,
            index=index,
            metrics=self._metrics,
        )
        label = f"{resource.plural}/{namespace}" if namespace else resource.plural
        self._metrics.watch(label, informer.last_event_age)
        self.informers.append(informer)
        return informer


def _now() -> datetime:
    return datetime.now(UTC)


def _service_of(item: HasMetadata) -> str:
    """The key of the index by TokenService, or by WarmPool."""
    labels = item.metadata.labels
    if names.LABEL_POOL in labels:
        return f"{item.metadata.namespace}/{labels[names.LABEL_POOL]}{POOL}"
    if names.LABEL_PRE_PULL in labels:
        return f"{item.metadata.namespace}/{labels[names.LABEL_PRE_PULL]}{PULLS}"
    if names.LABEL_CLAIM in labels:
        return f"{item.metadata.namespace}/{labels[names.LABEL_CLAIM]}{CLAIMS}"
    return f"{item.metadata.namespace}/{labels.get(names.LABEL_SERVICE, '')}"


def _environment_of(pool: WarmPool) -> str | None:
    """The key of the index of pools by CondaEnvironment."""
    name = pool.environment_name
    return f"{pool.metadata.namespace}/{name}" if name else None


def _pool_image(pool: WarmPool) -> str | None:
    """The image that a pool's new pods run."""
    return pool.status.environment.image if pool.status.environment else None


def _need(item: HasMetadata) -> str:
    """The hash of what a Job, or the Job of a pod, was asked for."""
    return item.metadata.labels.get(names.LABEL_ENVIRONMENT_HASH, "")


def _count(store: EnvironmentStore, ready: str) -> int:
    """CondaEnvironments with that status of Ready; one that was never looked at is not ready."""
    conditions = (environment.status.condition("Ready") for environment in store)
    return sum(
        1 for condition in conditions if (condition is not None and condition.status == "True") == (ready == "True")
    )


def classify(error: Exception) -> Verdict | None:
    """What an error means for trying again."""
    if isinstance(error, ApiError):
        if error.is_conflict or error.is_already_exists:
            return "conflict"
        if error.is_leaving:
            return "leaving"
        return "terminal" if error.is_invalid else "transient"
    return "transient" if isinstance(error, Unreachable | TimeoutError) else None


def same(old: HasMetadata, new: HasMetadata) -> bool:
    """Whether two versions of an object are alike in all that is read of it.

    Statuses of Services and budgets, and fields of other managers, change without our caring.
    """
    metadata = msgspec.structs.replace(old.metadata, resource_version=new.metadata.resource_version)
    return bool(msgspec.structs.replace(cast(Any, old), metadata=metadata) == new)


def owner_key(metadata: ObjectMeta) -> Key:
    """The TokenService that an object belongs to: by its label, which outlives the owner reference of a pod."""
    labels = metadata.labels
    kinds = (names.LABEL_SERVICE, names.LABEL_CLAIM, names.LABEL_PRE_PULL)
    return metadata.namespace, next((labels[kind] for kind in kinds if labels.get(kind)), metadata.name)

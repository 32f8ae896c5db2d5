"""What is: everything a pool's plan is made from, frozen at one moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from tokenservice.api.conditions import Verdict
from tokenservice.api.meta import Pod
from tokenservice.api.pools import WarmPool
from tokenservice.api.v1alpha1 import EnvironmentStatus
from tokenservice.handover.tally import Count
from tokenservice.pods.refusal import Refusal
from tokenservice.pools.giving import Amounts, Around
from tokenservice.pools.render import Rendered


@dataclass(frozen=True)
class Snapshot:
    """One WarmPool and its pods.

    Attributes:
        pool: the WarmPool.
        rendered: what its pods are made from now; None if there is no image yet.
        refusal: why no pods can be made, whatever `rendered` is.
        environment: EnvironmentReady; None for a prebuilt image.
        runs_in: the image for new pods.
        pods: all that carry the pool's label.
        taken: whether a pod of the namespace has that name, as far as is known.
        may_create: how many may be made now.
        key_id: of the key that tokens are made with.
        unfit: whether a node takes no part: it is cordoned, does not answer, or its disk is full.
        now: the time.
        holds: what each of the pool's pods requests.
        around: what else there is in the namespace.
        count: hits and misses that are not in the status yet.
        claimed: pods that were taken and have not settled.
        calm: until when pods that were taken just now are not made anew, the soonest first.

    """

    pool: WarmPool
    rendered: Rendered | None
    refusal: Refusal | None
    environment: Verdict | None
    runs_in: EnvironmentStatus | None
    pods: tuple[Pod, ...]
    taken: Callable[[str], bool]
    may_create: int
    key_id: str
    unfit: Callable[[str], bool]
    now: datetime
    holds: Amounts = field(default_factory=dict)
    around: Around = field(default_factory=Around)
    count: Count = field(default_factory=Count)
    claimed: int = 0
    calm: tuple[datetime, ...] = ()

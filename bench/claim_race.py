"""That the checker sees a broken claim: two bare clients race for one pool, with the optimistic lock and without it.

With resourceVersion and uid in its first patch every pod goes to one TokenService. Without them both clients are told
that the pod is theirs, and the checker has to find it. A checker that does not is no witness, and bench.claim ends.
"""

from __future__ import annotations

import contextlib

import msgspec

from bench import claim_setup as setup
from bench.child import Child
from bench.claim_check import Verdict, check
from bench.claim_setup import Setting
from bench.cluster import BenchError

CLIENTS = 2
PODS, SERVICES = 20, 16
SECONDS = 30.0
TRIES = 3
"""On a machine that is busy with something else one client may have taken all it needs before the other begins."""
PAUSE_SECONDS = 0.1
"""Between a client's choice of a pod and its claim, as if it were busy: long enough for both to choose the same one."""


async def race(setting: Setting, namespace: str, locked: bool) -> Verdict:
    """The verdict on `CLIENTS` clients that have each their own TokenServices and one pool, all asked at once."""
    called = [f"svc-{number:05}" for number in range(SERVICES)]
    await setting.api.make_namespace(namespace)
    audit = setting.audit(namespace)
    pool = await setup.make_pool(setting.api, namespace, PODS, 1)
    await setup.make_services(setting.api, namespace, called)
    text = setup.pod_text(await setup.pod_schema(setting.api), pool)
    await setup.fill(setting.api, namespace, text, PODS)
    async with contextlib.AsyncExitStack() as clients:
        for part in range(CLIENTS):
            task = setting.bare(namespace, pool, locked=locked, pause_s=PAUSE_SECONDS, part=part, parts=CLIENTS)
            log = setting.logs / f"{namespace}-{part}.log"
            await clients.enter_async_context(Child("bench.claim_bare", msgspec.json.encode(task), log))
        await setup.offer(setting.api, namespace, called, None)
        return check(await setup.finished(audit, namespace, SERVICES, SECONDS))


async def prove(setting: Setting) -> tuple[Verdict, Verdict]:
    """The verdicts with the lock and without. Raises BenchError if the checker does not tell them apart."""
    locked = await race(setting, "race-locked", locked=True)
    broken = await race(setting, "race-broken-1", locked=False)
    for number in range(2, TRIES + 1):
        if broken.duplicated:
            break
        broken = await race(setting, f"race-broken-{number}", locked=False)
    if not locked.good or locked.finished != SERVICES:
        raise BenchError(f"claims with an optimistic lock fail the check: {locked}")
    if not broken.duplicated:
        raise BenchError(f"the checker does not see that pods are claimed twice: {broken}")
    return locked, broken

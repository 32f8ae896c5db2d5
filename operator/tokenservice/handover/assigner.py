"""Giving claimed pods their models, in the background: what an answer means, and the giving itself.

The other side is token_server's docs/token-server.md#warm. The same assignment may be brought any number of times, and
is answered when the model serves; so nothing is lost with a process that ends in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
import msgspec

from tokenservice import protocol
from tokenservice.api import conditions
from tokenservice.api.conditions import first_line
from tokenservice.api.meta import Pod
from tokenservice.handover import tokens
from tokenservice.handover.assignment import Document
from tokenservice.pods import calls
from tokenservice.pods.calls import Calls, beginning

CONNECT_SECONDS = 2.0
REACH_SECONDS = 60.0
"""After so long without a connection, none is to be had: a NetworkPolicy, most often. By then Kubernetes sees if the
node is gone (50 s, --node-monitor-grace-period of the controller manager), which says nothing of other nodes' pods."""
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between tries; the last one from then on."""
_BODY_BYTES = 16384
_OF_THE_POD = frozenset({"already_assigned", "not_kept"})
"""Codes of token_server."""

Kind = Literal["serves", "refused", "unfit"]
"""serves: the model is there. refused: no warm pod can serve this revision. unfit: this pod cannot; another may."""


@dataclass(frozen=True)
class Outcome:
    """What came of giving a pod its model.

    Attributes:
        kind: what follows.
        reason: for conditions; "" where it serves.
        message: in words.
        stages: what the server did until its model served, and for how many seconds.

    """

    kind: Kind
    reason: str = ""
    message: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Silence:
    """A pod that cannot be reached; times are the clock's."""

    since: float | None = None
    """None while it can."""
    why: str = ""
    trying: float | None = None
    """When the try that is under way began; None between two."""

    def lasts(self, now: float) -> bool:
        """Whether there is no connection, and was none."""
        return self.since is not None and not self._connected(now)

    def goes_on(self, now: float, error: Exception) -> float:
        """A try has come to nothing; somebody may have cut its connection. Returns for how long it lasts."""
        if self.since is None or self._connected(now):
            self.since = now
        self.why, self.trying = first_line(str(error)) or type(error).__name__, None
        return now - self.since

    def _connected(self, now: float) -> bool:
        """Whether the try that is under way has a connection: it goes on for longer than connecting can take."""
        return self.trying is not None and now - self.trying > CONNECT_SECONDS + 1.0

    @property
    def outcome(self) -> Outcome:
        said = f"port {protocol.ASSIGN_PORT} does not answer: {self.why}"
        return Outcome("refused", conditions.UNREACHABLE, said)


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Body(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)
    stages: dict[str, float] = {}


def judge(status: int, body: bytes) -> Outcome | None:
    """What an answer to PUT /assignment means; None if it is to be asked again."""
    try:
        found = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = _Body()
    if status == 200:
        return Outcome("serves", stages=found.stages)
    if status in (429, 503):
        return None
    said = first_line(f"HTTP {status}: {found.error.message}".rstrip(": "))
    if found.error.code == "load_failed":
        return Outcome("refused", conditions.LOAD_FAILED, first_line(found.error.message))
    # What one pod says of itself is about that pod; anything else, such as what a mesh answers, any pod would say.
    kind: Kind = "unfit" if found.error.code in _OF_THE_POD else "refused"
    return Outcome(kind, conditions.ASSIGNMENT_REFUSED, said)


class Assigner:
    """Brings assignments to pods; knows what came of it.

    Args:
        key: with which tokens are made.
        on_outcome: is told of the pod once there is an outcome.
        clock: seconds that only grow.

    """

    def __init__(self, key: bytes, *, on_outcome: Callable[[Pod], None], clock: Callable[[], float]) -> None:
        self._key = key
        self.key_id = tokens.key_id(key)
        """Of the key with which a pod's token must have been made."""
        self._on_outcome = on_outcome
        self._clock = clock
        # As many connections as there are pods: one is held while a model loads.
        self._calls = Calls("assign", connections=0)
        self._outcomes: dict[str, Outcome] = {}

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """By the pod's uid."""
        return self._outcomes

    def assign(self, pod: Pod, nonce: str, document: Document, seconds: float) -> None:
        """Begins to give the pod its model, unless that is under way or has come to an end.

        nonce: with which the pod's token was made. seconds: after which it is given up.
        """
        uid = pod.metadata.uid
        if uid not in self._outcomes:
            self._calls.begin(uid, lambda: self._bring(pod, nonce, document, seconds), lambda: self._on_outcome(pod))

    def refuse(self, pod: Pod, reason: str, message: str) -> None:
        """What came of giving the pod its model is of no use: no warm pod can serve this revision, for that reason."""
        self._outcomes[pod.metadata.uid] = Outcome("refused", reason, message)

    def forget(self, uid: str) -> None:
        """What is known of a pod that is gone, or settled."""
        self._outcomes.pop(uid, None)
        self._calls.forget(uid)

    async def close(self) -> None:
        """Ends what is under way; whoever comes next begins it anew."""
        await self._calls.close()

    async def _bring(self, pod: Pod, nonce: str, document: Document, seconds: float) -> None:
        token = tokens.token(self._key, pod.metadata.namespace, pod.metadata.name, nonce)
        silence = _Silence()
        try:
            async with asyncio.timeout(seconds):
                outcome = await self._until_answered(url(pod), token, msgspec.json.encode(document), silence)
        except TimeoutError:
            said = f"its model did not load within {seconds:g} s"
            late = Outcome("refused", conditions.PROGRESS_DEADLINE_EXCEEDED, said)
            outcome = silence.outcome if silence.lasts(self._clock()) else late
        self._outcomes[pod.metadata.uid] = outcome

    async def _until_answered(self, address: str, token: str, body: bytes, silence: _Silence) -> Outcome:
        tries = 0
        while True:
            silence.trying = self._clock()
            try:
                status, answer = await self._put(address, token, body)
            except (aiohttp.ClientError, TimeoutError) as error:
                if silence.goes_on(self._clock(), error) >= REACH_SECONDS:
                    return silence.outcome
            else:
                silence.since = silence.trying = None
                if outcome := judge(status, answer):
                    return outcome
            await asyncio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1

    async def _put(self, address: str, token: str, body: bytes) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Connection": "close"}
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        request = self._calls.session.put(address, data=body, headers=headers, timeout=timeout, allow_redirects=False)
        async with request as response:
            return response.status, await beginning(response, _BODY_BYTES)


def url(pod: Pod) -> str:
    """Where a pod takes its assignment."""
    return calls.url(pod, protocol.ASSIGN_PORT, protocol.ASSIGNMENT)

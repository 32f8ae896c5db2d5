"""What a TokenService says of itself while its pods are replaced, and when: one watch, one clock."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from tokenservice.api import conditions, names
from tokenservice.api.v1alpha1 import TokenServiceStatus

from bench.environment_watch import Moments, Watching


class _Metadata(msgspec.Struct):
    generation: int = 0


class _Service(msgspec.Struct):
    metadata: _Metadata
    status: TokenServiceStatus = TokenServiceStatus()


@dataclass(frozen=True)
class State:
    """A TokenService as the watch brought it. `at`: when (monotonic clock, seconds)."""

    at: float
    generation: int
    status: TokenServiceStatus

    def reason(self, kind: str) -> str:
        """Of the condition of that type; "" without one."""
        condition = self.status.condition(kind)
        return condition.reason if condition else ""

    def true(self, kind: str) -> bool:
        condition = self.status.condition(kind)
        return condition is not None and condition.status == "True"

    @property
    def serving(self) -> bool:
        """Whether every replica asked for serves, of the newest spec."""
        return self.status.observed_generation == self.generation and self.true(conditions.READY)

    @property
    def verified(self) -> bool:
        """Whether the revision that the spec asks for counts as good, with nothing under way."""
        good = self.status.last_good_revision
        done = self.reason(conditions.PROGRESSING) == conditions.COMPLETE
        return self.serving and done and good is not None and good == self.status.update_revision

    @property
    def rolled_back(self) -> bool:
        """Whether the last good revision serves, with every replica, in place of the one asked for."""
        settled = self.reason(conditions.PROGRESSING) == conditions.ROLLED_BACK
        return self.true(conditions.ROLLED_BACK) and settled

    def __str__(self) -> str:
        texts = [f"{each.type}={each.status} {each.reason}: {each.message}" for each in self.status.conditions]
        return "; ".join(texts) or "no conditions"


@dataclass(frozen=True)
class Stage:
    """A reason of Progressing. Seconds after the edit; `end` None for the one that stays."""

    reason: str
    start: float
    end: float | None


def stages(states: Iterable[State], since: float, generation: int) -> list[Stage]:
    """What Progressing said, one after the other, of the spec of that generation."""
    found: list[Stage] = []
    for state in states:
        reason, after = state.reason(conditions.PROGRESSING), state.at - since
        if state.status.observed_generation != generation or not reason:
            continue
        if found and found[-1].reason == reason:
            continue
        if found:
            found[-1] = Stage(found[-1].reason, found[-1].start, after)
        found.append(Stage(reason, after, None))
    return found


@dataclass
class Story(Moments):
    """Every state of a TokenService, oldest first. on_state: called for each."""

    on_state: Callable[[State], None] = lambda _: None
    states: list[State] = field(default_factory=list)

    def take_service(self, kind: str, data: msgspec.Raw) -> None:
        if kind == "DELETED":
            return
        found = msgspec.json.decode(data, type=_Service)
        state = State(self.clock(), found.metadata.generation, found.status)
        self.states.append(state)
        self.on_state(state)

    def of(self, generation: int) -> Sequence[State]:
        """The states that speak of that generation of the spec."""
        return [state for state in self.states if state.status.observed_generation == generation]

    async def first(self, generation: int, wanted: Callable[[State], bool], what: str, seconds: float) -> State:
        """The first state of that generation that is `wanted`. Raises BenchError with the last one if none comes."""

        def find() -> State | None:
            return next((state for state in self.of(generation) if wanted(state)), None)

        return await self.until(find, lambda: self._not(what), seconds)

    async def now(self, wanted: Callable[[State], bool], what: str, seconds: float) -> State:
        """The last state, once that is `wanted`."""

        def find() -> State | None:
            return next((state for state in self.states[-1:] if wanted(state)), None)

        return await self.until(find, lambda: self._not(what), seconds)

    def _not(self, what: str) -> str:
        return f"the TokenService is not {what} ({self.states[-1] if self.states else 'it is not there'})"


class Following(Watching):
    """The bare client, with a watch of one TokenService."""

    @contextlib.asynccontextmanager
    async def story(self, namespace: str, name: str, on_state: Callable[[State], None]) -> AsyncGenerator[Story, None]:
        """From what is there now on."""
        story = Story(on_state=on_state)
        path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/tokenservices?fieldSelector=metadata.name={name}"
        async with self._following([(path, story.take_service)], story):
            yield story

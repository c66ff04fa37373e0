"""The contract of an environment, and the two wrappers every environment gets: a time limit and a batch axis."""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jqmix.types import EnvSpec, Seen, TimeLimitMode, TimeStep

EnvState = Any


@runtime_checkable
class DecPOMDP(Protocol):
    """One environment: pure functions of a key, a state and the joint action ``[N]``.

    ``step`` never resets by itself. What it returns after an episode's end is unspecified, but finite.
    An environment whose observations follow from less than they take may say so with ``pack(state, timestep)`` and
    ``unpack(packed) -> Seen``, for one environment: replay then keeps that. One that draws all of a step's randomness
    first may offer ``noise(key)`` and ``step_with(noise, state, actions)``: a window then draws that of its steps at
    once. One that can show itself may offer ``render(state)``, an array [H, W, 3] of uint8 (red, green, blue): films
    (`jqmix render`) then show that. It is called outside compiled programs, and may use any library.
    """

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, key: Array) -> tuple[EnvState, TimeStep]: ...

    def step(self, key: Array, state: EnvState, actions: Int[Array, " N"]) -> tuple[EnvState, TimeStep]: ...


@runtime_checkable
class BatchedDecPOMDP(Protocol):
    """E environments at once: the same functions, one key for all, actions ``[E, N]`` and a leading E everywhere.

    An environment with a form of its own for this offers it as ``batched(size)``; for the others it is a ``vmap``.
    Where that form has no ``noise`` and ``step_with``, :class:`TimeLimit` gives it them.
    """

    @property
    def spec(self) -> EnvSpec: ...

    @property
    def size(self) -> int: ...

    def reset(self, key: Array) -> tuple[EnvState, TimeStep]: ...

    def step(self, key: Array, state: EnvState, actions: Int[Array, "E N"]) -> tuple[EnvState, TimeStep]: ...

    def noise(self, key: Array) -> Any:
        """What a step with this key draws, for all environments: a window draws it for all its steps at once."""
        ...

    def step_with(self, noise: Any, state: EnvState, actions: Int[Array, "E N"]) -> tuple[EnvState, TimeStep]:
        """``step`` with its randomness given: ``step(key, …)`` is ``step_with(noise(key), …)``."""
        ...

    def pack(self, state: EnvState, timestep: TimeStep) -> Any:
        """What replay is to keep of a time step, [E, …]: all that it shows, or less that determines it."""
        ...

    def unpack(self, packed: Any) -> Seen:
        """What it showed; for any leading axes."""
        ...


def _noise(env: Any, key: Array) -> Any:
    """What a step of an environment, or of many, draws from its key; of one that does not say so, the key."""
    return env.noise(key) if hasattr(env, "step_with") else key


def _step_with(env: Any, noise: Any, state: EnvState, actions: Array) -> tuple[EnvState, TimeStep]:
    return (env.step_with if hasattr(env, "step_with") else env.step)(noise, state, actions)


class TimedState(NamedTuple):
    inner: EnvState
    t: Int[Array, "*E"]


class TimeLimit:
    """Ends an episode after ``limit`` steps, as a termination (discount 0) or a cut that bootstraps.

    Elementwise, so it does for one environment as for a batch.
    """

    def __init__(self, env: Any, limit: int, mode: TimeLimitMode):
        self.inner = env
        self.spec = env.spec._replace(episode_limit=limit, time_limit=mode)

    @property
    def size(self) -> int:
        """E, where it limits a batch."""
        return self.inner.size

    def batched(self, size: int) -> "TimeLimit":
        """E of one environment, in its own form for many if it has one."""
        inner = self.inner.batched(size) if hasattr(self.inner, "batched") else Batched(self.inner, size)
        return TimeLimit(inner, self.spec.episode_limit, self.spec.time_limit)

    def pack(self, state: TimedState, timestep: TimeStep) -> Any:
        return self.inner.pack(state.inner, timestep)

    def unpack(self, packed: Any) -> Seen:
        return self.inner.unpack(packed)

    def reset(self, key: Array) -> tuple[EnvState, TimeStep]:
        inner, timestep = self.inner.reset(key)
        return TimedState(inner, jnp.zeros(jnp.shape(timestep.last), jnp.int32)), timestep

    def step(self, key: Array, state: EnvState, actions: Int[Array, "*E N"]) -> tuple[EnvState, TimeStep]:
        return self._limited(state.t + 1, *self.inner.step(key, state.inner, actions))

    def noise(self, key: Array) -> Any:
        return _noise(self.inner, key)

    def step_with(self, noise: Any, state: EnvState, actions: Int[Array, "*E N"]) -> tuple[EnvState, TimeStep]:
        return self._limited(state.t + 1, *_step_with(self.inner, noise, state.inner, actions))

    def _limited(self, t: Int[Array, "*E"], inner: EnvState, timestep: TimeStep) -> tuple[EnvState, TimeStep]:
        over = t >= self.spec.episode_limit
        discount = timestep.discount
        if self.spec.time_limit == "terminate":
            discount = jnp.where(over, 0.0, discount)
        return TimedState(inner, t), timestep._replace(discount=discount, last=timestep.last | over)


class Batched:
    """E independent copies of an ordinary environment, by ``vmap``."""

    def __init__(self, env: DecPOMDP, size: int):
        self.inner = env
        self.size = size
        self.spec = env.spec

    def reset(self, key: Array) -> tuple[EnvState, TimeStep]:
        return jax.vmap(self.inner.reset)(jax.random.split(key, self.size))

    def step(self, key: Array, state: EnvState, actions: Int[Array, "E N"]) -> tuple[EnvState, TimeStep]:
        return self.step_with(self.noise(key), state, actions)

    def noise(self, key: Array) -> Any:
        return jax.vmap(partial(_noise, self.inner))(jax.random.split(key, self.size))

    def step_with(self, noise: Any, state: EnvState, actions: Int[Array, "E N"]) -> tuple[EnvState, TimeStep]:
        return jax.vmap(partial(_step_with, self.inner))(noise, state, actions)

    def pack(self, state: EnvState, timestep: TimeStep) -> Any:
        if hasattr(self.inner, "pack"):
            return jax.vmap(self.inner.pack)(state, timestep)  # type: ignore[attr-defined]
        return Seen(timestep.obs, timestep.state, timestep.avail)

    def unpack(self, packed: Any) -> Seen:
        if not hasattr(self.inner, "pack"):
            return packed
        unpack = self.inner.unpack  # type: ignore[attr-defined]
        one = jax.eval_shape(lambda key: self.inner.pack(*self.inner.reset(key)), jax.random.key(0))  # type: ignore[attr-defined]
        for _ in range(jax.tree.leaves(packed)[0].ndim - jax.tree.leaves(one)[0].ndim):
            unpack = jax.vmap(unpack)
        return unpack(packed)

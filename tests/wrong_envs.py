"""Environments with a mistake each: what a user may get wrong. ``MISTAKES`` says what the answer must name."""

import asyncio
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jqmix import Entities, EnvSpec, TimeStep, make_env
from jqmix.types import Seen


class Corridor:
    """Right: two agents walk along five cells, and are paid where both have walked to the end."""

    spec = EnvSpec("corridor", 2, 3, 5, 6, 10, reward_range=(0.0, 1.0))
    changed: ClassVar = {}  # fields of the time step that a mistake changes

    def emit(self, cells, t, reward, ended):
        seen = jax.nn.one_hot(cells, 5)
        fields = {
            "obs": seen,
            "state": jnp.append(seen.sum(0), t),
            "avail": jnp.ones((2, 3), bool),
            "reward": reward,
            "discount": 1.0 - ended,
            "last": ended,
            "info": {"won": ended},
        }
        return TimeStep(**fields | self.changed)

    def reset(self, key):
        cells = jax.random.randint(key, (2,), 0, 2)
        return {"cells": cells, "t": jnp.int32(0)}, self.emit(cells, 0, 0.0, jnp.bool_(False))

    def step(self, key, state, actions):
        cells = jnp.clip(state["cells"] + actions - 1, 0, 4)
        ended = jnp.all(cells == 4)
        return {"cells": cells, "t": state["t"] + 1}, self.emit(cells, state["t"] + 1, 1.0 * ended, ended)


right = Corridor()  # an environment, not what builds one


def limited():
    """Right: one of ours, with its time limit."""
    return make_env("two_step_game", episode_limit=2)


class Plain(Corridor):
    """Right: rewards, ends and a state that begin as Python's or NumPy's numbers, and more in info than is read."""

    def reset(self, key):
        return 0, self._emit()

    def step(self, key, state, actions):
        return state + 1, self._emit()

    def _emit(self):
        ts = self.emit(jnp.zeros(2, jnp.int32), 0, 1, jnp.bool_(False))
        return ts._replace(obs=np.ones((2, 5)), last=False, info={"other": {"more": jnp.ones(7)}})


class Bytes(Corridor):
    """Right: whole numbers to see, which replay keeps in as few bits."""

    def emit(self, *args):
        ts = super().emit(*args)
        return ts._replace(obs=ts.obs.astype(jnp.uint8), state=ts.state.astype(jnp.int32), reward=jnp.int32(0))


class MaskGone(Corridor):
    """Right: nobody can act when it is over."""

    def step(self, key, state, actions):
        state, ts = super().step(key, state, actions)
        return state, ts._replace(avail=ts.avail & ~ts.last)


RIGHT = ["Corridor", "limited", "Plain", "Bytes", "MaskGone"]

MISTAKES = {}  # factory -> what the answer says, besides this file's name


def mistake(*says):
    def note(factory):
        MISTAKES[factory.__name__] = says
        return factory

    return note


def wrong_field(name, value, *says):
    """Corridor with another value in a field of its time steps."""
    globals()[name] = mistake(*says)(type(name, (Corridor,), {"changed": value}))


def wrong_spec(name, value, *says):
    """Corridor with another value in its spec."""
    globals()[name] = mistake(*says)(type(name, (Corridor,), {"spec": Corridor.spec._replace(**value)}))


# The factory

MISTAKES["right"] = ("cannot be called",)
MISTAKES["nowhere"] = ("nowhere", "missing")
MISTAKES["spec_of_nothing"] = ("missing",)


@mistake("raised KeyError: 'map'")
def raises():
    return {}["map"]


@mistake("raised SystemExit: 3")
def leaves():
    raise SystemExit(3)


@mistake("raised RecursionError")
def for_ever():
    return for_ever()


@mistake("raised ValueError: two", "wrong_envs.py")
def in_lines():
    raise ValueError("\n  two\nlines")


@mistake("env.kwargs", "size")
def needs(size):
    return Corridor()


@mistake("nothing", "returns NoneType", "which has no spec")
def nothing():
    Corridor()


@mistake("returns tuple", "which has no spec")
def several():
    return Corridor(), None


@mistake("returns coroutine", "which has no spec")
def later():
    async def build():
        return Corridor()

    coroutine = build()
    coroutine.close()
    return coroutine


@mistake("reset", "takes (self, key)")
def not_yet():
    return Corridor


@mistake("raised NotImplementedError")
class Abstract(Corridor):
    def __init__(self):
        raise NotImplementedError


# The spec


@mistake("returns NoSpec", "which has no spec")
class NoSpec:
    reset, step = Corridor.reset, Corridor.step


@mistake("spec is of type dict")
class DictSpec(Corridor):
    spec = Corridor.spec._asdict()


@mistake("SpecRaises", "raised ZeroDivisionError")
class SpecRaises(Corridor):
    @property
    def spec(self):
        return 1 / 0


@mistake("spec is of type method")
class SpecMethod(Corridor):
    def spec(self):
        return Corridor.spec


wrong_spec("NumpyInt", {"n_agents": np.int64(2)}, "spec.n_agents", "a Python int", "int64")
wrong_spec("ArrayInt", {"n_actions": jnp.int32(3)}, "spec.n_actions", "a Python int")
wrong_spec("NoneSize", {"obs_size": None}, "spec.obs_size is None", "a Python int")
wrong_spec("ZeroState", {"state_size": 0}, "spec.state_size is 0", "from 1")
wrong_spec("NegativeAgents", {"n_agents": -2}, "spec.n_agents is -2")
wrong_spec("BoolAgents", {"n_agents": True}, "spec.n_agents is True")
wrong_spec("FloatLimit", {"episode_limit": 10.0}, "spec.episode_limit is 10.0")
wrong_spec("OneName", {"action_names": ("left",)}, "spec.action_names is ('left',)", "for each action, or empty")
wrong_spec("ListedEntities", {"entities": [(1, 1)]}, "spec.entities is", "jqmix.Entities")
wrong_spec(
    "TooManyEntities", {"entities": Entities(((99, 1),), targets=0)}, "spec.entities is Entities(groups=((99, 1),)"
)
wrong_spec("NumberedNames", {"action_names": (0, 1, 2)}, "spec.action_names")
wrong_spec("NoLimit", {"episode_limit": None}, "spec.episode_limit is None")
wrong_spec("EndlessLimit", {"episode_limit": 2**40}, "spec.episode_limit is 1099511627776")
wrong_spec("ManyActions", {"n_actions": 10**6}, "spec.n_actions is 1000000", "32768")
wrong_spec("TextSize", {"obs_size": "5"}, "spec.obs_size is '5'", "a Python int")
wrong_spec("ShapeSize", {"obs_size": (5,)}, "spec.obs_size is (5,)")
wrong_spec("NoName", {"name": None}, "spec.name is None", "text")
wrong_spec("LinesName", {"name": "a\nb"}, "spec.name", "printable")
wrong_spec("PathName", {"name": "../../corridor"}, "spec.name", "not a path")
wrong_spec("SomeLimit", {"time_limit": "truncate"}, "spec.time_limit is 'truncate'", "bootstrap or terminate")
wrong_spec("TurnedRange", {"reward_range": (1.0, 0.0)}, "spec.reward_range", "low ≤ high")
wrong_spec("OneRange", {"reward_range": 1.0}, "spec.reward_range", "two numbers")
wrong_spec("NaNRange", {"reward_range": (float("nan"), 1.0)}, "spec.reward_range")
wrong_spec("OtherAgents", {"n_agents": 3}, "obs is float32[2, 5]", "float[3, 5]", "spec.n_agents")
wrong_spec("OtherActions", {"n_actions": 4}, "avail is bool[2, 3]", "bool[2, 4]", "spec.n_actions")
wrong_spec("OtherObs", {"obs_size": 6}, "obs is float32[2, 5]", "float[2, 6]", "spec.obs_size")
wrong_spec("OtherState", {"state_size": 5}, "state is float32[6]", "float[5]", "spec.state_size")


# What reset and step return

wrong_field("WideObs", {"obs": jnp.ones((2, 6))}, "obs is float32[2, 6]", "float[2, 5]")
wrong_field("FlatObs", {"obs": jnp.ones(10)}, "obs is float32[10]", "float[2, 5]")
wrong_field("DictObs", {"obs": {"a": jnp.ones(5), "b": jnp.ones(5)}}, "obs is a dict", "float[2, 5]")
wrong_field("ListObs", {"obs": [jnp.ones(5), jnp.ones(5)]}, "obs is a list", "float[2, 5]")
wrong_field("TextObs", {"obs": "far"}, "obs is a str", "float[2, 5]")
wrong_field("ComplexObs", {"obs": jnp.ones((2, 5), jnp.complex64)}, "obs is complex64[2, 5]", "float[2, 5]")
wrong_field("KeyObs", {"obs": jax.random.split(jax.random.key(0), (2, 5))}, "obs is key<fry>[2, 5]")
wrong_field("NarrowState", {"state": jnp.ones(5)}, "state is float32[5]", "float[6]")
wrong_field("AgentsState", {"state": jnp.ones((2, 6))}, "state is float32[2, 6]", "float[6]")
wrong_field("NoState", {"state": None}, "state is None", "float[6]")
wrong_field("WideAvail", {"avail": jnp.ones((2, 4), bool)}, "avail is bool[2, 4]", "bool[2, 3]")
wrong_field("OneAvail", {"avail": jnp.ones(3, bool)}, "avail is bool[3]", "bool[2, 3]")
wrong_field("FloatAvail", {"avail": jnp.ones((2, 3))}, "avail is float32[2, 3]", "bool[2, 3]")
wrong_field("NoAvail", {"avail": None}, "avail is None", "bool[2, 3]")
wrong_field("AgentsReward", {"reward": jnp.ones(2)}, "reward is float32[2]", "float[]")
wrong_field("DictReward", {"reward": {"a": 1.0, "b": 1.0}}, "reward is a dict", "float[]")
wrong_field("NoReward", {"reward": None}, "reward is None")
wrong_field("LongReward", {"reward": jnp.ones(1)}, "reward is float32[1]", "float[]")
wrong_field("AgentsDiscount", {"discount": jnp.ones(2)}, "discount is float32[2]", "float[]")
wrong_field("NoDiscount", {"discount": None}, "discount is None")
wrong_field("IntLast", {"last": jnp.int32(0)}, "last is int32[]", "bool[]")
wrong_field("FloatLast", {"last": 0.0}, "last is float32[]", "bool[]")
wrong_field("AgentsLast", {"last": jnp.zeros(2, bool)}, "last is bool[2]", "bool[]")
wrong_field("NoInfo", {"info": None}, "info is None", "dict")
wrong_field("TupleInfo", {"info": ()}, "info is a tuple", "dict")
wrong_field("TextInfo", {"info": {"map": "3m"}}, "info['map'] is a str", "array")
wrong_field("AgentsWon", {"info": {"won": jnp.zeros(2, bool)}}, "info['won'] is bool[2]", "float[]")
wrong_field("NoScore", {"info": {"score": None}}, "info['score'] is None", "float[]")
wrong_field("FewFields", {"extra": 1}, "raised TypeError", "extra")


@mistake("reset", "raised ValueError: no map", "wrong_envs.py")
class ResetRaises(Corridor):
    def reset(self, key):
        raise ValueError("no map")


@mistake("step", "raised AttributeError", "cellz")
class StepRaises(Corridor):
    def step(self, key, state, actions):
        return state.cellz


@mistake("reset", "raised RuntimeError")
class Unspeakable(Corridor):
    def reset(self, key):
        class Silent(RuntimeError):
            def __str__(self):
                raise self

        Silent.__name__ = "RuntimeError"
        raise Silent


@mistake("step is missing", "step(key, state, actions)")
class NoStep:
    spec, emit, changed, reset = Corridor.spec, Corridor.emit, {}, Corridor.reset


@mistake("reset is 3", "reset(key)")
class NumberReset(Corridor):
    reset = 3


@mistake("reset", "takes ()", "reset(key)")
class NoKey(Corridor):
    def reset(self):
        return super().reset(jax.random.key(0))


@mistake("step", "takes (state, actions)", "step(key, state, actions)")
class StepNoKey(Corridor):
    def step(self, state, actions):
        return super().step(None, state, actions)


@mistake("step", "params", "step(key, state, actions)")
class Parameters(Corridor):
    def step(self, key, state, actions, params):
        return super().step(key, state, actions)


@mistake("step", "raised TypeError")
class OtherOrder(Corridor):
    def step(self, state, key, actions):
        return super().step(key, state, actions)


@mistake("reset", "returns None", "(state, jqmix.TimeStep)")
class NoReturn(Corridor):
    def reset(self, key):
        super().reset(key)


@mistake("reset", "returns a TimeStep", "(state, jqmix.TimeStep)")
class TimeStepAlone(Corridor):
    def reset(self, key):
        return super().reset(key)[1]


@mistake("reset", "returns (a TimeStep, a dict)")
class Turned(Corridor):
    def reset(self, key):
        return super().reset(key)[::-1]


@mistake("step", "returns (float32[2, 5], a dict, float32[], bool[], a dict)")
class Gym(Corridor):
    def step(self, key, state, actions):
        state, ts = super().step(key, state, actions)
        return ts.obs, state, ts.reward, ts.last, ts.info


@mistake("reset", "returns (a dict, a dict)")
class DictTimeStep(Corridor):
    def reset(self, key):
        state, ts = super().reset(key)
        return state, ts._asdict()


@mistake("step", "returns a coroutine")
class Async(Corridor):
    def step(self, key, state, actions):
        async def later():
            return None

        coroutine = later()
        coroutine.close()
        assert asyncio.iscoroutine(coroutine)
        return coroutine


class Position:  # not a pytree
    def __init__(self, cells):
        self.cells = cells


@mistake("env state is a Position", "pytree")
class ObjectState(Corridor):
    def reset(self, key):
        state, ts = super().reset(key)
        return Position(state["cells"]), ts


@mistake("env state['map'] is a str")
class TextState(Corridor):
    def reset(self, key):
        state, ts = super().reset(key)
        return state | {"map": "3m"}, ts


class Changed(Corridor):
    """Its state is another after a step."""

    def step(self, key, state, actions):
        after, ts = super().step(key, state, actions)
        return self.change(after), ts


@mistake("env state['t'] is int32[] in reset and float32[] in step")
class StateDtype(Changed):
    def change(self, state):
        return state | {"t": state["t"].astype(jnp.float32)}


@mistake("env state['t'] is int32[] in reset and float32[] in step")
class StateWeakly(Changed):
    def change(self, state):
        return state | {"t": state["t"] + 0.5}


@mistake("env state['cells'] is int32[2] in reset and int32[1, 2] in step")
class StateShape(Changed):
    def change(self, state):
        return state | {"cells": state["cells"][None]}


@mistake("env state['more'] is missing in reset and float32[3] in step")
class StateGrows(Changed):
    def change(self, state):
        return state | {"more": jnp.ones(3)}


@mistake("env state['t'] is int32[] in reset and missing in step")
class StateNone(Changed):
    def change(self, state):
        return state | {"t": None}


@mistake("different structures")
class StateKind(Corridor):
    def reset(self, key):
        return [jnp.zeros(3)], super().reset(key)[1]

    def step(self, key, state, actions):
        return (state[0],), super().reset(key)[1]


@mistake("TimeStep.obs is int32[2, 5] in reset and float32[2, 5] in step")
class ObsDtype(Corridor):
    def reset(self, key):
        state, ts = super().reset(key)
        return state, ts._replace(obs=ts.obs.astype(jnp.int32))


@mistake("obs is float32[2, 4]", "float[2, 5]", "step")
class StepObs(Corridor):
    def step(self, key, state, actions):
        state, ts = super().step(key, state, actions)
        return state, ts._replace(obs=ts.obs[:, 1:])


@mistake("step", "raised TracerBoolConversionError")
class PythonIf(Corridor):
    def step(self, key, state, actions):
        if state["t"] > 3:
            state = state | {"t": 0}
        return super().step(key, state, actions)


@mistake("step", "raised TracerArrayConversionError")
class Numpy(Corridor):
    def step(self, key, state, actions):
        return super().step(key, state | {"cells": np.clip(np.asarray(state["cells"]), 0, 4)}, actions)


@mistake("step", "raised TracerIntegerConversionError")
class PythonRange(Corridor):
    def step(self, key, state, actions):
        return super().step(key, state, jnp.stack([jnp.int32(0) for _ in range(actions[0])]))


@mistake("step", "raised UnexpectedTracerError")
class Remembers(Corridor):
    def reset(self, key):
        state, ts = super().reset(key)
        self.begin = state["cells"]
        return state, ts

    def step(self, key, state, actions):
        return super().step(key, state | {"cells": state["cells"] + self.begin}, actions)


@mistake("step", "raised TypeError", "incompatible shapes")
class Broadcast(Corridor):
    def step(self, key, state, actions):
        return super().step(key, state | {"cells": state["cells"] + jnp.ones(3, jnp.int32)}, actions)


# Its own forms


@mistake("unpack is missing", "unpack(packed)")
class PacksOnly(Corridor):
    def pack(self, state, timestep):
        return state


class Packs(Corridor):
    def pack(self, state, timestep):
        return state

    def unpack(self, packed):
        ts = self.emit(packed["cells"], packed["t"], 0.0, jnp.bool_(False))
        return Seen(ts.obs, ts.state, ts.avail)


RIGHT.append("Packs")


@mistake("unpack", "avail is bool[2, 2]", "bool[2, 3]")
class UnpackShape(Packs):
    def unpack(self, packed):
        return super().unpack(packed)._replace(avail=jnp.ones((2, 2), bool))


@mistake("unpack", "returns a TimeStep", "Seen")
class UnpackTimeStep(Packs):
    def unpack(self, packed):
        return self.emit(packed["cells"], packed["t"], 0.0, jnp.bool_(False))


@mistake("unpack", "returns a dict", "Seen")
class UnpackKind(Packs):
    def unpack(self, packed):
        return packed


@mistake("pack['t'] is int32[] in reset and missing in step")
class PackGrows(Packs):
    def pack(self, state, timestep):
        return state if timestep.info else state | {"t": None}

    def step(self, key, state, actions):
        state, ts = super().step(key, state, actions)
        return state, ts._replace(info={})


@mistake("noise is missing", "noise(key)")
class NoNoise(Corridor):
    def step_with(self, noise, state, actions):
        return self.step(noise, state, actions)


@mistake("step_with", "obs is float32[2, 4]")
class StepWithShape(Corridor):
    def noise(self, key):
        return key

    def step_with(self, noise, state, actions):
        state, ts = self.step(noise, state, actions)
        return state, ts._replace(obs=ts.obs[:, 1:])


@mistake("batched", "raised ValueError: too many")
class BatchedRaises(Corridor):
    def batched(self, size):
        raise ValueError("too many")


@mistake("batched", "size is None")
class BatchedAlone(Corridor):
    def batched(self, size):
        return self


@mistake("obs is float32[2, 5]", "[E, spec.n_agents, spec.obs_size]")
class BatchedShape(Packs):
    def batched(self, size):
        self.size = size
        return self


# What only playing shows


class Ends(Corridor):
    """Its time steps change once an agent has come to cell 3."""

    def step(self, key, state, actions):
        state, ts = super().step(key, state, actions)
        return state, self.change(ts, jnp.any(state["cells"] == 3))


@mistake("obs holds NaN or infinity in step")
class NaNObs(Ends):
    def change(self, ts, there):
        return ts._replace(obs=jnp.where(there, jnp.nan, ts.obs))


@mistake("state holds NaN or infinity at a reset")
class InfiniteState(Corridor):
    def reset(self, key):
        state, ts = super().reset(key)
        return state, ts._replace(state=ts.state / 0)


@mistake("reward is NaN or infinite in step")
class NaNReward(Ends):
    def change(self, ts, there):
        return ts._replace(reward=jnp.where(there, jnp.nan, 0.0))


@mistake("reward is NaN or infinite in step", "after an episode's end")
class NaNAfterwards(Corridor):
    def step(self, key, state, actions):
        over = jnp.all(state["cells"] == 4)
        state, ts = super().step(key, state, actions)
        return state, ts._replace(reward=jnp.where(over, jnp.nan, ts.reward))


@mistake("info['score'] is NaN or infinite in step")
class NaNScore(Ends):
    def change(self, ts, there):
        return ts._replace(info={"score": jnp.where(there, jnp.nan, 0.0)})


@mistake("avail leaves an agent no action in step")
class EmptyMask(Ends):
    def change(self, ts, there):
        return ts._replace(avail=ts.avail.at[1].set(~there))


@mistake("avail leaves an agent no action at a reset")
class EmptyAtReset(Corridor):
    changed: ClassVar = {"avail": jnp.zeros((2, 3), bool)}


@mistake("reward is -2", "spec.reward_range is [0, 1]")
class Punishes(Ends):
    def change(self, ts, there):
        return ts._replace(reward=jnp.where(there, -2.0, 0.0))


@mistake("reward is 100", "spec.reward_range is [0, 1]")
class Overpays(Ends):
    def change(self, ts, there):
        return ts._replace(reward=jnp.where(there, 100.0, 0.0))


@mistake("discount is not in [0, 1]")
class Inflates(Ends):
    def change(self, ts, there):
        return ts._replace(discount=jnp.where(there, 1.5, ts.discount))


@mistake("discount is not in [0, 1]")
class NaNDiscount(Ends):
    def change(self, ts, there):
        return ts._replace(discount=jnp.where(there, jnp.nan, ts.discount))


@mistake("discount is 0 and last is false")
class EndsUnsaid(Ends):
    def change(self, ts, there):
        return ts._replace(discount=jnp.where(there, 0.0, 1.0))


@mistake("last is true at a reset")
class OverAtReset(Corridor):
    def reset(self, key):
        state, ts = super().reset(key)
        return state, ts._replace(last=jnp.bool_(True))


@mistake("key and state do not decide what reset returns")
class NumpyRandom(Corridor):
    random = np.random.default_rng()

    def reset(self, key):
        state, ts = super().reset(key)
        return state, ts._replace(state=ts.state + self.random.random())


@mistake("key and state do not decide what step returns")
class Counts(Corridor):
    count = 0

    def step(self, key, state, actions):
        self.count += 1
        state, ts = super().step(key, state, actions)
        return state, ts._replace(state=ts.state + self.count)


@mistake("unpack does not give back what pack was given")
class UnpackOther(Packs):
    def unpack(self, packed):
        return super().unpack(packed | {"cells": packed["cells"] + 1})


@mistake("step_with(noise(key), …) is not what step(key, …) gives")
class OtherNoise(Corridor):
    def noise(self, key):
        return key

    def step_with(self, noise, state, actions):
        return self.step(noise, state, actions - 1)


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


@mistake("env state.left is float32[] in reset and int32[] in step")
class TupleState(Corridor):
    def reset(self, key):
        return Pair(jnp.zeros(()), jnp.zeros(())), super().reset(key)[1]

    def step(self, key, state, actions):
        return Pair(jnp.int32(1), state.right), super().reset(key)[1]

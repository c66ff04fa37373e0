"""The conformance check of an environment: what it says of itself, what it returns, and how it plays.

``check_interface`` traces and computes nothing, so that :func:`jqmix.make_env` can afford it for every environment
that is not ours. ``check_env`` also plays at random. Whatever is wrong is one line that names the field, what is
expected and what was given, and whose code it is.

Numbers may have any real dtype, as replay keeps them as they come, and Python numbers are as good as arrays: training
is compiled once, ahead, so that a weak type costs nothing. Masks and ends must be ``bool``.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from jqmix.envs.base import Batched, TimeLimit
from jqmix.envs.errors import EnvError
from jqmix.kernels.platform import quick_to_compile
from jqmix.plugins import first_line, located, raised, where
from jqmix.types import Entities, EnvSpec, Seen, TimeStep

STEPS = 256  # of random play
ROLLOUTS = 8  # in parallel, each begun by a reset of its own
TOLERANCE = 1e-5  # of a reward at the edge of its range, relative
MOST = 2**31 - 1  # counters are int32
MOST_ACTIONS = 2**15  # replay keeps actions in int16

# Fields of a TimeStep -> the spec's sizes that are their shape, and what they hold.
FIELDS: dict[str, tuple[tuple[str, ...], str]] = {
    "obs": (("n_agents", "obs_size"), "float"),
    "state": (("state_size",), "float"),
    "avail": (("n_agents", "n_actions"), "bool"),
    "reward": ((), "float"),
    "discount": ((), "float"),
    "last": ((), "bool"),
}
# What the trainer reads of ``info``, where it is there.
INFOS = ("won", "score")


def check_env(env: Any, *, steps: int = STEPS, seed: int = 0) -> None:
    """Checks one environment (not a batch): its spec, its shapes and dtypes, then ``steps`` steps of random play.

    The play is that of training: eight copies at once, in the environment's own form for many if it has one, and
    with what it draws, packs and unpacks by itself. Where it has a ``render``, that is tried, too. Raises
    ``EnvError``, one line, for the first thing that is wrong.
    """
    check_interface(env)
    if hasattr(_users(env), "batched"):
        check_interface(env, ROLLOUTS)
    limited = TimeLimit(_users(env), env.spec.episode_limit, env.spec.time_limit).batched(ROLLOUTS)
    with jax.disable_jit(False), _blaming(env, "step"):
        found = jax.device_get(_played(limited, steps, seed))
    _report(env, found)
    if hasattr(_users(env), "render"):
        rendered(env, _users(env).reset(jax.random.key(seed))[0])


def rendered(env: Any, state: Any) -> UInt8[np.ndarray, "H W 3"]:
    """The picture that an environment draws of a state by its ``render``. Raises ``EnvError``, one line, if it is
    none."""
    env = _users(env)
    _check_signature(env, "render")
    with _blaming(env, "render"):
        picture = np.asarray(env.render(state))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        given = f"{picture.dtype}{list(picture.shape)}"
        raise _wrong(env, "render", f"returns {given}; it must be uint8[H, W, 3], red, green and blue from 0 to 255")
    return picture


def check_interface(env: Any, batch: int | None = None) -> None:
    """Checks the spec, and by tracing what ``reset``, ``step`` and the optional methods return.

    With ``batch``, an environment that has a form of its own for many (``batched``) is checked in that form, as it is
    the one that is played. Raises ``EnvError``, one line.
    """
    env = _users(env)
    _check_spec(env)
    if batch is None or not hasattr(env, "batched"):
        _check_methods(env, ())
        return
    with _blaming(env, "batched"):
        form = env.batched(batch)
    if getattr(form, "size", None) != batch:
        raise _wrong(
            env, "batched", f"size is {getattr(form, 'size', None)!r}; what batched({batch}) gives has {batch}"
        )
    _check_spec(form)
    _check_methods(form, (batch,))


# Whose code it is.


def _users(env: Any) -> Any:
    """The environment below our own wrappers."""
    while isinstance(env, TimeLimit | Batched):
        env = env.inner
    return env


def _who(env: Any, method: str | None = None) -> str:
    """``Corridor.reset (corridor.py:31)``."""
    env = _users(env)
    name = getattr(env, "__name__", type(env).__name__)
    written = [inspect.getattr_static(env, m, None) for m in (method or "", "reset", "step")]
    places = [where(x) for x in (written[0], env, *written[1:]) if x is not None]
    place = next(filter(None, places), "")
    return located(f"{name}.{method}" if method else name, place)


def _wrong(env: Any, method: str | None, what: str) -> EnvError:
    return EnvError(f"{_who(env, method)}: {what}")


class _blaming:
    """What the user's code raises within becomes an ``EnvError`` that shows the user's line."""

    def __init__(self, env: Any, method: str):
        self.env, self.method = env, method

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception | SystemExit) and not isinstance(error, EnvError):
            raise _wrong(self.env, self.method, f"raised {raised(error)}") from None


# The spec.


def _check_spec(env: Any) -> None:
    with _blaming(env, "spec"):
        spec: Any = getattr(env, "spec", None)
    if not set(EnvSpec._fields) <= set(getattr(spec, "_fields", ())):
        given = "missing" if spec is None else f"of type {type(spec).__name__}"
        raise _wrong(env, None, f"spec is {given}; an environment has a spec, which is a jqmix.EnvSpec")
    if not isinstance(spec.name, str) or not spec.name.strip() or not spec.name.isprintable() or len(spec.name) > 100:
        raise _wrong_spec(env, "name", spec.name, "text of 1 to 100 printable characters")
    if ".." in spec.name.split("/") or spec.name.startswith("/"):  # run directories are named after it
        raise _wrong_spec(env, "name", spec.name, "a name, not a path")
    for size in ("n_agents", "n_actions", "obs_size", "state_size", "episode_limit"):
        value, most = getattr(spec, size), MOST_ACTIONS if size == "n_actions" else MOST
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise _wrong_spec(env, size, value, f"a Python int from 1 to {most}")
    if spec.time_limit not in ("bootstrap", "terminate"):
        raise _wrong_spec(env, "time_limit", spec.time_limit, "bootstrap or terminate")
    if not _is_range(spec.reward_range):
        raise _wrong_spec(env, "reward_range", spec.reward_range, "two numbers, low ≤ high")
    if not _are_action_names(spec.action_names, spec.n_actions):
        allowed = f"{spec.n_actions} printable texts of at most 100 characters, one for each action, or empty"
        raise _wrong_spec(env, "action_names", spec.action_names, allowed)
    _check_entities(env, spec)


def _check_entities(env: Any, spec: Any) -> None:
    given = spec.entities
    if given is not None and not (isinstance(given, Entities) and given.fit(spec.obs_size, spec.n_actions)):
        allowed = (
            "None or jqmix.Entities: groups, a tuple of (how many, numbers of each) that leaves an agent numbers of "
            "its own; and targets, which of them the last actions, but not all, are aimed at"
        )
        raise _wrong_spec(env, "entities", given, allowed)


def _are_action_names(names: Any, n_actions: int) -> bool:
    if not isinstance(names, tuple) or len(names) not in (0, n_actions):
        return False
    return all(isinstance(name, str) and name.isprintable() and len(name) <= 100 for name in names)


def _wrong_spec(env: Any, field: str, value: Any, allowed: str) -> EnvError:
    return _wrong(env, None, f"spec.{field} is {_shown(value)}; it must be {allowed}")


def _shown(value: Any) -> str:
    """A value with its type, as ``3`` may be an int or an array."""
    return "None" if value is None else first_line(f"{value!r} ({type(value).__name__})")


def _is_range(value: Any) -> bool:
    try:
        low, high = value
    except (TypeError, ValueError):
        return False
    return all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in (low, high)) and low <= high


# What methods take and return.

# Method -> the parameters that it is called with.
PARAMETERS = {
    "reset": ("key",),
    "step": ("key", "state", "actions"),
    "noise": ("key",),
    "step_with": ("noise", "state", "actions"),
    "pack": ("state", "timestep"),
    "unpack": ("packed",),
    "render": ("state",),
}


class _Outcome(NamedTuple):
    """What ``reset`` or ``step`` returns; arrays as their shapes and dtypes."""

    state: Any
    timestep: Any


def _check_methods(env: Any, lead: tuple[int, ...]) -> None:
    """``lead``: nothing for one environment, else its number E, which is the first axis of everything."""
    needed = ["reset", "step", *(["pack", "unpack"] if lead or hasattr(env, "pack") else [])]
    needed += ["noise", "step_with"] if hasattr(env, "step_with") else []
    for method in needed:
        _check_signature(env, method)
    key = jax.eval_shape(lambda: jax.random.key(0))
    actions = jax.ShapeDtypeStruct((*lead, env.spec.n_agents), jnp.int32)
    reset = _outcome(env, "reset", lead, key)
    step = _outcome(env, "step", lead, key, reset.state, actions)
    _check_same(env, "env state", reset.state, step.state)
    _check_same(env, "TimeStep", _seen(reset.timestep), _seen(step.timestep))
    if "step_with" in needed:
        noise = _traced(env, "noise", lead, key)
        other = _outcome(env, "step_with", lead, noise, reset.state, actions)
        _check_same(env, "env state", step.state, other.state, ("step", "step_with"))
    if "pack" in needed:
        packed = _traced(env, "pack", lead, *reset)
        _check_same(env, "pack", packed, _traced(env, "pack", lead, *step))
        seen = _traced(env, "unpack", lead, packed)
        if getattr(seen, "_fields", ()) != Seen._fields:
            raise _wrong(env, "unpack", f"returns {_kind(seen)}; it must return a jqmix.types.Seen")
        _check_seen(env, "unpack", seen, lead)


def _check_signature(env: Any, method: str) -> None:
    function = getattr(env, method, None)
    call = f"{method}({', '.join(PARAMETERS[method])})"
    if not callable(function):
        raise _wrong(env, None, f"{method} is {'missing' if function is None else _shown(function)}; it must be {call}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables have none to show
        return
    try:
        signature.bind(*PARAMETERS[method])
    except TypeError:
        raise _wrong(env, method, f"takes {signature}; it is called as {call}") from None


def _traced(env: Any, method: str, lead: tuple[int, ...], *args: Any) -> Any:
    """What a method returns, arrays and numbers in it as their shapes and dtypes.

    Traced as in training: under ``vmap``, unless it is for many environments by itself. That also finds arrays which
    an earlier call has left in the object.
    """
    function, kept = getattr(env, method), []

    def run(*args: Any) -> None:
        kept.append(jax.tree.map(_abstract, function(*args)))

    if not lead:
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype, weak_type=x.weak_type), args)
    with _blaming(env, method):
        jax.eval_shape(run if lead else jax.vmap(run), *args)
    return kept[0]


def _abstract(leaf: Any) -> Any:
    """An array's or number's shape and dtype; anything else as it is."""
    try:
        kind = jax.typeof(leaf)
    except TypeError:
        return leaf
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=getattr(kind, "weak_type", False))


def _outcome(env: Any, method: str, lead: tuple[int, ...], *args: Any) -> _Outcome:
    out = _traced(env, method, lead, *args)
    if not isinstance(out, tuple | list) or len(out) != 2 or not _has_fields(out[1]):
        many = isinstance(out, tuple | list) and not hasattr(out, "_fields")
        given = f"({', '.join(map(_kind, out))})" if many else _kind(out)
        raise _wrong(env, method, f"returns {given}; it must return (state, jqmix.TimeStep)")
    state, timestep = out
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        _check_array(env, method, f"env state{jax.tree_util.keystr(path)}", leaf)
    _check_seen(env, method, timestep, lead)
    for field in ("reward", "discount", "last"):
        _check_field(env, method, field, getattr(timestep, field), lead)
    _check_info(env, method, timestep.info, lead)
    return _Outcome(state, timestep)


def _has_fields(timestep: Any) -> bool:
    return set(TimeStep._fields) <= set(getattr(timestep, "_fields", ()))


def _check_seen(env: Any, method: str, seen: Any, lead: tuple[int, ...]) -> None:
    for field in Seen._fields:
        _check_field(env, method, field, getattr(seen, field), lead)


def _check_field(env: Any, method: str, field: str, value: Any, lead: tuple[int, ...]) -> None:
    sizes, kind = FIELDS.get(field, ((), "float"))
    shape = (*lead, *(getattr(env.spec, size) for size in sizes))
    dtypes = (jnp.bool_,) if kind == "bool" else (jnp.bool_, jnp.integer, jnp.floating)
    fits = isinstance(value, jax.ShapeDtypeStruct) and any(jnp.issubdtype(value.dtype, d) for d in dtypes)
    if fits and value.shape == shape:
        return
    named = ["E"] * len(lead) + [f"spec.{size}" for size in sizes]
    meaning = f", that is [{', '.join(named)}]" if named else ", one for the team"
    raise _wrong(env, method, f"{field} is {_kind(value)}; it must be {kind}{list(shape)}{meaning}")


def _check_info(env: Any, method: str, info: Any, lead: tuple[int, ...]) -> None:
    if not isinstance(info, Mapping):
        raise _wrong(env, method, f"info is {_kind(info)}; it must be a dict, empty if there is nothing to tell")
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(info)):
        _check_array(env, method, f"info{jax.tree_util.keystr(path)}", leaf)
    for name in INFOS:
        if name in info:
            _check_field(env, method, f"info['{name}']", info[name], lead)


def _check_array(env: Any, method: str, name: str, leaf: Any) -> None:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        raise _wrong(env, method, f"{name} is {_kind(leaf)}; it must be an array, or a pytree of arrays")


def _kind(value: Any) -> str:
    """``float32[2, 5]``, or the type of what is no array."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _check_same(env: Any, name: str, a: Any, b: Any, methods: tuple[str, str] = ("reset", "step")) -> None:
    """Two results that take each other's place must have equal structures, shapes and dtypes.

    A weakly typed number may stand for an array of a dtype that it would be converted to.
    """
    leaves = [dict(jax.tree_util.tree_leaves_with_path(x)) for x in (a, b)]
    for path in leaves[0] | leaves[1]:
        x, y = (side.get(path) for side in leaves)
        if x is None or y is None or not _alike(x, y):
            given = [f"{'missing' if z is None else _kind(z)} in {m}" for z, m in zip((x, y), methods, strict=True)]
            field = f"{name}{jax.tree_util.keystr(path)}"
            raise _wrong(env, methods[1], f"{field} is {' and '.join(given)}; it must be the same in both")
    if jax.tree.structure(a) != jax.tree.structure(b):
        given = f"{_kind(a)} in {methods[0]} and {_kind(b)} in {methods[1]}"
        raise _wrong(env, methods[1], f"{name} is {given}, of different structures; it must be the same in both")


def _alike(x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> bool:
    if x.shape != y.shape:
        return False
    if x.dtype == y.dtype or not (x.weak_type or y.weak_type):
        return x.dtype == y.dtype
    both = jax.eval_shape(lambda x, y: jnp.where(True, x, y), x, y).dtype
    return (x.weak_type and both == y.dtype) or (y.weak_type and both == x.dtype)


# Random play.


class _Found(NamedTuple):
    """What was wrong at a reset, and in each step [T]; the scores that counted lie between ``low`` and ``high``."""

    reset: dict[str, Any]
    step: dict[str, Any]
    low: Any
    high: Any


# What may be found -> the line about it.
FAULTS = {
    "obs": "obs holds NaN or infinity{when}; it must be finite",
    "state": "state holds NaN or infinity{when}; it must be finite",
    "avail": "avail leaves an agent no action{when}; one at least must be true, except after a true termination",
    "reward": "reward is NaN or infinite{when}; it must be finite, also one step after an episode's end",
    "score": "info['score'] is NaN or infinite{when}; it must be finite, also one step after an episode's end",
    "won": "info['won'] is NaN or infinite{when}; it must be finite, also one step after an episode's end",
    "discount": "discount is not in [0, 1]{when}; it is 0 after a true termination, else 1",
    "termination": "discount is 0 and last is false{when}; a termination is an episode's end, so last must be true",
    "last": "last is true{when}; an episode must not be over before its first step",
    "pack": "unpack does not give back what pack was given{when}; obs, state and avail must be the same",
    "noise": "step_with(noise(key), …) is not what step(key, …) gives{when}; they must be equal",
}


def _played(env: TimeLimit, steps: int, seed: int) -> _Found:
    """Compiles random play and runs it; first makes sure that tracing it twice gives one program."""
    key = jax.random.key(seed)
    lowered, again = (jax.jit(partial(_play, env, steps)).lower(key) for _ in range(2))
    if not _same_program(lowered, again):
        first, second = (jax.jit(lambda key: env.reset(key)).lower(key) for _ in range(2))
        method = "step" if _same_program(first, second) else "reset"
        rule = "randomness must come from key alone, and what changes must be in the state"
        raise _wrong(env, method, f"key and state do not decide what {method} returns; {rule}")
    return lowered.compile(quick_to_compile())(key)


def _same_program(a: Any, b: Any) -> bool:
    """Whether two tracings agree, constants included. Calls back to Python have addresses, which differ by right."""
    texts = a.as_text(), b.as_text()
    return texts[0] == texts[1] or "callback" in texts[0]


def _play(env: TimeLimit, steps: int, key: Array) -> _Found:
    """Random available actions; like a window of training, it steps an ended episode once more before it is reset."""
    key_reset, key_step, key_play = jax.random.split(key, 3)
    begin, first = env.reset(key_reset)
    over = jnp.zeros((env.size,), bool)
    at_reset = _shown_faults(first, over) | {"last": first.last}
    at_reset["pack"] = ~_equal(_seen(first), env.unpack(env.pack(begin, first)))
    if hasattr(_users(env), "step_with"):
        actions = _random(key_step, first.avail)
        told = env.inner.step_with(env.noise(key_step), begin.inner, actions)
        at_reset["noise"] = ~_equal(_by_key(env.inner, key_step, begin.inner, actions), told)

    def slot(carry: Any, key: Array) -> tuple[Any, Any]:
        state, avail, over = carry
        key_act, key_env = jax.random.split(key)
        state, timestep = env.step_with(env.noise(key_env), state, _random(key_act, avail))
        score = jnp.asarray(timestep.info.get("score", timestep.reward), jnp.float32)
        bounds = jnp.min(score, where=~over, initial=jnp.inf), jnp.max(score, where=~over, initial=-jnp.inf)
        faults = jax.tree.map(jnp.any, _shown_faults(timestep, over) | _led_faults(timestep, over))
        carry = _where(over, begin, state), jnp.where(over[:, None, None], first.avail, timestep.avail)
        return (*carry, timestep.last & ~over), (faults, *bounds)

    _, (faults, low, high) = jax.lax.scan(slot, (begin, first.avail, over), jax.random.split(key_play, steps))
    return _Found(jax.tree.map(jnp.any, at_reset), faults, jnp.min(low), jnp.max(high))


def _by_key(form: Any, key: Array, state: Any, actions: Array) -> Any:
    """A step of many environments by ``step`` itself, with the same keys as ``noise`` is drawn from."""
    if isinstance(form, Batched):
        return jax.vmap(form.inner.step)(jax.random.split(key, form.size), state, actions)
    return form.step(key, state, actions)


def _seen(timestep: TimeStep) -> Seen:
    return Seen(timestep.obs, timestep.state, timestep.avail)


def _random(key: Array, avail: Bool[Array, "E N A"]) -> Array:
    return jax.random.categorical(key, jnp.where(avail, 0.0, -jnp.inf)).astype(jnp.int32)


def _where(over: Bool[Array, " E"], a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(over.reshape(over.shape + (1,) * (x.ndim - 1)), x, y), a, b)


def _infinite(x: Array) -> Bool[Array, " E"]:
    return ~jnp.all(jnp.isfinite(x), axis=tuple(range(1, jnp.ndim(x))))


def _shown_faults(timestep: TimeStep, over: Bool[Array, " E"]) -> dict[str, Array]:
    """Of what a time step shows; after an episode's end nobody sees it."""
    terminated = timestep.last & (timestep.discount == 0)
    return {
        "obs": _infinite(timestep.obs) & ~over,
        "state": _infinite(timestep.state) & ~over,
        "avail": ~jnp.all(jnp.any(timestep.avail, axis=-1), axis=-1) & ~over & ~terminated,
    }


def _led_faults(timestep: TimeStep, over: Bool[Array, " E"]) -> dict[str, Array]:
    """Of what an action led to. Sums over episodes are masked by products, so nothing may be NaN even afterwards."""
    discount = timestep.discount
    infos = {name: _infinite(timestep.info[name]) for name in INFOS if name in timestep.info}
    return infos | {
        "reward": _infinite(timestep.reward),
        "discount": ~((discount >= 0) & (discount <= 1)) & ~over,
        "termination": (discount == 0) & ~timestep.last & ~over,
    }


def _equal(a: Any, b: Any) -> Bool[Array, ""]:
    """Up to rounding, as what is packed may be stored in fewer bits; keys of random numbers are left out."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    numbers = [(x, y) for x, y in pairs if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    close: Callable[..., Array] = partial(jnp.allclose, rtol=1e-2, atol=1e-2, equal_nan=True)
    return jnp.all(jnp.stack([close(x, y) for x, y in numbers]))


def _report(env: Any, found: _Found) -> None:
    """Raises for the first thing that was found."""
    for name, line in FAULTS.items():
        if found.reset.get(name, False):
            raise _wrong(env, _method(name, "reset"), line.format(when=" at a reset"))
        at = np.flatnonzero(found.step.get(name, ()))
        if at.size:
            raise _wrong(env, _method(name, "step"), line.format(when=f" in step {at[0] + 1} of random play"))
    low, high = env.spec.reward_range
    for value, out in ((found.low, found.low < low - _slack(low)), (found.high, found.high > high + _slack(high))):
        if out:
            raise _wrong(env, "step", f"reward is {value:g} in random play; spec.reward_range is [{low:g}, {high:g}]")


def _slack(bound: float) -> float:
    return TOLERANCE * max(1.0, abs(bound)) if np.isfinite(bound) else 0.0


def _method(fault: str, otherwise: str) -> str:
    return {"pack": "unpack", "noise": "step_with"}.get(fault, otherwise)

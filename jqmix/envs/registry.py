"""Name → environment: the one place to add one. Imports neither JAX nor JaxMARL until an environment is built."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from jqmix.envs.errors import EnvError
from jqmix.inputs import quoted, shorten
from jqmix.plugins import called, check_path, first_line, load_function, located, raised, where

if TYPE_CHECKING:
    from jqmix.envs.base import BatchedDecPOMDP, DecPOMDP
    from jqmix.types import TimeLimitMode


class Sizes(NamedTuple):
    """What ``jqmix envs`` tells without building anything; a test compares it with the built environment."""

    n_agents: int
    n_actions: int
    obs_size: int
    state_size: int
    episode_limit: int


class EnvEntry(NamedTuple):
    factory: str | Callable[..., Any]
    kwargs: Mapping[str, Any]
    sizes: Sizes | None


_ENTRIES: dict[str, EnvEntry] = {}


def register(name: str, factory: str | Callable[..., Any], **kwargs: Any) -> None:
    """Adds an environment under ``name``.

    ``factory(**kwargs)``, or what ``"package.module:function"`` names, must return a ``DecPOMDP``: an object with
    ``spec``, ``reset(key)`` and ``step(key, state, actions)`` (see ``jqmix.envs.base``). ``kwargs`` are defaults that
    the configuration's ``env.kwargs`` may override. Registering a taken name raises ``EnvError``.
    """
    if name in _ENTRIES:
        raise EnvError(f"env.name: {name!r} is already registered")
    _ENTRIES[name] = EnvEntry(factory, kwargs, None)


def names() -> list[str]:
    return list(_ENTRIES)


def entries() -> dict[str, EnvEntry]:
    return dict(_ENTRIES)


def check_name(name: str) -> None:
    """Raises ``EnvError`` with the nearest names if there is no such environment."""
    if name in _ENTRIES:
        return
    near = difflib.get_close_matches(shorten(name, 60), _ENTRIES, n=4, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise EnvError(f"env.name: no environment {quoted(name)}{hint} (`jqmix envs` lists all {len(_ENTRIES)})")


def check_factory(path: str) -> None:
    """Raises ``EnvError`` unless ``path`` is two dotted names with a colon between; imports nothing."""
    check_path(path, "env.factory", EnvError)


def resolve_factory(path: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; modules in the current directory are found, too."""
    return load_function(path, "env.factory", EnvError)


@overload
def make_env(name: str | None, batch: None = None, **options: Any) -> "DecPOMDP": ...
@overload
def make_env(name: str | None, batch: int, **options: Any) -> "BatchedDecPOMDP": ...
def make_env(
    name: str | None,
    batch: int | None = None,
    *,
    factory: str | None = None,
    time_limit: "TimeLimitMode | Literal['default']" = "default",
    episode_limit: int | None = None,
    **kwargs: Any,
) -> Any:
    """Builds an environment by name, or by ``factory`` = ``"package.module:function"``.

    ``batch=E`` gives E environments at once. ``time_limit`` and ``episode_limit`` override the environment's own;
    everything else goes to the factory. Raises ``EnvError`` for a name, option or size that does not fit.
    """
    from jqmix.envs.base import TimeLimit
    from jqmix.envs.check import check_interface

    if factory is not None:
        field, entry = "env.factory", EnvEntry(resolve_factory(factory), {}, None)
    else:
        check_name(name or "")
        field, entry = f"env.name: {name}", _ENTRIES[name or ""]
    env = _build(entry, kwargs, field)
    if entry.sizes is None or kwargs:
        try:
            check_interface(env, batch)
        except EnvError as error:
            raise EnvError(f"{field if entry.sizes is None else 'env.kwargs'}: {error}") from None
    mode = env.spec.time_limit if time_limit == "default" else time_limit
    limited = TimeLimit(env, episode_limit or env.spec.episode_limit, mode)
    return limited if batch is None else limited.batched(batch)


def _build(entry: EnvEntry, kwargs: Mapping[str, Any], field: str) -> Any:
    """Calls the factory. Whatever it raises becomes an ``EnvError`` of one line."""
    build = resolve_factory(entry.factory) if isinstance(entry.factory, str) else entry.factory
    options = {**entry.kwargs, **kwargs}
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise EnvError(f"env.kwargs: {located(f'{called(build)}: {error}', where(build))}") from None
    except ValueError:  # it has no signature to show
        pass
    try:
        env = build(**options)
        whole = hasattr(env, "spec")
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith("env."):  # it names the field itself
            raise EnvError(first_line(str(error))) from None
        if entry.sizes is not None:  # ours: it is the arguments
            what = first_line(str(error)) if isinstance(error, ValueError) else raised(error)
            raise EnvError(f"env.kwargs: {what}") from None
        raise EnvError(f"{field}: {called(build)} raised {raised(error, where(build))}") from None
    if not whole:
        given = located(f"{called(build)} returns {type(env).__name__}", where(build))
        raise EnvError(f"{field}: {given}, which has no spec; an environment has spec, reset and step")
    return env


def _add(name: str, factory: str, sizes: tuple[int, int, int, int, int], **kwargs: Any) -> None:
    _ENTRIES[name] = EnvEntry(f"jqmix.envs.{factory}", kwargs, Sizes(*sizes))


def _smax_sizes(allies: int, enemies: int) -> tuple[int, int, int, int, int]:
    """SMAX: 13 features for every other unit and 10 of one's own; 12 of each unit in the state."""
    units = allies + enemies
    return allies, 5 + enemies, 13 * (units - 1) + 10, 12 * units, 101


SMAX_MAPS: dict[str, tuple[int, int]] = {
    "3m": (3, 3),
    "8m": (8, 8),
    "25m": (25, 25),
    "2s3z": (5, 5),
    "3s5z": (8, 8),
    "5m_vs_6m": (5, 6),
    "10m_vs_11m": (10, 11),
    "27m_vs_30m": (27, 30),
    "3s5z_vs_3s6z": (8, 9),
    "3s_vs_5z": (3, 5),
    "6h_vs_8z": (6, 8),
    "smacv2_5_units": (5, 5),
    "smacv2_10_units": (10, 10),
    "smacv2_20_units": (20, 20),
}

# Layout -> number of grid cells, which is all that sizes depend on (26 layers in v1).
OVERCOOKED_LAYOUTS = {
    "cramped_room": 20,
    "asymm_advantages": 45,
    "coord_ring": 25,
    "forced_coord": 25,
    "counter_circuit": 40,
}
# Layout -> observation size (layers depend on the recipes).
OVERCOOKED_V2_LAYOUTS = {
    "cramped_room": 600,
    "asymm_advantages": 1350,
    "coord_ring": 750,
    "forced_coord": 750,
    "counter_circuit": 1200,
    "cramped_room_v2": 700,
    "asymm_advantages_recipes_center": 1575,
    "asymm_advantages_recipes_right": 1575,
    "asymm_advantages_recipes_left": 1575,
    "two_rooms": 1575,
    "two_rooms_both": 1575,
    "fun_coordination": 2025,
    "more_fun_coordination": 2160,
    "fun_symmetries": 1400,
    "fun_symmetries_plates": 1225,
    "fun_symmetries1": 1600,
    "grounded_coord_simple": 1600,
    "grounded_coord_ring": 3240,
    "test_time_simple": 1600,
    "test_time_wide": 1890,
    "demo_cook_simple": 2200,
    "demo_cook_wide": 2970,
}


def _register_builtin() -> None:
    _add("matrix_game", "games:MatrixGame", (2, 3, 1, 1, 1))
    _add("two_step_game", "games:TwoStepGame", (2, 2, 4, 4, 2))
    _add("predator_prey", "predator_prey:PredatorPrey", (8, 6, 50, 200, 200))
    _add("chain_probe", "probes:ChainProbe", (1, 2, 4, 4, 4))
    _add("truncation_probe", "probes:TruncationProbe", (1, 2, 2, 2, 3))
    _add("memory_probe", "probes:MemoryProbe", (2, 2, 4, 4, 4))
    for name, (allies, enemies) in SMAX_MAPS.items():
        _add(f"smax_{name}", "smax:SMAX", _smax_sizes(allies, enemies), map_name=name)
    _add("mpe_simple_spread_v3", "mpe:SimpleSpread", (3, 5, 18, 54, 26))
    _add("mpe_simple_reference_v3", "jaxmarl:mpe", (2, 50, 21, 42, 26), scenario="simple_reference_v3")
    _add("mpe_simple_speaker_listener_v4", "jaxmarl:mpe", (2, 5, 11, 14, 26), scenario="simple_speaker_listener_v4")
    for layout, cells in OVERCOOKED_LAYOUTS.items():
        _add(f"overcooked_{layout}", "jaxmarl:overcooked", (2, 6, 26 * cells, 52 * cells, 400), layout=layout)
    for layout, obs in OVERCOOKED_V2_LAYOUTS.items():
        _add(f"overcooked_v2_{layout}", "jaxmarl:overcooked_v2", (2, 6, obs, 2 * obs, 400), layout=layout)
    _add("hanabi", "jaxmarl:hanabi", (2, 21, 658, 1316, 100))
    _add("switch_riddle", "jaxmarl:switch_riddle", (3, 3, 2, 6, 6))
    # The originals of what is ours, for comparison.
    for name, (allies, enemies) in SMAX_MAPS.items():
        _add(f"jaxmarl/smax_{name}", "jaxmarl:smax", _smax_sizes(allies, enemies), map_name=name)
    _add("jaxmarl/mpe_simple_spread_v3", "jaxmarl:mpe", (3, 5, 18, 54, 26), scenario="simple_spread_v3")


_register_builtin()

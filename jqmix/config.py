"""The configuration: frozen dataclasses, presets, overrides and validation. Imports no JAX.

Every field can be set from a YAML file and from the command line (``--algo.td-lambda 0.6``), through the same
coercion and the same checks; whatever is wrong raises :class:`ConfigError` with one line that names the field. The
fields ``mixer.*`` and ``core.*`` are those of the mixer and the core that are chosen.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jqmix.inputs import (
    INT32,
    ConfigError,
    check_path_text,
    dump_yaml,
    quoted,
    read_yaml,
    shorten,
    shown,
)
from jqmix.networks.cores import CORES
from jqmix.networks.cores.settings import WIDEST_KERNEL, GRUSettings
from jqmix.networks.mixers import MIXERS
from jqmix.networks.mixers.settings import QMixSettings
from jqmix.plugins import Registry
from jqmix.settings import Leaf, coerce, describe_type, read_value, setting, settings_in
from jqmix.trackers.base import TRACKERS, tracker_names

# Highest values that are sensible; what they come to together is for the memory plan.
WIDTH, ROLLOUTS, EPISODES, STEPS = 2**14, 2**20, 10**7, 10**15

# The groups of fields that depend on a choice, and the field that makes it.
CHOICES: dict[str, Registry] = {"core": CORES, "mixer": MIXERS}


@dataclass(frozen=True)
class EnvConfig:
    name: str = setting("smax_3m", "the environment (see `jqmix envs`)")
    factory: str | None = setting(
        None, "package.module:function that builds an environment of your own, in place of a name"
    )
    kwargs: dict[str, Any] = setting({}, "arguments of the environment's factory, as a YAML mapping")
    time_limit: Literal["default", "bootstrap", "terminate"] = setting(
        "default", "what the episode limit means: the episode is cut and its value goes on, or it ends"
    )
    episode_limit: int | None = setting(None, "steps until the time limit (the environment's own unless set)", low=1)


@dataclass(frozen=True)
class AgentConfig:
    hidden: int = setting(64, "width of the agent's layers and core", low=1, high=WIDTH)
    layers: int = setting(1, "dense layers before the core", low=1, high=8)
    encoder: Literal["dense", "entities"] = setting(
        "dense", "what reads observations: dense layers, or one embedding for all entities of a kind (SMAX's units)"
    )
    entity_embed: int = setting(32, "entities: width of an entity's embedding", low=1, high=WIDTH)
    core: str = setting("gru", "what an agent remembers; none: a feed-forward layer in its place")
    layer_norm: bool = setting(
        False, "layer normalisation before the encoder's ReLU and before the Q head (as PQN has)"
    )
    share_parameters: bool = setting(True, "one network for all agents; false: each has its own, and needs no id")
    agent_id: bool = setting(True, "a shared network reads which agent it acts for")
    last_action: bool = setting(True, "the network reads the agent's last action")
    obs_norm: Literal["none", "running"] = setting(
        "none", "what the agents read: observations as they are, or standardised by running statistics"
    )


@dataclass(frozen=True)
class AlgoConfig:
    name: Literal["dqn", "pqn"] = setting(
        "dqn", "how it learns: from replay, towards a target network; or from what was just collected, towards itself"
    )
    mixer: str = setting("qmix", "how agents' values become the team's")
    state_norm: Literal["running", "none"] = setting(
        "running", "what the mixer reads: the state normalised by running statistics, or raw"
    )
    gamma: float = setting(0.99, "discount", low=0, high=1, traced=True)
    target: Literal["peng", "qstar", "watkins", "nstep", "sarsa"] = setting(
        "peng", "what is learned towards: Peng's Q(λ), Q*(λ), Watkins' Q(λ), the n-step return, or SARSA(λ)"
    )
    td_lambda: float = setting(0.6, "λ of the Q(λ) targets; 0 is one-step", low=0, high=1, traced=True)
    n_step: int = setting(
        1, "nstep: transitions before the target bootstraps; 1 is one-step", low=1, high=10**6, traced=True
    )
    double_q: bool = setting(True, "choose the target's action with the online network")
    target_update: Literal["hard", "soft"] = setting(
        "hard", "copy the target network every target_period, or track by τ"
    )
    target_period: int = setting(
        200, "hard: windows collected between copies (a window holds an episode or more)", low=1
    )
    target_tau: float = setting(
        0.005, "soft: share of the online network taken at each update", above=0, high=1, traced=True
    )
    reward_scale: float = setting(
        1.0, "factor on the rewards that are learned from (reports are unscaled)", above=0, traced=True
    )
    reward_norm: Literal["none", "running"] = setting(
        "none",
        "rewards that are learned from: as they are, or (r − mean) / std by running statistics, before the factor",
    )
    init: Literal["default", "orthogonal"] = setting(
        "default", "the agent's dense layers begin as PyTorch's, or orthogonal"
    )
    init_gain: float = setting(0.01, "orthogonal: gain of the Q head (the other layers' is 1)", above=0)
    epochs: int = setting(4, "pqn: times each iteration's windows are learned from", low=1, high=10**6)
    minibatches: int = setting(
        4, "pqn: into how many parts the rollouts are divided in each epoch", low=1, high=ROLLOUTS
    )


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adam", "rmsprop", "radam"] = setting(
        "adam", "adam and radam (β 0.9/0.999, ε 1e-8), or rmsprop (α 0.99, ε 1e-5)"
    )
    lr: float = setting(1e-3, "learning rate", above=0, traced=True)
    lr_end_factor: float = setting(
        1.0, "the learning rate falls linearly to this share of optim.lr at total_steps", low=0, high=1, traced=True
    )
    grad_clip: float = setting(10.0, "largest global gradient norm", above=0, traced=True)


@dataclass(frozen=True)
class ExploreConfig:
    eps_start: float = setting(1.0, "ε at the start", low=0, high=1, traced=True)
    eps_end: float = setting(0.05, "ε after eps_steps", low=0, high=1, traced=True)
    eps_steps: int = setting(100_000, "environment steps over which ε falls linearly", low=1, high=STEPS, traced=True)


@dataclass(frozen=True)
class ReplayConfig:
    capacity: int = setting(5000, "windows kept", low=1)
    batch: int = setting(128, "windows per update", low=1, high=ROLLOUTS)
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "how what the agents and the mixer see is kept; bfloat16 halves it, to 8 significant bits"
    )
    prioritised: bool = setting(False, "sample windows by their TD errors, with importance weights; false: uniformly")
    priority_alpha: float = setting(
        0.6, "prioritised: exponent of the priorities; 0 is uniform", low=0, high=1, traced=True
    )
    priority_beta: float = setting(
        0.4,
        "prioritised: exponent of the importance weights at the start; it rises to 1 at total_steps",
        low=0,
        high=1,
        traced=True,
    )
    burn_in: int = setting(
        0,
        "slots at a window's beginning that only warm up the agents' memory; pqn: so many of the window before it",
        low=0,
    )


@dataclass(frozen=True)
class EvalConfig:
    every: int = setting(50_000, "environment steps between greedy evaluations (and log lines)", low=1, high=STEPS)
    episodes: int = setting(64, "whole greedy episodes per evaluation, each counted once", low=1, high=EPISODES)
    absolute: int = setting(
        10,
        "at the end, the parameters that played best play so many times eval.episodes new ones; 0: they don't",
        low=0,
        high=1000,
    )
    parallel: int = setting(128, "episodes of an evaluation that are played at once", low=1, high=2**14)


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = setting(
        100_000, "environment steps between checkpoints, from which `jqmix resume` goes on", low=1, high=STEPS
    )
    keep: int = setting(2, "the newest so many stay", low=1)
    replay: bool = setting(
        True, "checkpoints hold the replay; false: smaller, but what is resumed begins to fill it anew"
    )
    share: float = setting(
        0.02,
        "largest share of a run's time that they take: where one takes long, they are fewer",
        above=0,
        high=1,
    )


@dataclass(frozen=True)
class Config:
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    core: Any = field(default_factory=GRUSettings)  # of the core that agent.core names
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    mixer: Any = field(default_factory=QMixSettings)  # of the mixer that algo.mixer names
    optim: OptimConfig = field(default_factory=OptimConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    rollouts: int = setting(8, "parallel environments per member", low=1, high=ROLLOUTS)
    window: int | None = setting(None, "transitions per window, T (the episode limit unless set)", low=1)
    window_start: Literal["reset", "continue"] | None = setting(
        None, "a window begins at a reset, or goes on where the last one ended (dqn: reset, pqn: continue, unless set)"
    )
    updates: int = setting(1, "gradient updates per iteration (one window from every rollout)", low=1, high=10**6)
    total_steps: int = setting(1_000_000, "environment steps per member, summed over its rollouts", low=1, high=STEPS)
    seed: int = setting(0, "first seed", low=0, high=2**31 - 1)
    seeds: int = setting(1, "members: seeds seed … seed + seeds − 1, trained in one program", low=1, high=10_000)
    group: int | None = setting(None, "members trained at once, group after group (as many as fit unless set)", low=1)
    precision: Literal["default", "bfloat16", "float32"] = setting(
        "default",
        "products while training: as the platform has them (a CPU float32, a GPU TF32, a TPU bfloat16), of numbers "
        "rounded to bfloat16 and summed in float32, or float32",
    )
    on_nan: Literal["freeze", "stop"] = setting(
        "freeze", "a member whose numbers are no longer finite stays as it was while the others go on; or all stop"
    )
    log: str | None = setting(
        None, f"trackers that get the run's numbers, with commas between: {', '.join(TRACKERS)} (each an extra)"
    )
    run_dir: str | None = setting(None, "where the run is written (runs/<env>_<mixer>_<time> unless set)")


# Fields and values


def fields_of(cls: type = Config, prefix: str = "") -> Iterator[Leaf]:
    """Every leaf field as (dotted path, type, field), without those that depend on a choice."""
    return settings_in(cls, prefix)


def fields_for(values: Mapping[str, Any]) -> Iterator[Leaf]:
    """The same, with the settings of the mixer and the core that ``values`` (by dotted path) name.

    Loads code from outside where they name it. Raises :class:`ConfigError` for a choice that there is not.
    """
    yield from fields_of()
    for group, registry in CHOICES.items():
        yield from settings_in(registry.settings(_choice(registry, values)), f"{group}.")


def _choice(registry: Registry, values: Mapping[str, Any]) -> str:
    """What ``values`` name, or the default."""
    default = next(f.default for path, _, f in fields_of() if path == registry.field)
    return registry.check(values.get(registry.field, default))


def known_fields() -> dict[str, Leaf]:
    """Every field by its path, with the settings of all mixers and cores that come with jqmix; of those that several
    have, the first one's. For messages, flags and values of which nobody knows yet for whom they are."""
    known = {leaf[0]: leaf for leaf in fields_of()}
    for group, registry in CHOICES.items():
        for cls in registry.known_settings().values():
            known = {leaf[0]: leaf for leaf in settings_in(cls, f"{group}.")} | known
    return known


def describe_field(path: str, hint: Any) -> str:
    """What a field takes, for messages and help."""
    return next((r.describe() for r in CHOICES.values() if r.field == path), None) or describe_type(hint)


def traced_paths(cfg: Config) -> list[str]:
    """The numbers of this configuration that are arguments of the compiled program, by dotted path."""
    return [path for path, _, f in _fields_in(cfg) if f.metadata["traced"]]


def _fields_in(cfg: Config) -> Iterator[Leaf]:
    """All fields of a configuration that is there; loads nothing."""
    yield from fields_of()
    for group in CHOICES:
        yield from settings_in(type(getattr(cfg, group)), f"{group}.")


def foreign_code(values: "Config | Mapping[str, Any]") -> dict[str, str]:
    """What names code from outside that a run of this configuration executes, by dotted path.

    Takes a configuration, or values by dotted path: then nothing is loaded to find out.
    """
    values = flatten(to_dict(values)) if isinstance(values, Config) else values
    factory = values.get("env.factory")
    found = {} if factory is None else {"env.factory": str(factory)}
    return found | {r.field: values[r.field] for r in CHOICES.values() if r.is_foreign(values.get(r.field))}


def coerce_text(path: str, text: str, *choices: Mapping[str, Any]) -> Any:
    """What a flag's text means for the field ``path``, where one of ``choices`` (values that name mixer and core) is
    made. Raises :class:`ConfigError` for an unknown field or value."""
    known = known_fields()
    for values in choices:
        known |= {leaf[0]: leaf for leaf in fields_for(values) if leaf[0].partition(".")[0] in CHOICES}
    if path not in known:
        raise _unknown(path, known)
    return _coerce(path, known[path][1], text)


def _coerce(path: str, hint: Any, value: Any) -> Any:
    for registry in CHOICES.values():
        if path == registry.field:
            return registry.check(value)
    return coerce(path, hint, value)


def _unknown(path: str, known: Iterable[str]) -> ConfigError:
    name, known = shown(path), list(known)
    inside = [p for p in known if p.startswith(f"{path}.")]
    if inside:
        return ConfigError(f"{name}: no field but a group of fields, such as {inside[0]}")
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else " (`jqmix train --help` lists all)"
    return ConfigError(f"{name}: no such field{hint}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted paths, stopping at known leaf fields (``env.kwargs`` is one).

    Raises :class:`ConfigError` where two ways of writing (``algo: {gamma: …}`` and ``algo.gamma: …``) name one field.
    """
    leaves = {path for path, _, _ in fields_of()}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found = flatten(value, path + ".") if isinstance(value, Mapping) and path not in leaves else {path: value}
        twice = flat.keys() & found.keys()
        if twice:
            raise ConfigError(f"{shown(min(twice))}: given twice")
        flat |= found
    return flat


# Names of earlier versions, which files, flags and run directories may still have.
RENAMED: dict[str, str] = {
    "algo.embed": "mixer.embed",
    "algo.hypernet_hidden": "mixer.hypernet_hidden",
    "algo.positivity": "mixer.positivity",
    "algo.heads": "mixer.heads",
    "algo.critic_hidden": "mixer.critic_hidden",
    "algo.wqmix_alpha": "mixer.alpha",
    "agent.recurrent": "agent.core",
    "agent.one_kernel": "core.one_kernel",
    "optim.lr_end": "optim.lr_end_factor",
}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values by today's names. Raises :class:`ConfigError` where an old and a new name give one field."""
    new: dict[str, Any] = {}
    for path, value in values.items():
        if path == "agent.recurrent":
            value = "gru" if coerce(path, bool, value) else "none"
        path = RENAMED.get(path, path)
        if path == "core.one_kernel":
            value = str(value).lower()  # it was a bool, and YAML reads one
        if path in new:
            raise ConfigError(f"{shown(path)}: given twice")
        new[path] = value
    return new


def build(values: Mapping[str, Any]) -> Config:
    """A validated Config from dotted paths to values; everything else keeps its default.

    Settings that only other mixers and cores have are left out. Loads code from outside where a mixer or a core is.
    """
    values = renamed(values)
    known = {path: (hint, f) for path, hint, f in fields_of()}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        group, _, name = str(path).rpartition(".")
        if group in CHOICES:
            continue
        if path not in known:
            raise _unknown(str(path), known_fields())
        hint, f = known[path]
        nested.setdefault(group, {})[name] = read_value(path, hint, f, _coerce(path, hint, value))
    top = nested.pop("", {})
    hints = typing.get_type_hints(Config)
    if nested.get("env", {}).get("factory") is not None:
        nested["env"]["name"] = nested["env"]["factory"]  # its own name is known once it is built
    groups = {group: hints[group](**leaf) for group, leaf in nested.items()}
    cfg = Config(**top, **groups, **{group: _read_choice(group, values) for group in CHOICES})
    check(cfg)
    return cfg


def _read_choice(group: str, values: Mapping[str, Any]) -> Any:
    """The settings of the mixer or the core that ``values`` name."""
    registry = CHOICES[group]
    given = {path.removeprefix(f"{group}."): value for path, value in values.items() if path.startswith(f"{group}.")}
    return registry.read_settings(_choice(registry, values), given)


# Names of arguments that are jqmix's own, not a factory's.
RESERVED = {"name", "batch", "factory", "time_limit", "episode_limit"}


def _check_env(env: EnvConfig) -> None:
    from jqmix.envs import registry

    try:
        if env.factory is None:
            registry.check_name(env.name)
        else:
            registry.check_factory(env.factory)
    except registry.EnvError as error:
        raise ConfigError(str(error)) from None
    for key in env.kwargs:
        if key in RESERVED:
            raise ConfigError(f"env.kwargs: {key} is not allowed as a key; {', '.join(sorted(RESERVED))} are taken")
        if not key.isidentifier():
            raise ConfigError(f"env.kwargs: {quoted(key)} is not allowed as a key; keys are names of arguments")


def check(cfg: Config) -> None:
    """What must hold between fields, and can be known without building anything."""
    _check_env(cfg.env)
    if cfg.run_dir is not None:
        check_path_text("run_dir", cfg.run_dir)
    tracker_names(cfg.log)
    if isinstance(cfg.core, GRUSettings) and cfg.core.one_kernel == "true" and cfg.agent.hidden > WIDEST_KERNEL:
        raise ConfigError(f"core.one_kernel: true takes agent.hidden ≤ {WIDEST_KERNEL}, not {cfg.agent.hidden}")
    (_check_replay if cfg.algo.name == "dqn" else _check_pqn)(cfg)
    if cfg.explore.eps_end > cfg.explore.eps_start:
        raise ConfigError(f"explore.eps_end: {cfg.explore.eps_end} must be ≤ explore.eps_start {cfg.explore.eps_start}")
    if cfg.eval.episodes * cfg.eval.absolute > INT32:
        most = INT32 // cfg.eval.episodes
        raise ConfigError(f"eval.absolute: {cfg.eval.absolute} × eval.episodes is too many; it must be ≤ {most}")
    if cfg.seed + cfg.seeds > 2**31:
        raise ConfigError(f"seeds: seed + seeds must be ≤ {2**31}")
    if cfg.group is not None and cfg.seeds % cfg.group:
        raise ConfigError(f"group: {cfg.group} must divide seeds ({cfg.seeds})")
    limit = cfg.env.episode_limit or _registered_limit(cfg)
    if limit is not None:
        check_window(cfg, limit)


def _check_replay(cfg: Config) -> None:
    if cfg.replay.batch > cfg.replay.capacity:
        raise ConfigError(
            f"replay.batch: {cfg.replay.batch} windows do not fit in replay.capacity {cfg.replay.capacity}"
        )
    if cfg.replay.capacity % cfg.rollouts:
        near = max(cfg.replay.capacity // cfg.rollouts, 1) * cfg.rollouts
        raise ConfigError(
            f"replay.capacity: {cfg.replay.capacity} must be a multiple of rollouts ({cfg.rollouts}), e.g. {near}"
        )
    if cfg.replay.burn_in and window_start(cfg) == "reset":
        raise ConfigError(f"replay.burn_in: {cfg.replay.burn_in} needs window_start continue; from a reset on it is 0")


def _check_pqn(cfg: Config) -> None:
    if cfg.window_start == "reset":
        raise ConfigError("window_start: reset is not allowed with algo.name pqn; it takes continue")
    if cfg.rollouts % cfg.algo.minibatches:
        raise ConfigError(f"algo.minibatches: {cfg.algo.minibatches} must divide rollouts ({cfg.rollouts})")


def window_start(cfg: Config) -> Literal["reset", "continue"]:
    """Where windows begin: at a reset, or where the last one ended."""
    return cfg.window_start or ("reset" if cfg.algo.name == "dqn" else "continue")


def _registered_limit(cfg: Config) -> int | None:
    """The episode limit of a built-in environment with its default arguments, where the registry knows it."""
    from jqmix.envs import registry

    if cfg.env.factory is not None or cfg.env.kwargs:
        return None
    sizes = registry.entries()[cfg.env.name].sizes
    return sizes.episode_limit if sizes else None


def check_window(cfg: Config, episode_limit: int) -> None:
    """A window that begins at a reset must hold a whole episode, so that nothing of it is lost; one that goes on may
    be of any length. Slots and steps are counted in 32 bits."""
    slots = (cfg.window or episode_limit) + 1
    held = {"rollouts": cfg.rollouts} | ({"replay.capacity": cfg.replay.capacity} if cfg.algo.name == "dqn" else {})
    for path, count in held.items():
        if count * slots > INT32:
            raise ConfigError(f"{path}: {count} windows of {slots} slots are more than 32 bits count")
    if cfg.eval.episodes * episode_limit > INT32:
        raise ConfigError(
            f"eval.episodes: {cfg.eval.episodes} episodes of {episode_limit} steps are more than 32 bits count"
        )
    if window_start(cfg) == "reset" and cfg.window is not None and cfg.window < episode_limit:
        raise ConfigError(f"window: {cfg.window} does not cover an episode; it must be ≥ {episode_limit} (the limit)")
    if cfg.replay.burn_in >= slots - 1:
        raise ConfigError(f"replay.burn_in: {cfg.replay.burn_in} must be < window ({slots - 1})")


# Options without effect

WITHOUT_STATE = ("iql", "vdn")
DQN, PQN = ("algo.name", ("dqn",)), ("algo.name", ("pqn",))
# A field, another one, and the values of it without which the first does nothing.
NEEDS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("env.name", "env.factory", (None,)),
    ("agent.agent_id", "agent.share_parameters", (True,)),
    ("agent.entity_embed", "agent.encoder", ("entities",)),
    ("algo.state_norm", "algo.mixer", tuple(name for name in MIXERS.builtin if name not in WITHOUT_STATE)),
    ("algo.td_lambda", "algo.target", ("peng", "qstar", "watkins", "sarsa")),
    ("algo.n_step", "algo.target", ("nstep",)),
    ("algo.double_q", *DQN),
    ("algo.target_update", *DQN),
    ("algo.target_period", *DQN),
    ("algo.target_period", "algo.target_update", ("hard",)),
    ("algo.target_tau", *DQN),
    ("algo.target_tau", "algo.target_update", ("soft",)),
    ("algo.init_gain", "algo.init", ("orthogonal",)),
    ("algo.epochs", *PQN),
    ("algo.minibatches", *PQN),
    ("updates", *DQN),
    *((f"replay.{f.name}", *DQN) for f in dataclasses.fields(ReplayConfig) if f.name != "burn_in"),
    ("replay.priority_alpha", "replay.prioritised", (True,)),
    ("replay.priority_beta", "replay.prioritised", (True,)),
]


def has_effect(path: str, cfg: Config) -> bool:
    """Whether a field does anything in this configuration, by what is known of it."""
    flat = flatten(to_dict(cfg))
    gates = [(gate, values) for field, gate, values in NEEDS if field == path]
    return path in flat and all(flat[gate] in values or _is_unknown_choice(gate, flat[gate]) for gate, values in gates)


def check_effects(cfgs: Sequence[Config], given: Iterable[str]) -> None:
    """Fields that were asked for must do something in one of these configurations, or be as they always are.

    For what is given on a command line. A file may hold what another mixer or target would need: it is there to be
    varied. Raises :class:`ConfigError`.
    """
    flat, defaults, given = [flatten(to_dict(cfg)) for cfg in cfgs], flatten(to_dict(Config())), set(given)
    for path in sorted(given):
        group, _, name = path.partition(".")
        if group in CHOICES and not any(path in tree for tree in flat):
            registry = CHOICES[group]
            raise _no_effect(path, registry.field, flat[0][registry.field], registry.with_setting(name))
    for path, gate, values in NEEDS:
        if path not in given or all(tree.get(path) == defaults[path] for tree in flat):
            continue
        if not any(tree[gate] in values or _is_unknown_choice(gate, tree[gate]) for tree in flat if path in tree):
            raise _no_effect(path, gate, flat[0][gate], values)
    if "explore.eps_steps" in given and all(cfg.explore.eps_end == cfg.explore.eps_start for cfg in cfgs):
        raise ConfigError("explore.eps_steps: has no effect where explore.eps_end equals explore.eps_start")


def _is_unknown_choice(gate: str, value: Any) -> bool:
    """Whether it is a mixer or a core of which nobody knows what it reads."""
    return any(gate == registry.field and value not in registry.builtin for registry in CHOICES.values())


def _no_effect(path: str, gate: str, found: Any, needed: Iterable[Any]) -> ConfigError:
    words = " or ".join(map(_word, needed))
    return ConfigError(f"{path}: has no effect with {gate} {_word(found)}; it needs {gate} {words}")


def _word(value: Any) -> str:
    """A value as the command line has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else shorten(str(value), 60)


# Files and presets


def preset_dir() -> Path:
    """Where presets lie: inside the wheel, or ``configs/`` of a checkout."""
    here = Path(__file__).parent
    inside = here / "configs"
    return inside if inside.is_dir() else here.parent / "configs"


def preset_names() -> list[str]:
    return sorted(p.stem for p in preset_dir().glob("*.yaml"))


def _presets_near(name: str) -> str:
    near = difflib.get_close_matches(shorten(name, 60), preset_names(), n=3, cutoff=0.4)
    return f"presets include {', '.join(near)}" if near else "`jqmix train --help` lists the presets"


def _read(path: Path) -> dict[str, Any]:
    """The fields of a file by their dotted paths, on top of those of the preset that it extends."""
    tree = read_yaml(path)
    if not tree and (tree is None or isinstance(tree, dict)):
        raise ConfigError(f"{shown(path)}: holds no fields")
    if not isinstance(tree, dict):
        raise ConfigError(f"{shown(path)}: a configuration is a mapping of fields")
    base = tree.pop("extends", None)
    if base is not None and base not in preset_names():
        raise ConfigError(f"{shown(path)}: extends: no preset {quoted(base)}; {_presets_near(str(base))}")
    values = {} if base is None else _read(preset_dir() / f"{base}.yaml")
    try:
        return {**values, **renamed(flatten(tree))}
    except ConfigError as error:
        raise ConfigError(f"{shown(path)}: {error}") from None


def _find(source: str | Path) -> Path:
    """The file that a preset's name, a path or a run directory means. A preset's name is that preset, whatever else
    lies about under this name; ``./name`` is the file."""
    if str(source) in preset_names():
        return preset_dir() / f"{source}.yaml"
    path = Path(source)
    try:
        inside = path / "config.yaml"
        if inside.exists():
            return inside
        if path.exists() and not path.is_dir():
            return path
    except (OSError, ValueError):  # too long a name, a loop of links: whatever it is, it is not there
        pass
    raise ConfigError(f"config: no file or preset {quoted(str(source))}; {_presets_near(str(source))}")


def read_values(source: str | Path | None = None, **overrides: Any) -> dict[str, Any]:
    """What a preset or a file and the overrides say, by today's names; neither coerced nor checked. Loads no code."""
    values, overrides = {} if source is None else _read(_find(source)), renamed(overrides)
    for group, registry in CHOICES.items():
        chosen = values.get(registry.field)
        if registry.is_foreign(chosen) and overrides.get(registry.field, chosen) != chosen:
            # Its settings are no other's, and only loading it could tell.
            values = {path: x for path, x in values.items() if not path.startswith(f"{group}.")}
    return {**values, **overrides}


def load_config(source: str | Path | None = None, **overrides: Any) -> Config:
    """The configuration from a preset's name or a YAML file (or the defaults), with dotted overrides on top.

    ``load_config("smax_2s3z", **{"algo.td_lambda": 0.3})``. Raises :class:`ConfigError` for anything unfit.
    """
    return build(read_values(source, **overrides))


def read_fields(path: Path) -> dict[str, Any]:
    """Every field of a run's config.yaml by its dotted path, each of its type; defaults for what an earlier version
    did not have, and whatever a later one has besides.

    Names and ranges are not checked, so a run stays readable where its environment is not registered; no code from
    outside is loaded, so the settings of a mixer or a core from there are what the file says. Raises
    :class:`ConfigError`, one line that names the file, for anything else.
    """
    read, known = _read(path), {p: hint for p, hint, _ in fields_of()}
    groups = {p.partition(".")[0] for p in known if "." in p} | CHOICES.keys()
    defaults = flatten(to_dict(Config()))
    try:
        for field_path, value in read.items():
            if field_path in groups:
                raise ConfigError(f"{field_path}: {quoted(value)} is not allowed; it takes a mapping of fields")
            if field_path in known:
                named = typing.get_origin(known[field_path]) is Literal
                read[field_path] = coerce(field_path, str if named else known[field_path], value)
        if "run_dir" not in read:
            raise ConfigError("was cut short: run_dir, a configuration's last field, is not there")
        for group, registry in CHOICES.items():
            read, defaults = _read_known(group, registry, read, defaults)
    except ConfigError as error:
        raise ConfigError(f"{shown(path)}: {error}") from None
    return {**defaults, **read}


def _read_known(
    group: str, registry: Registry, read: dict[str, Any], defaults: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was read, with the settings of a mixer or a core that comes with jqmix of their types and without those of
    others; and the defaults, with its own."""
    cls = registry.known_settings().get(read.get(registry.field, defaults[registry.field]))
    defaults = {path: value for path, value in defaults.items() if not path.startswith(f"{group}.")}
    if cls is None:
        return read, defaults
    own = {path: (hint, f) for path, hint, f in settings_in(cls, f"{group}.")}
    kept = {}
    for path, value in read.items():
        if path in own:
            hint = own[path][0]
            value = coerce(path, str if typing.get_origin(hint) is Literal else hint, value)
        elif path.startswith(f"{group}.") and registry.with_setting(path.removeprefix(f"{group}.")):
            continue
        kept[path] = value
    return kept, defaults | {path: f.default for path, (_, f) in own.items()}


def to_dict(cfg: Config) -> dict[str, Any]:
    return dataclasses.asdict(cfg)


def dump(cfg: Config) -> str:
    """YAML that :func:`load_config` reads back to an equal configuration."""
    return dump_yaml(to_dict(cfg))

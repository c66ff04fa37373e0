"""The configuration: frozen dataclasses, presets, overrides and validation. Imports no JAX.

Every field can be set from a YAML file and from the command line (``--algo.td-lambda 0.6``), through the same
coercion and the same checks; whatever is wrong raises :class:`ConfigError` with one line that names the field.
"""

import ast
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jqmix.inputs import (
    INT32,
    ConfigError,
    check_path_text,
    dump_yaml,
    parse_scalar,
    parse_yaml,
    plain_data,
    quoted,
    read_yaml,
    shorten,
    shown,
    unfit_number,
)

# Highest values that are sensible; what they come to together is for the memory plan.
WIDTH, ROLLOUTS, EPISODES, STEPS = 2**14, 2**20, 10**7, 10**15


def _f(
    default: Any,
    about: str,
    *,
    low: int | float = -math.inf,
    high: int | float = math.inf,
    above: int | float = -math.inf,
) -> Any:
    """A field with its help text and range: low ≤ value ≤ high, and value > above. Floats fit in 32 bits, and whole
    numbers do unless ``high`` says more."""
    meta = {"about": about, "low": low, "high": high, "above": above}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=meta)
    return field(default=default, metadata=meta)


def _mixers() -> tuple[str, ...]:
    """The names in the table of mixers, read from its source: to import it would take JAX."""
    source = (Path(__file__).parent / "networks" / "mixers.py").read_text(encoding="utf-8")
    tables = (n for n in ast.parse(source).body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "MIXERS")
    return tuple(ast.literal_eval(key) for key in next(tables).value.keys)  # type: ignore[union-attr]


if TYPE_CHECKING:
    MixerName = str
else:
    MixerName = Literal[_mixers()]


@dataclass(frozen=True)
class EnvConfig:
    name: str = _f("smax_3m", "the environment (see `jqmix envs`)")
    factory: str | None = _f(None, "package.module:function that builds an environment of your own, in place of a name")
    kwargs: dict[str, Any] = _f({}, "arguments of the environment's factory, as a YAML mapping")
    time_limit: Literal["default", "bootstrap", "terminate"] = _f(
        "default", "what the episode limit means: the episode is cut and its value goes on, or it ends"
    )
    episode_limit: int | None = _f(None, "steps until the time limit (the environment's own unless set)", low=1)


@dataclass(frozen=True)
class AgentConfig:
    hidden: int = _f(64, "width of the agent's layers and GRU", low=1, high=WIDTH)
    recurrent: bool = _f(True, "a GRU; false: a feed-forward layer in its place")
    layer_norm: bool = _f(False, "layer normalisation before the encoder's ReLU and before the Q head (as PQN has)")
    share_parameters: bool = _f(True, "one network for all agents; false: each has its own, and needs no id")
    agent_id: bool = _f(True, "a shared network reads which agent it acts for")
    last_action: bool = _f(True, "the network reads the agent's last action")
    one_kernel: bool = _f(
        False,
        "on a GPU, the GRU's recurrence over a window as one kernel, for widths 16, 32, 64 and 128 (not measured yet)",
    )


@dataclass(frozen=True)
class AlgoConfig:
    mixer: MixerName = _f("qmix", "how agents' values become the team's")
    embed: int = _f(32, "QMIX, Qatten: embedding width E", low=1, high=WIDTH)
    hypernet_hidden: int = _f(
        64, "hidden width of the mixer's networks (QMIX: of the hypernetworks)", low=1, high=WIDTH
    )
    positivity: Literal["abs", "softplus", "square", "none"] = _f(
        "abs", "QMIX: the map that keeps weights positive (none breaks IGM: a control)"
    )
    heads: int = _f(4, "Qatten: attention heads; QPLEX: attention kernels", low=1, high=1024)
    critic_hidden: int = _f(256, "weighted QMIX: hidden width of the unconstrained mixer of Q̂*", low=1, high=WIDTH)
    wqmix_alpha: float = _f(0.5, "weighted QMIX: weight α of what is not to be represented well", above=0, high=1)
    state_norm: Literal["running", "none"] = _f(
        "running", "what the mixer reads: the state normalised by running statistics, or raw"
    )
    gamma: float = _f(0.99, "discount", low=0, high=1)
    target: Literal["peng", "qstar", "watkins", "nstep"] = _f(
        "peng", "what is learned towards: Peng's Q(λ), Q*(λ), Watkins' Q(λ), or the n-step return"
    )
    td_lambda: float = _f(0.6, "λ of the Q(λ) targets; 0 is one-step", low=0, high=1)
    n_step: int = _f(1, "nstep: transitions before the target bootstraps; 1 is one-step", low=1, high=10**6)
    double_q: bool = _f(True, "choose the target's action with the online network")
    target_update: Literal["hard", "soft"] = _f("hard", "copy the target network every target_period, or track by τ")
    target_period: int = _f(200, "hard: windows collected between copies (a window holds an episode or more)", low=1)
    target_tau: float = _f(0.005, "soft: share of the online network taken at each update", above=0, high=1)
    reward_scale: float = _f(1.0, "factor on the rewards that are learned from (reports are unscaled)", above=0)
    reward_norm: Literal["none", "running"] = _f(
        "none",
        "rewards that are learned from: as they are, or (r − mean) / std by running statistics, before the factor",
    )
    init: Literal["default", "orthogonal"] = _f("default", "the agent's dense layers begin as PyTorch's, or orthogonal")
    init_gain: float = _f(0.01, "orthogonal: gain of the Q head (the other layers' is 1)", above=0)


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adam", "rmsprop"] = _f("adam", "adam (β 0.9/0.999, ε 1e-8) or rmsprop (α 0.99, ε 1e-5)")
    lr: float = _f(1e-3, "learning rate", above=0)
    lr_end: float = _f(1.0, "the learning rate falls linearly to this share of lr at total_steps", low=0, high=1)
    grad_clip: float = _f(10.0, "largest global gradient norm", above=0)


@dataclass(frozen=True)
class ExploreConfig:
    eps_start: float = _f(1.0, "ε at the start", low=0, high=1)
    eps_end: float = _f(0.05, "ε after eps_steps", low=0, high=1)
    eps_steps: int = _f(100_000, "environment steps over which ε falls linearly", low=1, high=STEPS)


@dataclass(frozen=True)
class ReplayConfig:
    capacity: int = _f(5000, "windows kept", low=1)
    batch: int = _f(128, "windows per update", low=1, high=ROLLOUTS)
    dtype: Literal["float32", "bfloat16"] = _f(
        "float32", "how what the agents and the mixer see is kept; bfloat16 halves it, to 8 significant bits"
    )
    prioritised: bool = _f(False, "sample windows by their TD errors, with importance weights; false: uniformly")
    priority_alpha: float = _f(0.6, "prioritised: exponent of the priorities; 0 is uniform", low=0, high=1)
    priority_beta: float = _f(
        0.4, "prioritised: exponent of the importance weights at the start; it rises to 1 at total_steps", low=0, high=1
    )


@dataclass(frozen=True)
class EvalConfig:
    every: int = _f(50_000, "environment steps between greedy evaluations (and log lines)", low=1, high=STEPS)
    episodes: int = _f(
        64,
        "whole greedy episodes per evaluation, each counted once; played by the rollouts, a window for each",
        low=1,
        high=EPISODES,
    )
    absolute: int = _f(
        10,
        "at the end, the parameters that played best play so many times eval.episodes new ones; 0: they don't",
        low=0,
        high=1000,
    )


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = _f(
        100_000, "environment steps between checkpoints, from which `jqmix resume` goes on", low=1, high=STEPS
    )
    keep: int = _f(2, "the newest so many stay", low=1)
    replay: bool = _f(True, "checkpoints hold the replay; false: smaller, but what is resumed begins to fill it anew")
    share: float = _f(
        0.02,
        "largest share of a run's time that they take: where one takes long, they are fewer",
        above=0,
        high=1,
    )


@dataclass(frozen=True)
class Config:
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    rollouts: int = _f(8, "parallel environments per member", low=1, high=ROLLOUTS)
    window: int | None = _f(None, "transitions per window, T (the episode limit unless set)", low=1)
    updates: int = _f(1, "gradient updates per iteration (one window from every rollout)", low=1, high=10**6)
    total_steps: int = _f(1_000_000, "environment steps per member, summed over its rollouts", low=1, high=STEPS)
    seed: int = _f(0, "first seed", low=0, high=2**31 - 1)
    seeds: int = _f(1, "members: seeds seed … seed + seeds − 1, trained in one program", low=1, high=10_000)
    group: int | None = _f(None, "members trained at once, group after group (as many as fit unless set)", low=1)
    on_nan: Literal["freeze", "stop"] = _f(
        "freeze", "a member whose numbers are no longer finite stays as it was while the others go on; or all stop"
    )
    run_dir: str | None = _f(None, "where the run is written (runs/<env>_<mixer>_<time> unless set)")


# Fields, values, coercion


def fields_of(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Every leaf field as (dotted path, type, field)."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        path = prefix + f.name
        if dataclasses.is_dataclass(hints[f.name]):
            yield from fields_of(hints[f.name], path + ".")
        else:
            yield path, hints[f.name], f


def describe_type(hint: Any) -> str:
    """What a field takes, for messages and help."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else describe_type(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) is dict:
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def _coerce(path: str, hint: Any, value: Any) -> Any:
    """``value`` as the field's type, or ConfigError. Text from the command line and YAML values alike."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    wrong = ConfigError(f"{path}: {quoted(value)} is not allowed; it takes {describe_type(hint)}")
    if origin is Literal:
        if not isinstance(value, str) or value not in typing.get_args(hint):
            raise wrong
        return value
    if origin is dict:
        return _mapping(path, value, wrong)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise wrong
    if hint is str:
        if not isinstance(value, str) or not value:
            raise wrong
        return value
    number = parse_scalar(value.strip()) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise wrong
    if isinstance(number, float) and not math.isfinite(number):
        raise wrong
    if hint is float:
        return _float(path, number)
    if number != int(number):
        raise wrong
    return int(number)


def _float(path: str, number: int | float) -> float:
    unfit = unfit_number(float(number) if abs(number) < 10**300 else 1e300)
    if unfit:
        raise ConfigError(f"{path}: {quoted(number)} {unfit}")
    return float(number)


def _mapping(path: str, value: Any, wrong: ConfigError) -> dict[str, Any]:
    """Plain data, by name; from the command line it is text."""
    if isinstance(value, str):
        try:
            value = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {quoted(value)} is not allowed; {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong
    return plain_data(path, value)


def coerce_text(path: str, text: str) -> Any:
    """What a flag's text means for the field ``path``. Raises :class:`ConfigError` for an unknown field or value."""
    known = {p: hint for p, hint, _ in fields_of()}
    if path not in known:
        raise _unknown(path, known)
    return _coerce(path, known[path], text)


def _unknown(path: str, known: Mapping[str, Any]) -> ConfigError:
    name = shown(path)
    inside = [p for p in known if p.startswith(f"{path}.")]
    if inside:
        return ConfigError(f"{name}: no field but a group of fields, such as {inside[0]}")
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else " (`jqmix train --help` lists all)"
    return ConfigError(f"{name}: no such field{hint}")


def _in_range(path: str, f: dataclasses.Field, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high, above = f.metadata["low"], f.metadata["high"], f.metadata["above"]
    if isinstance(value, int):
        high = min(high, INT32) if high == math.inf else high
    if low <= value <= high and value > above:
        return
    allowed = [f"≥ {_spelled(low)}"] * (low > -math.inf) + [f"> {_spelled(above)}"] * (above > -math.inf)
    allowed += [f"≤ {_spelled(high)}"] * (high < math.inf)
    raise ConfigError(f"{path}: {quoted(value)} is out of range; it must be {' and '.join(allowed)}")


def _spelled(bound: int | float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


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


def build(values: Mapping[str, Any]) -> Config:
    """A validated Config from dotted paths to values; everything else keeps its default."""
    known = {path: (hint, f) for path, hint, f in fields_of()}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        if path not in known:
            raise _unknown(str(path), known)
        hint, f = known[path]
        value = _coerce(path, hint, value)
        _in_range(path, f, value)
        group, _, name = path.rpartition(".")
        nested.setdefault(group, {})[name] = value
    top = nested.pop("", {})
    hints = typing.get_type_hints(Config)
    cfg = Config(**top, **{group: hints[group](**leaf) for group, leaf in nested.items()})
    check(cfg)
    return cfg


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
    if cfg.replay.batch > cfg.replay.capacity:
        raise ConfigError(
            f"replay.batch: {cfg.replay.batch} windows do not fit in replay.capacity {cfg.replay.capacity}"
        )
    if cfg.replay.capacity % cfg.rollouts:
        near = max(cfg.replay.capacity // cfg.rollouts, 1) * cfg.rollouts
        raise ConfigError(
            f"replay.capacity: {cfg.replay.capacity} must be a multiple of rollouts ({cfg.rollouts}), e.g. {near}"
        )
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


def _registered_limit(cfg: Config) -> int | None:
    """The episode limit of a built-in environment with its default arguments, where the registry knows it."""
    from jqmix.envs import registry

    if cfg.env.factory is not None or cfg.env.kwargs:
        return None
    sizes = registry.entries()[cfg.env.name].sizes
    return sizes.episode_limit if sizes else None


def check_window(cfg: Config, episode_limit: int) -> None:
    """A window must hold a whole episode: hidden states in replay are exact only from a reset on. Slots and steps are
    counted in 32 bits."""
    slots = (cfg.window or episode_limit) + 1
    for path, count in (("rollouts", cfg.rollouts), ("replay.capacity", cfg.replay.capacity)):
        if count * slots > INT32:
            raise ConfigError(f"{path}: {count} windows of {slots} slots are more than 32 bits count")
    if cfg.eval.episodes * episode_limit > INT32:
        raise ConfigError(
            f"eval.episodes: {cfg.eval.episodes} episodes of {episode_limit} steps are more than 32 bits count"
        )
    if cfg.window is not None and cfg.window < episode_limit:
        raise ConfigError(f"window: {cfg.window} does not cover an episode; it must be ≥ {episode_limit} (the limit)")


# Options without effect

MIXERS_BY_STATE = ("qmix", "qatten", "qplex", "qtran", "cw_qmix", "ow_qmix")
# A field, another one, and the values of it without which the first does nothing.
NEEDS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("env.name", "env.factory", (None,)),
    ("agent.agent_id", "agent.share_parameters", (True,)),
    ("agent.one_kernel", "agent.recurrent", (True,)),
    ("agent.one_kernel", "agent.hidden", (16, 32, 64, 128)),
    ("algo.embed", "algo.mixer", ("qmix", "qatten", "cw_qmix", "ow_qmix")),
    ("algo.hypernet_hidden", "algo.mixer", MIXERS_BY_STATE),
    ("algo.positivity", "algo.mixer", ("qmix", "cw_qmix", "ow_qmix")),
    ("algo.heads", "algo.mixer", ("qatten", "qplex")),
    ("algo.critic_hidden", "algo.mixer", ("cw_qmix", "ow_qmix")),
    ("algo.wqmix_alpha", "algo.mixer", ("cw_qmix", "ow_qmix")),
    ("algo.state_norm", "algo.mixer", MIXERS_BY_STATE),
    ("algo.td_lambda", "algo.target", ("peng", "qstar", "watkins")),
    ("algo.n_step", "algo.target", ("nstep",)),
    ("algo.target_period", "algo.target_update", ("hard",)),
    ("algo.target_tau", "algo.target_update", ("soft",)),
    ("algo.init_gain", "algo.init", ("orthogonal",)),
    ("replay.priority_alpha", "replay.prioritised", (True,)),
    ("replay.priority_beta", "replay.prioritised", (True,)),
]


def check_effects(cfgs: Sequence[Config], given: Iterable[str]) -> None:
    """Fields that were asked for must do something in one of these configurations, or be as they always are.

    For what is given on a command line. A file may hold what another mixer or target would need: it is there to be
    varied. Raises :class:`ConfigError`.
    """
    flat, defaults, given = [flatten(to_dict(cfg)) for cfg in cfgs], flatten(to_dict(Config())), set(given)
    for path, gate, values in NEEDS:
        if path not in given or all(tree[path] == defaults[path] for tree in flat):
            continue
        if not any(tree[gate] in values for tree in flat):
            found, needed = _word(flat[0][gate]), " or ".join(map(_word, values))
            raise ConfigError(f"{path}: has no effect with {gate} {found}; it needs {gate} {needed}")
    if "explore.eps_steps" in given and all(cfg.explore.eps_end == cfg.explore.eps_start for cfg in cfgs):
        raise ConfigError("explore.eps_steps: has no effect where explore.eps_end equals explore.eps_start")


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
    return {**values, **flatten(tree)}


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


def load_config(source: str | Path | None = None, **overrides: Any) -> Config:
    """The configuration from a preset's name or a YAML file (or the defaults), with dotted overrides on top.

    ``load_config("smax_2s3z", **{"algo.td_lambda": 0.3})``. Raises :class:`ConfigError` for anything unfit.
    """
    values = {} if source is None else _read(_find(source))
    return build({**values, **overrides})


def read_fields(path: Path) -> dict[str, Any]:
    """Every field of a run's config.yaml by its dotted path, each of its type; defaults for what an earlier version
    did not have, and whatever a later one has besides.

    Names and ranges are not checked, so a run stays readable where its environment is not registered. Raises
    :class:`ConfigError`, one line that names the file, for anything else.
    """
    read, known = _read(path), {p: hint for p, hint, _ in fields_of()}
    groups = {p.partition(".")[0] for p in known if "." in p}
    try:
        for field_path, value in read.items():
            if field_path in groups:
                raise ConfigError(f"{field_path}: {quoted(value)} is not allowed; it takes a mapping of fields")
            if field_path in known:
                named = typing.get_origin(known[field_path]) is Literal
                read[field_path] = _coerce(field_path, str if named else known[field_path], value)
        if "run_dir" not in read:
            raise ConfigError("was cut short: run_dir, a configuration's last field, is not there")
    except ConfigError as error:
        raise ConfigError(f"{shown(path)}: {error}") from None
    return {**flatten(to_dict(Config())), **read}


def to_dict(cfg: Config) -> dict[str, Any]:
    return dataclasses.asdict(cfg)


def dump(cfg: Config) -> str:
    """YAML that :func:`load_config` reads back to an equal configuration."""
    return dump_yaml(to_dict(cfg))

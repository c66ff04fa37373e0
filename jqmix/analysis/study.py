"""Studies: configurations around one another, named, and what is to be shown of them. Imports no JAX.

A study's folder holds a run directory per configuration and ``study.json``, which says what to compare.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from jqmix.analysis.published import read_published
from jqmix.config import (
    CHOICES,
    Config,
    ConfigError,
    build,
    coerce_text,
    flatten,
    foreign_code,
    has_effect,
    renamed,
    to_dict,
)
from jqmix.envs.registry import entries
from jqmix.files import read_json, write_text
from jqmix.inputs import quoted, shown

STUDY = "study.json"
MOST_RUNS = 1000  # configurations of a study


@dataclass(frozen=True)
class Variant:
    """One value of a trick: its label, and the run directory in the study's folder."""

    label: str
    run: str


@dataclass(frozen=True)
class Trick:
    """A group of variants that differ in one thing, and what was published of it: which way the results pointed, and
    the results themselves (``published.yaml``).

    ``name`` is for the command line, ``title`` for readers.
    """

    name: str
    title: str
    direction: str
    published: str
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class Study:
    """Configurations by the name of their run directory, and the tricks that compare them (none for a sweep)."""

    configs: dict[str, Config]
    tricks: list[Trick]

    def save(self, folder: Path) -> None:
        tricks = [asdict(trick) for trick in self.tricks]
        configs = {name: to_dict(cfg) for name, cfg in self.configs.items()}
        tree = {"tricks": tricks, "configs": configs}
        write_text(folder / STUDY, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def load_tricks(folder: Path) -> list[Trick]:
    """The tricks of a study's folder; none where it is not a study's, or a sweep's."""
    path = folder / STUDY
    if not path.is_file():
        return []
    tree = read_json(path)
    try:
        return [
            _texts(Trick(**{**t, "variants": tuple(_texts(Variant(**v)) for v in t["variants"])}))
            for t in ({"direction": "–"} | t for t in tree["tricks"])
        ]
    except (KeyError, TypeError):
        raise ConfigError(f"{shown(path)}: not a study") from None


Named = TypeVar("Named", Trick, Variant)


def _texts(named: Named) -> Named:
    """A trick or a variant as it is, if all that it says is text. Raises ``TypeError``."""
    if not all(isinstance(value, str) for name, value in vars(named).items() if name != "variants"):
        raise TypeError
    return named


def load_study(folder: Path, trust: bool = False) -> Study:
    """A study as it was begun. Raises ``ConfigError`` where that is not to be had, and, unless told to ``trust`` it,
    where it names code from outside to be executed."""
    tricks, path = load_tricks(folder), folder / STUDY
    configs = read_json(path).get("configs")
    if not isinstance(configs, dict) or not all(isinstance(tree, dict) for tree in configs.values()) or not configs:
        raise ConfigError(f"{shown(path)}: holds no configurations to go on with")
    with _naming(path):
        values = {_folder_name(name): renamed(flatten(tree)) for name, tree in configs.items()}
    named = {field: code for some in values.values() for field, code in foreign_code(some).items()}
    for field, code in () if trust else named.items():
        raise ConfigError(f"{field}: this study names code of its own ({shown(code)}); --trust runs it")
    with _naming(path):
        return Study({name: build(some) for name, some in values.items()}, tricks)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What is wrong within is wrong with this file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{shown(path)}: {error}") from None


def _folder_name(name: str) -> str:
    """A run directory's name in a study's folder, and no way out of it."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise ConfigError(f"{quoted(name)} is not a folder's name")
    return name


# Grids


def parse_grid(texts: Sequence[str], cfg: Config | None = None) -> dict[str, list[Any]]:
    """``field=v1,v2`` for each field, as the field's type; settings of a mixer or a core as those have them that the
    grid or ``cfg`` (the defaults unless given) names. Raises ``ConfigError``."""
    split: dict[str, list[str]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        path = path.replace("-", "_")
        if not equals or not values:
            raise ConfigError(f"grid: {quoted(text)} must look like algo.td_lambda=0,0.3,0.6")
        if values.count(",") >= MOST_RUNS:
            raise ConfigError(f"grid: {shown(path)} has more than {MOST_RUNS} values")
        pairs = [pair for value in values.split(",") for pair in renamed({path: value}).items()]
        path = pairs[0][0]
        if path in split:
            raise ConfigError(f"grid: {shown(path)} is given twice")
        if path in ("env.kwargs", "run_dir", "group", "log"):
            raise ConfigError(f"grid: {path} is not varied in a study")
        split[path] = [value for _, value in pairs]
    own = flatten(to_dict(cfg or Config()))
    named = [[{r.field: name} for name in split.get(r.field, [own[r.field]])] for r in CHOICES.values()]
    choices = [{k: v for some in each for k, v in some.items()} for each in itertools.product(*named)]
    return {path: list(dict.fromkeys(coerce_text(path, v, *choices) for v in split[path])) for path in split}


def vary(cfg: Config, changes: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> Config:
    """``cfg`` with these fields changed, validated. Where it lies and its group are its own business.

    ``source``: what ``cfg`` was made of, which may hold settings of other mixers and cores.
    """
    own = {**(source or {}), **flatten(to_dict(cfg))}
    for group, registry in CHOICES.items():
        name = changes.get(registry.field, own[registry.field])
        if name != own[registry.field] and registry.is_foreign(own[registry.field]):
            own = {path: value for path, value in own.items() if not path.startswith(f"{group}.")}
    varied = build({**own, "run_dir": None, "group": None, **changes})
    if varied.eval.every >= varied.total_steps:
        raise ConfigError(
            f"eval.every: {varied.eval.every} must be < total_steps {varied.total_steps}; a study's curves take two "
            "evaluations or more"
        )
    return varied


def run_name(changes: Mapping[str, Any]) -> str:
    """A folder's name: ``algo.td_lambda=0.3,agent.hidden=64``. Raises ``ConfigError`` where it is too long for one."""
    name = ",".join(f"{path}={value}" for path, value in changes.items()).replace("/", "_") or "base"
    if len(name.encode()) > 255:
        raise ConfigError(f"grid: {shown(name)} is too long for a folder's name; vary fewer fields")
    return name


def sweep(cfg: Config, grid: Mapping[str, Sequence[Any]], source: Mapping[str, Any] | None = None) -> Study:
    """Every combination of the grid's values. What one combination's mixer or core does not have is not varied in it.

    ``source``: what ``cfg`` was made of (see :func:`vary`).
    """
    count = math.prod(map(len, grid.values()))
    if count > MOST_RUNS:
        raise ConfigError(f"grid: {count} combinations; a study has at most {MOST_RUNS}")
    configs = {}
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values, strict=True))
        varied = vary(cfg, changes, source)
        has = flatten(to_dict(varied))
        configs[run_name({path: value for path, value in changes.items() if path in has})] = varied
    return Study(configs, [])


# The implementation tricks

# Their names on the command line, and their titles for readers.
TRICKS = {
    "optimiser": "optimiser",
    "rollouts": "rollouts, updates per collection held",
    "rollouts_same_ratio": "rollouts, replay ratio held",
    "replay": "replay size",
    "epsilon": "ε steps",
    "lambda": "λ",
    "width": "recurrent width",
}
Changes = dict[str, Any]


def ablation(cfg: Config, grid: Mapping[str, Sequence[Any]] | None = None, only: Sequence[str] = ()) -> Study:
    """The six tricks of 2102.03479, each varied around ``cfg`` with everything else held.

    ``grid`` replaces a trick's values (the configuration's own always stays beside them); ``only`` names the tricks to
    study. The number of rollouts is studied twice: as published, with the same updates per collection, and with the
    same updates per environment step.
    """
    unknown = [name for name in only if name not in TRICKS]
    if unknown:
        raise ConfigError(f"only: {quoted(unknown[0])} is not one of {', '.join(TRICKS)}")
    without = [name for name in only if not _applies(name, cfg)]
    if without:
        raise ConfigError(f"only: {without[0]} has no effect with algo.name {cfg.algo.name}")
    grid, fields = grid or {}, {name: _field(name, cfg) for name in only or TRICKS if _applies(name, cfg)}
    foreign = [path for path in grid if path not in fields.values()]
    if foreign:
        raise ConfigError(
            f"grid: {shown(foreign[0])} is not the field of a trick that is studied ({', '.join(fields)})"
        )
    configs: dict[str, Config] = {"base": vary(cfg, {})}
    tricks = []
    for name, path in fields.items():
        own, variants = flatten(to_dict(cfg))[path], []
        for value in _sorted([*grid.get(path, _values(name, cfg)), own]):
            changes = _changes(name, cfg, path, value)
            if changes is None:
                continue
            variant = vary(cfg, changes)
            same = [run for run, known in configs.items() if known == variant]
            run = same[0] if same else run_name(changes)
            configs.setdefault(run, variant)
            variants.append(Variant(_spelled(value) + " (config)" * (run == "base"), run))
        if len({v.run for v in variants}) > 1:
            tricks.append(_make_trick(name, variants))
        elif only:
            raise ConfigError(f"only: {name} has no value beside the configuration's {_spelled(own)}; see --grid")
    return Study(configs, tricks)


def _make_trick(name: str, variants: Sequence[Variant]) -> Trick:
    """A trick with these variants, and what was published of it."""
    finding = read_published().findings[name]
    return Trick(name, TRICKS[name], finding.direction, finding.results, tuple(variants))


def _applies(name: str, cfg: Config) -> bool:
    """Whether what a trick varies does anything in this configuration."""
    varied = [_field(name, cfg)] + ["updates"] * (name == "rollouts_same_ratio")
    return all(has_effect(path, cfg) for path in varied)


def _field(name: str, cfg: Config) -> str:
    """What a trick varies. Where targets are n-step returns, n is what λ is elsewhere."""
    return {
        "optimiser": "optim.name",
        "rollouts": "rollouts",
        "rollouts_same_ratio": "rollouts",
        "replay": "replay.capacity",
        "epsilon": "explore.eps_steps",
        "lambda": "algo.n_step" if cfg.algo.target == "nstep" else "algo.td_lambda",
        "width": "agent.hidden",
    }[name]


def _values(name: str, cfg: Config) -> Sequence[Any]:
    """A trick's values, around the configuration's."""
    e, steps, hidden = cfg.rollouts, cfg.explore.eps_steps, cfg.agent.hidden
    fewer = [n for n in (e // 4, e // 2) if n]
    return {
        "optimiser": ("adam", "rmsprop"),
        "rollouts": fewer if e > 1 else (2, 4),
        # Fewer rollouts than updates can be shared out among keep no ratio: then more of them.
        "rollouts_same_ratio": fewer
        if len(fewer) > 1 and all(cfg.updates * n % e == 0 for n in fewer)
        else (2 * e, 4 * e),
        "replay": _replay_sizes(cfg),
        "epsilon": (max(steps // 5, 1), 5 * steps),
        "lambda": (1, 3, 5) if cfg.algo.target == "nstep" else (0.0, 0.3, 0.5, 0.6, 0.9),
        "width": (max(hidden // 2, 1), 2 * hidden),
    }[name]


def _changes(name: str, cfg: Config, path: str, value: Any) -> Changes | None:
    """What makes a trick's variant of a value; None where it cannot be had, as it holds no ratio."""
    if path != "rollouts":
        return {path: value}
    if value < 1:
        raise ConfigError(f"grid: rollouts: {value} is out of range; it must be ≥ 1")
    capacity = _capacity(cfg, value, cfg.replay.capacity)
    changes = {"rollouts": value} | ({"replay.capacity": capacity} if capacity != cfg.replay.capacity else {})
    if name == "rollouts" or value == cfg.rollouts:
        return changes
    if cfg.updates * value % cfg.rollouts:
        return None
    return changes | {"updates": cfg.updates * value // cfg.rollouts}


def _replay_sizes(cfg: Config) -> list[int]:
    """A fifth, two fifths and twice the replay; where a run collects less than it holds, of what it collects."""
    sizes = entries()[cfg.env.name].sizes if cfg.env.factory is None else None
    length = cfg.window or cfg.env.episode_limit or (sizes.episode_limit if sizes else None)
    collected = cfg.total_steps // length if length else math.inf
    most = min(cfg.replay.capacity, collected)
    wanted = [0.2 * most, 0.4 * most] + [2 * cfg.replay.capacity] * (collected > cfg.replay.capacity)
    return [_capacity(cfg, cfg.rollouts, size) for size in wanted]


def _capacity(cfg: Config, rollouts: int, size: int | float) -> int:
    """A replay of about that size: a multiple of the rollouts, and no less than a batch."""
    return -(-max(int(size), cfg.replay.batch) // rollouts) * rollouts


def _spelled(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _sorted(values: Sequence[Any]) -> list[Any]:
    unique = list(dict.fromkeys(values))
    return unique if isinstance(unique[0], str) else sorted(unique)

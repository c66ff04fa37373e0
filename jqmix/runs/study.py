"""Studies: configurations around one another, named, and what is to be shown of them. Imports no JAX.

A study's folder holds a run directory per configuration and ``study.json``, which says what to compare.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jqmix.config import Config, ConfigError, build, coerce_text, flatten, to_dict

STUDY = "study.json"
TRICKS = ("optimiser", "rollouts", "rollouts_same_ratio", "replay", "epsilon", "lambda", "width")
LAMBDAS = (0.0, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class Variant:
    """One value of a trick: its label, and the run directory in the study's folder."""

    label: str
    run: str


@dataclass(frozen=True)
class Trick:
    """A group of variants that differ in one thing; ``published`` is what 2102.03479 found (win rates on SMAC, %).

    ``name`` is for the command line, ``title`` for readers.
    """

    name: str
    title: str
    published: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Study:
    """Configurations by the name of their run directory, and the tricks that compare them (none for a sweep)."""

    configs: dict[str, Config]
    tricks: list[Trick]

    def save(self, folder: Path) -> None:
        text = json.dumps({"tricks": [asdict(trick) for trick in self.tricks]}, indent=1, ensure_ascii=False)
        (folder / STUDY).write_text(text + "\n", encoding="utf-8")


def load_tricks(folder: Path) -> list[Trick]:
    """The tricks of a study's folder; none where it is not a study's, or a sweep's."""
    path = folder / STUDY
    if not path.is_file():
        return []
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return [
            Trick(t["name"], t["title"], t["published"], tuple(Variant(**v) for v in t["variants"]))
            for t in tree["tricks"]
        ]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{path}: not a study") from None


# Grids


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``field=v1,v2`` for each field, as the field's type. Raises ``ConfigError``."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        path = path.replace("-", "_")
        if not equals or not values:
            raise ConfigError(f"grid: {text!r} must look like algo.td_lambda=0,0.3,0.6")
        if path in grid:
            raise ConfigError(f"grid: {path} is given twice")
        grid[path] = list(dict.fromkeys(coerce_text(path, value) for value in values.split(",")))
    return grid


def vary(cfg: Config, changes: Mapping[str, Any]) -> Config:
    """``cfg`` with these fields changed, validated. Where it lies and its group are its own business."""
    varied = build({**flatten(to_dict(cfg)), "run_dir": None, "group": None, **changes})
    if varied.eval.every >= varied.total_steps:
        raise ConfigError(
            f"eval.every: {varied.eval.every} must be < total_steps {varied.total_steps}; a study's curves take two "
            "evaluations or more"
        )
    return varied


def name_of(changes: Mapping[str, Any]) -> str:
    """A folder's name: ``algo.td_lambda=0.3,agent.hidden=64``."""
    return ",".join(f"{path}={value}" for path, value in changes.items()).replace("/", "_") or "base"


def sweep(cfg: Config, grid: Mapping[str, Sequence[Any]]) -> Study:
    """Every combination of the grid's values."""
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return Study({name_of(changes): vary(cfg, changes) for changes in combinations}, [])


# The implementation tricks


def ablation(cfg: Config, grid: Mapping[str, Sequence[Any]] | None = None, only: Sequence[str] = ()) -> Study:
    """The six tricks of 2102.03479, each varied around ``cfg`` with everything else held.

    ``grid`` replaces a trick's values (the configuration's own always stays beside them); ``only`` names the tricks to
    study. The number of rollouts is studied twice: as published, with the same updates per collection, and with the
    same updates per environment step.
    """
    found = {name: (title, published, rows) for name, title, published, rows in _tricks(cfg, dict(grid or {}))}
    unknown = [name for name in only if name not in found]
    if unknown:
        raise ConfigError(f"only: {unknown[0]!r} is not one of {', '.join(found)}")
    configs: dict[str, Config] = {"base": vary(cfg, {})}
    tricks = []
    for name in only or found:
        title, published, rows = found[name]
        variants = []
        for label, changes in rows:
            variant = vary(cfg, changes)
            same = [run for run, known in configs.items() if known == variant]
            run = same[0] if same else name_of(changes)
            configs.setdefault(run, variant)
            variants.append(Variant(f"{label} (config)" if run == "base" else label, run))
        if len({v.run for v in variants}) > 1:
            tricks.append(Trick(name, title, published, tuple(variants)))
    return Study(configs, tricks)


Rows = list[tuple[str, dict[str, Any]]]  # label, changes


def _tricks(cfg: Config, grid: dict[str, Sequence[Any]]) -> Iterator[tuple[str, str, str, Rows]]:
    own = flatten(to_dict(cfg))

    def rows(path: str, defaults: Sequence[Any]) -> Rows:
        values = [*grid.pop(path, defaults), own[path]]
        return [(_spelled(value), {path: value}) for value in _sorted(values)]

    e, u, hidden = cfg.rollouts, cfg.updates, cfg.agent.hidden
    yield (
        "optimiser",
        "optimiser",
        f"Adam over RMSProp with 8 rollouts: corridor 81 / 0, 3s5z_vs_3s6z 24 / 0 (here: {e} rollouts)",
        rows("optim.name", ("adam", "rmsprop")),
    )
    numbers = _sorted([*grid.pop("rollouts", [n for n in (e // 4, e // 2) if n] if e > 1 else [2, 4]), e])
    published = "8 / 4 / 2: 3s5z_vs_3s6z 57 / 74 / 79, MMM2 96 / 96 / 89, corridor 92 / 93 / 70"
    yield (
        "rollouts",
        "rollouts, updates per collection held",
        published,
        [(str(n), _with_rollouts(cfg, n)) for n in numbers],
    )
    held = [(n, u * n // e) for n in numbers if u * n % e == 0 and u * n >= e]
    yield (
        "rollouts_same_ratio",
        "rollouts, replay ratio held",
        "not studied: there the ratio changed with the number of rollouts",
        [(str(n), _with_rollouts(cfg, n) | ({"updates": updates} if n != e else {})) for n, updates in held],
    )
    sizes = [_capacity(cfg, e, factor) for factor in (0.2, 0.4, 2.0)]
    yield (
        "replay",
        "replay size",
        "2k / 5k / 10k / 20k: 5m_vs_6m 79 / 80 / 81 / 74, MMM2 88 / 96 / 97 / 98, 3s5z_vs_3s6z 41 / 57 / 61 / 23",
        rows("replay.capacity", sizes),
    )
    steps = cfg.explore.eps_steps
    yield (
        "epsilon",
        "ε steps",
        "100k / 500k / 1000k: 6h_vs_8z 32 / 77 / 0, 3s5z_vs_3s6z 57 / 76 / –",
        rows("explore.eps_steps", (max(steps // 5, 1), 5 * steps)),
    )
    yield (
        "lambda",
        "λ",
        "0 / 0.3 / 0.5 / 0.6 / 0.9: corridor 81 / 95 / 90 / 93 / 91, 3s5z_vs_3s6z 24 / 53 / 61 / 57 / 33, "
        "6h_vs_8z 46 / 76 / 77 / 77 / 18",
        rows("algo.td_lambda", LAMBDAS),
    )
    yield (
        "width",
        "recurrent width",
        "64 / 256 (GRU): 3s5z_vs_3s6z 57 / 80, corridor 93 / 93, MMM2 96 / 88",
        rows("agent.hidden", (max(hidden // 2, 1), 2 * hidden)),
    )
    if grid:
        raise ConfigError(f"grid: {next(iter(grid))} is not the field of a trick")


def _spelled(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _sorted(values: Sequence[Any]) -> list[Any]:
    unique = list(dict.fromkeys(values))
    return unique if isinstance(unique[0], str) else sorted(unique)


def _capacity(cfg: Config, rollouts: int, factor: float) -> int:
    """About that share of the replay: a multiple of the rollouts, and no less than a batch."""
    wanted = max(int(cfg.replay.capacity * factor), cfg.replay.batch)
    return -(-wanted // rollouts) * rollouts


def _with_rollouts(cfg: Config, rollouts: int) -> dict[str, Any]:
    """So many rollouts; the replay keeps its size, but for what the rollouts need it to be a multiple of."""
    capacity = _capacity(cfg, rollouts, 1.0)
    return {"rollouts": rollouts} | ({"replay.capacity": capacity} if capacity != cfg.replay.capacity else {})

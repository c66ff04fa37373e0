"""Runs: compile, chunk after chunk, log, save. Nothing is written before everything that can be checked was.

Configurations of one shape, which differ in seeds and traced hyperparameters alone, are trained in one program, and
each writes a run directory of its own.
"""

import datetime
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jqmix.config import Config, ConfigError, dump, flatten, to_dict
from jqmix.learning.learner import TRACED
from jqmix.learning.train import Member, Shared
from jqmix.runs import checkpoint
from jqmix.runs.devices import make_mesh
from jqmix.runs.jax_settings import settled
from jqmix.runs.loggers import Line, MetricsFile, Terminal, to_lines
from jqmix.runs.memory import MemoryPlan, make_plan
from jqmix.runs.population import (
    Population,
    Starts,
    abstract_member,
    compile_population,
    parameter_count,
    replay_ratio,
    starts_of,
)
from jqmix.runs.provenance import commit
from jqmix.types import EnvSpec


@dataclass(frozen=True)
class Result:
    """What a run leaves: every log line, the members' parameters (leaves lead with P), and where it was written."""

    config: Config
    metrics: list[Line]
    params: Any
    run_dir: Path
    trace_s: float
    compile_s: float
    train_s: float


def _new_run_dir(cfg: Config, spec: EnvSpec) -> Path:
    """The run's folder, made. Raises ``ConfigError`` rather than write into one that holds anything."""
    if cfg.run_dir is not None:
        path = Path(cfg.run_dir)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"run_dir: {path} already exists and is not empty; nothing was overwritten")
        path.mkdir(parents=True, exist_ok=True)
        return path
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{spec.name}_{cfg.algo.mixer}_{stamp}"
    for n in range(1000):
        path = base if n == 0 else base.with_name(f"{base.name}_{n}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise ConfigError(f"run_dir: {base} and a thousand after it are taken")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(devices: int = 1) -> dict[str, Any]:
    """What a result was made with: versions, devices (so many of them) and commit."""
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{p: _version(p) for p in ("jqmix", "jax", "jaxlib", "flax", "optax", "jaxmarl")},
        },
        "device": {"platform": device.platform, "kind": device.device_kind, "count": devices},
        "commit": commit(),
    }


def metadata(cfg: Config, spec: EnvSpec, member: Member, plan: MemoryPlan) -> dict[str, Any]:
    return provenance(make_mesh(plan.group, cfg.replay.batch).size) | {
        "seeds": list(range(cfg.seed, cfg.seed + cfg.seeds)),
        "environment": spec._asdict() | {"reward_range": [str(x) for x in spec.reward_range]},
        "replay_ratio": replay_ratio(cfg, spec),
        "parameter_count": parameter_count(member),
        "memory_plan": plan._asdict(),
    }


# Fields in which configurations of one shape may differ.
FREE = {*TRACED.values(), "seed", "seeds", "group", "run_dir"}


def shape_of(cfg: Config) -> str:
    """Equal for configurations that one compiled program trains."""
    return json.dumps({k: v for k, v in flatten(to_dict(cfg)).items() if k not in FREE}, sort_keys=True)


def train(cfg: Config, quiet: bool = False) -> Result:
    """Trains a population to ``total_steps`` and writes its run directory.

    Raises ``ConfigError`` (or ``EnvError``) for anything unfit before compiling or writing. Interrupted (Ctrl-C), it
    saves what was learned, says so, and raises ``KeyboardInterrupt``.
    """
    return train_together([cfg], quiet)[0]


@settled()
def train_together(cfgs: Sequence[Config], quiet: bool = False) -> list[Result]:
    """The same for configurations of one shape: all their members in one program, a run directory for each of them."""
    if len({shape_of(cfg) for cfg in cfgs}) > 1:
        raise ValueError("configurations that are trained together may differ in traced fields and seeds alone")
    whole = replace(cfgs[0], seeds=sum(cfg.seeds for cfg in cfgs), group=cfgs[0].group if len(cfgs) == 1 else None)
    terminal = Terminal(whole.total_steps, quiet)
    with terminal.waiting("building the environment …"):
        spec, member = abstract_member(whole)
    plan = make_plan(whole, spec, member)
    runs = [_open_run(cfg, metadata(cfg, spec, member, plan), spec, terminal) for cfg in cfgs]
    terminal.say(_headline(whole, spec, metadata(whole, spec, member, plan)))
    terminal.say(str(plan))

    with terminal.waiting("tracing and compiling …"):
        population = compile_population(whole, plan.group, starts_of(*cfgs))
    terminal.say(f"traced in {population.trace_s:.1f} s, compiled in {population.compile_s:.1f} s")
    log = _Log([_Place(run_dir, i, cfg.seed + i) for run_dir, cfg in runs for i in range(cfg.seeds)], terminal)
    members, shared, interrupted = _train_groups(population, starts_of(*cfgs), plan.group, log)
    train_s = log.elapsed()
    log.close()
    results, first = [], 0
    for run_dir, cfg in runs:
        mine = jax.tree.map(lambda x, i=slice(first, first + cfg.seeds): x[i], members)
        saved = checkpoint.save(run_dir, mine, shared)
        times = (population.trace_s, population.compile_s, train_s)
        results.append(Result(cfg, log.lines[run_dir], mine["learner"].params, run_dir, *times))
        first += cfg.seeds
        if interrupted:
            terminal.say(f"interrupted after {int(shared.iteration)} iterations; saved {saved}")
    if interrupted:
        raise KeyboardInterrupt
    newest = log.newest()
    terminal.summary(newest)
    steps = sum(line["env_steps"] for line in newest)
    where = ", ".join(str(run_dir) for run_dir, _ in runs)
    terminal.say(f"{steps:,} environment steps in {train_s:.1f} s ({steps / train_s:,.0f} steps/s); saved in {where}")
    return results


def _open_run(cfg: Config, info: dict[str, Any], spec: EnvSpec, terminal: Terminal) -> tuple[Path, Config]:
    """Makes the run's folder and writes what is known before training."""
    run_dir = _new_run_dir(cfg, spec)
    terminal.say(f"run directory: {run_dir}")
    (run_dir / "config.yaml").write_text(dump(cfg), encoding="utf-8")
    (run_dir / "metadata.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return run_dir, cfg


def _headline(cfg: Config, spec: EnvSpec, info: dict[str, Any]) -> str:
    ratio, device = info["replay_ratio"], info["device"]
    return (
        f"{cfg.algo.mixer} on {spec.name}: {spec.n_agents} agents, {spec.n_actions} actions, {cfg.seeds} member(s) × "
        f"{cfg.rollouts} rollouts on {device['count']} × {device['kind']}; {info['parameter_count']:,} parameters; "
        f"replay ratio {ratio['windows_drawn_per_window']:g} windows drawn per window collected, "
        f"{ratio['updates_per_1000_steps']:.3g} updates per 1000 steps"
    )


@dataclass(frozen=True)
class _Place:
    """Where a member of the program is logged: as which member of which run."""

    run_dir: Path
    member: int
    seed: int


class _Log:
    """Where chunks are logged: the runs' files, the terminal, and the lists that ``train`` returns."""

    def __init__(self, places: list[_Place], terminal: Terminal):
        self.terminal = terminal
        self.places = places
        run_dirs = dict.fromkeys(place.run_dir for place in places)
        self._files = {run_dir: MetricsFile(run_dir / "metrics.jsonl") for run_dir in run_dirs}
        self.lines: dict[Path, list[Line]] = {run_dir: [] for run_dir in self._files}
        self._begin = time.perf_counter()

    def chunk(self, first: int, metrics: Any, updates: Any) -> int:
        """Waits for a chunk of the members from ``first`` on and logs it; the fewest steps one of them has made."""
        host = jax.device_get(metrics)
        places = self.places[first : first + len(host["env_steps"])]
        new = to_lines(host, [(p.member, p.seed) for p in places], int(updates), self.elapsed())
        for place, line in zip(places, new, strict=True):
            self._files[place.run_dir].write([line])
            self.lines[place.run_dir].append(line)
        self.terminal.chunk(new)
        return min(line["env_steps"] for line in new)

    def newest(self) -> list[Line]:
        """Every member's last line."""
        return [line for lines in self.lines.values() for line in {line["member"]: line for line in lines}.values()]

    def elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _train_groups(population: Population, starts: Starts, group: int, log: _Log) -> tuple[dict[str, Any], Shared, bool]:
    """Group after group, in the same program; all members without their replays, and whether it was interrupted.

    Members that an interruption leaves no time for come back as they were initialised.
    """
    total, interrupted = len(starts.seed), False
    finished = []
    shared = population.shared
    for first in range(0, total, group):
        members, counters = (
            (population.members, population.shared) if first == 0 else population.init(starts.slice(first, group))
        )
        if not interrupted:
            log.terminal.start("training" if group == total else f"members {first + 1}–{first + group} of {total}")
            members, shared, interrupted = _loop(population, first, members, counters, log)
        finished.append(checkpoint.without_replay(members))
        del members  # before the next group's take their place
    return jax.tree.map(lambda *x: np.concatenate(x), *finished), shared, interrupted


def _loop(
    population: Population, first: int, members: Member, shared: Shared, log: _Log
) -> tuple[Member, Shared, bool]:
    """Chunks until these members made their steps, or an interruption. While one runs, the host logs the one before."""
    total = population.cfg.total_steps
    pending: tuple[Any, Any] | None = None
    try:
        done = 0
        while done < total:
            members, shared, metrics = population.step(members, shared)
            if pending is not None:
                done = log.chunk(first, *pending)
            pending = (metrics, shared.updates)
            # The chunk in flight may be the last: find out before starting another.
            if done + population.steps_per_chunk >= total:
                done, pending = log.chunk(first, *pending), None
    except KeyboardInterrupt:
        return members, shared, True
    finally:
        log.terminal.stop()
    return members, shared, False

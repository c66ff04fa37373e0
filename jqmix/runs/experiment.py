"""One run: compile, chunk after chunk, log, save. Nothing is written before everything that can be checked was."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqmix.config import Config, ConfigError, dump
from jqmix.learning.train import Member, Shared
from jqmix.runs import checkpoint
from jqmix.runs.devices import make_mesh
from jqmix.runs.loggers import Line, MetricsFile, Terminal, to_lines
from jqmix.runs.memory import MemoryPlan, make_plan
from jqmix.runs.population import Population, abstract_member, compile_population, parameter_count, replay_ratio
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


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def provenance(devices: int = 1) -> dict[str, Any]:
    """What a result was made with: versions, devices (so many of them) and commit."""
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{p: _version(p) for p in ("jqmix", "jax", "jaxlib", "flax", "optax", "jaxmarl")},
        },
        "device": {"platform": device.platform, "kind": device.device_kind, "count": devices},
        "commit": _commit(),
    }


def metadata(cfg: Config, spec: EnvSpec, member: Member, plan: MemoryPlan) -> dict[str, Any]:
    return provenance(make_mesh(plan.group, cfg.replay.batch).size) | {
        "seeds": list(range(cfg.seed, cfg.seed + cfg.seeds)),
        "environment": spec._asdict() | {"reward_range": [str(x) for x in spec.reward_range]},
        "replay_ratio": replay_ratio(cfg, spec),
        "parameter_count": parameter_count(member),
        "memory_plan": plan._asdict(),
    }


def train(cfg: Config, quiet: bool = False) -> Result:
    """Trains a population to ``total_steps`` and writes its run directory.

    Raises ``ConfigError`` (or ``EnvError``) for anything unfit before compiling or writing. Interrupted (Ctrl-C), it
    saves what was learned, says so, and raises ``KeyboardInterrupt``.
    """
    terminal = Terminal(cfg.total_steps, quiet)
    with terminal.waiting("building the environment …"):
        spec, member = abstract_member(cfg)
    plan = make_plan(cfg, spec, member)
    info = metadata(cfg, spec, member, plan)
    run_dir = _new_run_dir(cfg, spec)
    terminal.say(f"run directory: {run_dir}")
    (run_dir / "config.yaml").write_text(dump(cfg), encoding="utf-8")
    (run_dir / "metadata.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    terminal.say(_headline(cfg, spec, info))
    terminal.say(str(plan))

    with terminal.waiting("tracing and compiling …"):
        population = compile_population(cfg, plan.group)
    terminal.say(f"traced in {population.trace_s:.1f} s, compiled in {population.compile_s:.1f} s")
    log = _Log(run_dir, terminal)
    members, shared, interrupted = _train_groups(population, plan.group, log)
    train_s = log.elapsed()
    log.close()
    saved = checkpoint.save(run_dir, members, shared)
    if interrupted:
        terminal.say(f"interrupted after {int(shared.iteration)} iterations; saved {saved}")
        raise KeyboardInterrupt
    newest = log.newest()
    terminal.summary(newest)
    steps = sum(line["env_steps"] for line in newest)
    terminal.say(f"{steps:,} environment steps in {train_s:.1f} s ({steps / train_s:,.0f} steps/s); saved {saved}")
    times = (population.trace_s, population.compile_s, train_s)
    return Result(cfg, log.lines, members["learner"].params, run_dir, *times)


def _headline(cfg: Config, spec: EnvSpec, info: dict[str, Any]) -> str:
    ratio, device = info["replay_ratio"], info["device"]
    return (
        f"{cfg.algo.mixer} on {spec.name}: {spec.n_agents} agents, {spec.n_actions} actions, {cfg.seeds} member(s) × "
        f"{cfg.rollouts} rollouts on {device['count']} × {device['kind']}; {info['parameter_count']:,} parameters; "
        f"replay ratio {ratio['windows_drawn_per_window']:g} windows drawn per window collected, "
        f"{ratio['updates_per_1000_steps']:.3g} updates per 1000 steps"
    )


class _Log:
    """Where chunks are logged: the run's file, the terminal, and the list that ``train`` returns."""

    def __init__(self, run_dir: Path, terminal: Terminal):
        self.lines: list[Line] = []
        self.terminal = terminal
        self._file = MetricsFile(run_dir / "metrics.jsonl")
        self._begin = time.perf_counter()

    def chunk(self, first: int, seeds: list[int], metrics: Any, updates: Any) -> int:
        """Waits for a chunk of the members from ``first`` on and logs it; the fewest steps one of them has made."""
        host = jax.device_get(metrics)
        new = to_lines(host, first, seeds, int(updates), self.elapsed())
        self._file.write(new)
        self.lines.extend(new)
        self.terminal.chunk(new)
        return min(line["env_steps"] for line in new)

    def newest(self) -> list[Line]:
        """Every member's last line."""
        return list({line["member"]: line for line in self.lines}.values())

    def elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def close(self) -> None:
        self._file.close()


def _train_groups(population: Population, group: int, log: _Log) -> tuple[dict[str, Any], Shared, bool]:
    """Group after group, in the same program; all members without their replays, and whether it was interrupted.

    Members that an interruption leaves no time for come back as they were initialised.
    """
    cfg, interrupted = population.cfg, False
    finished = []
    shared = population.shared
    for first in range(0, cfg.seeds, group):
        seeds = list(range(cfg.seed + first, cfg.seed + first + group))
        members, counters = (
            (population.members, population.shared) if first == 0 else population.init(jnp.asarray(seeds, jnp.int32))
        )
        if not interrupted:
            which = f"seed {seeds[0]}" if group == 1 else f"seeds {seeds[0]}–{seeds[-1]}"
            log.terminal.start("training" if group == cfg.seeds else which)
            members, shared, interrupted = _loop(population, first, seeds, members, counters, log)
        finished.append(checkpoint.without_replay(members))
        del members  # before the next group's take their place
    return jax.tree.map(lambda *x: np.concatenate(x), *finished), shared, interrupted


def _loop(
    population: Population, first: int, seeds: list[int], members: Member, shared: Shared, log: _Log
) -> tuple[Member, Shared, bool]:
    """Chunks until these members made their steps, or an interruption. While one runs, the host logs the one before."""
    total = population.cfg.total_steps
    pending: tuple[Any, Any] | None = None
    try:
        done = 0
        while done < total:
            members, shared, metrics = population.step(members, shared)
            if pending is not None:
                done = log.chunk(first, seeds, *pending)
            pending = (metrics, shared.updates)
            # The chunk in flight may be the last: find out before starting another.
            if done + population.steps_per_chunk >= total:
                done, pending = log.chunk(first, seeds, *pending), None
    except KeyboardInterrupt:
        return members, shared, True
    finally:
        log.terminal.stop()
    return members, shared, False

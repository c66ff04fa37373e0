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

from jqmix.config import Config, ConfigError, dump
from jqmix.learning.train import Member, Shared
from jqmix.runs import checkpoint
from jqmix.runs.devices import members_mesh
from jqmix.runs.loggers import Line, MetricsFile, Terminal, to_lines
from jqmix.runs.population import (
    Population,
    abstract_members,
    compile_population,
    memory_plan,
    parameter_count,
    replay_ratio,
)
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


def metadata(cfg: Config, spec: EnvSpec, members: Member) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{p: _version(p) for p in ("jqmix", "jax", "jaxlib", "flax", "optax", "jaxmarl")},
        },
        "device": {"platform": device.platform, "kind": device.device_kind, "count": members_mesh(cfg.seeds).size},
        "commit": _commit(),
        "seeds": list(range(cfg.seed, cfg.seed + cfg.seeds)),
        "environment": spec._asdict() | {"reward_range": [str(x) for x in spec.reward_range]},
        "replay_ratio": replay_ratio(cfg, spec),
        "parameter_count": parameter_count(members),
        "memory_plan": memory_plan(members),
    }


def train(cfg: Config, quiet: bool = False) -> Result:
    """Trains a population to ``total_steps`` and writes its run directory.

    Raises ``ConfigError`` (or ``EnvError``) for anything unfit before compiling or writing. Interrupted (Ctrl-C), it
    saves what was learned, says so, and raises ``KeyboardInterrupt``.
    """
    terminal = Terminal(cfg.total_steps, quiet)
    with terminal.waiting("building the environment …"):
        spec, shapes, _ = abstract_members(cfg)
    info = metadata(cfg, spec, shapes)
    run_dir = _new_run_dir(cfg, spec)
    terminal.say(f"run directory: {run_dir}")
    (run_dir / "config.yaml").write_text(dump(cfg), encoding="utf-8")
    (run_dir / "metadata.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    terminal.say(_headline(cfg, spec, info))

    with terminal.waiting("tracing and compiling …"):
        population = compile_population(cfg)
    terminal.say(f"traced in {population.trace_s:.1f} s, compiled in {population.compile_s:.1f} s")
    begin = time.perf_counter()
    members, shared, lines, interrupted = _loop(population, run_dir, terminal)
    train_s = time.perf_counter() - begin
    saved = checkpoint.save(run_dir, members, shared)
    if interrupted:
        terminal.say(f"interrupted after {int(shared.iteration)} iterations; saved {saved}")
        raise KeyboardInterrupt
    newest = lines[-cfg.seeds :]
    terminal.summary(newest)
    steps = sum(line["env_steps"] for line in newest)
    terminal.say(f"{steps:,} environment steps in {train_s:.1f} s ({steps / train_s:,.0f} steps/s); saved {saved}")
    times = (population.trace_s, population.compile_s, train_s)
    return Result(cfg, lines, members.learner.params, run_dir, *times)


def _headline(cfg: Config, spec: EnvSpec, info: dict[str, Any]) -> str:
    ratio, plan, device = info["replay_ratio"], info["memory_plan"], info["device"]
    return (
        f"{cfg.algo.mixer} on {spec.name}: {spec.n_agents} agents, {spec.n_actions} actions, {cfg.seeds} member(s) × "
        f"{cfg.rollouts} rollouts on {device['count']} × {device['kind']}; {info['parameter_count']:,} parameters; "
        f"replay ratio {ratio['windows_drawn_per_window']:g} windows drawn per window collected, "
        f"{ratio['updates_per_1000_steps']:.3g} updates per 1000 steps; {plan['total'] / 1e6:,.0f} MB of state"
    )


def _loop(population: Population, run_dir: Path, terminal: Terminal) -> tuple[Member, Shared, list[Line], bool]:
    """Chunks until all members made their steps, or an interruption. While one runs, the host logs the one before."""
    cfg = population.cfg
    seeds = list(range(cfg.seed, cfg.seed + cfg.seeds))
    members, shared = population.members, population.shared
    log = MetricsFile(run_dir / "metrics.jsonl")
    lines: list[Line] = []
    begin = time.perf_counter()
    pending: tuple[Any, Any] | None = None

    def drain(metrics: Any, updates: Any) -> int:
        """Waits for a chunk and logs it; the fewest steps that a member has made."""
        host = jax.device_get(metrics)
        new = to_lines(host, seeds, int(updates), time.perf_counter() - begin)
        log.write(new)
        lines.extend(new)
        terminal.chunk(new)
        return min(line["env_steps"] for line in new)

    terminal.start()
    try:
        done = 0
        while done < cfg.total_steps:
            members, shared, metrics = population.step(members, shared)
            if pending is not None:
                done = drain(*pending)
            pending = (metrics, shared.updates)
            # The chunk in flight may be the last: find out before starting another.
            if done + population.steps_per_chunk >= cfg.total_steps:
                done, pending = drain(*pending), None
    except KeyboardInterrupt:
        return members, shared, lines, True
    finally:
        terminal.stop()
        log.close()
    return members, shared, lines, False

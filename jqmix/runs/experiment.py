"""Runs: compile, call after call, log, save, resume. Nothing is written before everything that can be checked was.

Configurations of one shape, which differ in seeds and traced hyperparameters alone, are trained in one program, and
each writes a run directory of its own.
"""

import contextlib
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax

from jqmix.analysis.duration import MACHINE, expected_seconds, spell_seconds
from jqmix.analysis.results import MemberResults, read_metrics, read_run
from jqmix.config import Config, ConfigError, coerce_text, flatten, foreign_code, renamed, to_dict, traced_paths
from jqmix.envs.registry import Sizes
from jqmix.files import read_json, warn
from jqmix.interrupts import Interrupted, Stop, watched
from jqmix.learning.state import Member
from jqmix.learning.train import build_env, check_own_env, divides, learning_batch
from jqmix.runs import checkpoint
from jqmix.runs.checkpoint import Manifest
from jqmix.runs.clusters import check_share
from jqmix.runs.devices import make_mesh
from jqmix.runs.groups import Group, Part, Run, Source, settings_of
from jqmix.runs.hosts import Hosts, Place, joined
from jqmix.runs.jax_settings import check_kernels, settled
from jqmix.runs.log import Callback, Log, StopTraining, check_callbacks
from jqmix.runs.memory import MemoryPlan, make_plan
from jqmix.runs.metrics_file import Line
from jqmix.runs.policy import load_run_config
from jqmix.runs.population import (
    Population,
    Starts,
    compile_population,
    parameter_count,
    replay_ratio,
    starts_of,
)
from jqmix.runs.programs import MemberPrograms
from jqmix.runs.provenance import commit
from jqmix.runs.run_dir import RunDir, RunError
from jqmix.runs.saver import Saver
from jqmix.runs.terminal import Terminal, mean_of
from jqmix.runs.training import Training
from jqmix.trackers.base import TrackedRun, Tracker, make_trackers, name_loggers, tracker_names
from jqmix.trackers.feed import Feed, close_feeds
from jqmix.types import EnvSpec

SHORT = {"win_rate": "win", "return_mean": "return"}  # of an evaluation, in a few words


@dataclass(frozen=True)
class Result:
    """What a run leaves, read from where it was written."""

    config: Config
    run_dir: Path
    trace_s: float
    compile_s: float
    train_s: float
    startup_s: float = 0.0  # building the environment and all that came after it until training began
    env_steps: int = 0  # made by this call, over all members

    @property
    def metrics(self) -> list[Line]:
        """Every line of metrics.jsonl."""
        with (self.run_dir / "metrics.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def __repr__(self) -> str:
        cfg = self.config
        what = f"{_algorithm(cfg)} on {cfg.env.name}, {cfg.seeds} {'seed' if cfg.seeds == 1 else 'seeds'}"
        return f"Result({what}: {self._last()}; {str(self.run_dir)!r})"

    def _last(self) -> str:
        """The newest evaluation of every seed, as their mean."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            last = {line["seed"]: line for line in self.metrics if "eval/return_mean" in line}.values()
            if last:
                steps = min(line["env_steps"] for line in last)
                means = [(label, mean_of(list(last), f"eval/{name}")) for name, label in SHORT.items()]
                shown = ", ".join(f"{label} {mean:.3g}" for label, mean in means if mean is not None)
                return f"{shown} after {steps:,} steps"
        return "no evaluation"

    @cached_property
    def params(self) -> Any:
        """What the members learned; leaves lead with P."""
        return checkpoint.load_learned(self.run_dir, self.config, warn).params

    def summary(self) -> dict[str, Any]:
        """What came out, as JSON has it: every member's last evaluation, speed over all members, and times."""
        members = read_run(self.run_dir).members
        return {
            "run_dir": str(self.run_dir),
            "seeds": [member.seed for member in members],
            "results": [_last_lines(member) for member in members],
            "env_steps": self.env_steps,
            "steps_per_s": self.env_steps / self.train_s,
            **{name: getattr(self, name) for name in ("startup_s", "trace_s", "compile_s", "train_s")},
        }


def _last_lines(member: MemberResults) -> Line:
    """A member's last evaluation, with the absolute metric and what was not finite, if there is any."""
    last = member.evaluations[-1] if member.evaluations else {}
    return (member.fault or {}) | (member.absolute or {}) | last


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
    return provenance(make_mesh(plan.group, learning_batch(cfg), divides=partial(divides, cfg)).size) | {
        "seeds": list(range(cfg.seed, cfg.seed + cfg.seeds)),
        "environment": _described(spec),
        "replay_ratio": replay_ratio(cfg, spec),
        "parameter_count": parameter_count(member),
        "memory_plan": plan._asdict(),
    }


def _described(spec: EnvSpec) -> dict[str, Any]:
    """As JSON has it: without infinities, and with names."""
    entities = spec.entities and spec.entities._asdict()
    return spec._asdict() | {"reward_range": [str(x) for x in spec.reward_range], "entities": entities}


# Like traced fields, they may differ in configurations of one shape.
FREE = {"seed", "seeds", "group", "run_dir", "log"}


def shape_of(cfg: Config) -> str:
    """Equal for configurations that one compiled program trains."""
    free = FREE.union(traced_paths(cfg))
    return json.dumps({k: v for k, v in flatten(to_dict(cfg)).items() if k not in free}, sort_keys=True)


def train(
    cfg: Config,
    quiet: bool = False,
    loggers: Sequence[Tracker] = (),
    callbacks: Sequence[Callback] = (),
    place: Place | None = None,
) -> Result:
    """Trains a population to ``total_steps`` and writes its run directory.

    ``loggers``: objects with the methods ``begin(run)``, ``log(lines)`` and ``end()`` (see ``jqmix.trackers.base``).
    Each has a thread of its own. What a logger raises is told once, and the run goes on without it.

    ``callbacks``: functions of the new lines of metrics.jsonl, a list of dictionaries, called in this thread after
    every evaluation. One that raises ``jqmix.StopTraining`` ends training early: the run saves, as at Ctrl-C, and its
    result is returned. Any other error ends training, too, and is raised here once the run has saved.

    ``place``: which this is of several processes that call this function alike and share the run's seeds. The first one
    has the display and the loggers; callbacks get the lines of the seeds that are trained where they are called.

    Raises ``ConfigError`` (or ``EnvError``) for anything unfit before compiling or writing. Stopped by a signal
    (Ctrl-C), it saves, says how to go on, and raises ``KeyboardInterrupt``. Raises ``RunError`` where it can't go on.
    """
    (result,) = train_together([cfg], quiet, loggers=loggers, callbacks=callbacks, place=place)
    return result


def resume(
    run_dir: str | Path,
    total_steps: int | None = None,
    quiet: bool = False,
    trust: bool = False,
    log: str | None = None,
    loggers: Sequence[Tracker] = (),
    callbacks: Sequence[Callback] = (),
    place: Place | None = None,
) -> Result:
    """Goes on from a run's newest sound checkpoint, as if it had never stopped; to more steps, if told.

    ``log``: trackers from now on, in place of the run's own (``"none"``: without). A tracker gets all lines that it
    does not have yet. ``loggers``, ``callbacks``, ``place``: as :func:`train` takes them; there may be more or fewer
    processes than before. Raises ``ConfigError`` where there is
    nothing to go on with. ``trust``: the run may name code of its own.
    """
    path = Path(run_dir)
    cfg = replace(load_run_config(path, trust), run_dir=str(path))
    if total_steps is not None:
        cfg = replace(cfg, total_steps=total_steps)
    if log is not None:
        cfg = replace(cfg, log=coerce_text("log", log))
        tracker_names(cfg.log)
    (result,) = train_together([cfg], quiet, resuming=True, loggers=loggers, callbacks=callbacks, place=place)
    return result


@settled()
def dry_run(cfg: Config, place: Place | None = None) -> list[str]:
    """What :func:`train` would say before it compiles, line by line, with about how long it would take; of several
    processes, this one (``place``) of its own seeds.

    Builds the environment, and writes nothing. Raises ``ConfigError`` (or ``EnvError``) as :func:`train` does.
    """
    own = (place or Place()).share(cfg.seeds)
    cfg = replace(cfg, seed=cfg.seed + own.start, seeds=len(own))
    make_trackers(cfg.log)
    check_own_env(cfg)
    programs = MemberPrograms(cfg)
    spec, member = programs.spec, programs.member
    plan = make_plan(cfg, programs)
    info = metadata(cfg, spec, member, plan)
    if info["device"]["platform"] == "cpu":
        sizes = Sizes(*(getattr(spec, name) for name in Sizes._fields))
        about = spell_seconds(expected_seconds(cfg, sizes))
        took = f"about {about} without compiling (an estimate for {MACHINE}; `jqmix bench` measures)"
    else:
        took = f"no estimate for {info['device']['kind']}; `jqmix bench` measures the speed"
    where = cfg.run_dir or f"runs/{_dir_name(cfg, spec)}_<time>"
    seeds = "one seed" if cfg.seeds == 1 else f"each of {cfg.seeds} seeds"
    steps = f"{cfg.total_steps:,} environment steps of {seeds}"
    return [
        f"run directory: {where}",
        *_headlines(cfg, spec, info, "seed"),
        str(plan),
        f"{steps}: {took}",
        "nothing was written",
    ]


def _dir_name(cfg: Config, spec: EnvSpec) -> str:
    """What a new run directory is named after; the time follows."""
    return f"{spec.name}_{_algorithm(cfg)}".replace("/", "_")


def _algorithm(cfg: Config) -> str:
    """The mixer, as where it is learned from replay; and with PQN, what it is learned by, too."""
    return cfg.algo.mixer if cfg.algo.name == "dqn" else f"{cfg.algo.name}_{cfg.algo.mixer}"


@settled()
def train_together(
    cfgs: Sequence[Config],
    quiet: bool = False,
    resuming: bool = False,
    loggers: Sequence[Tracker] = (),
    callbacks: Sequence[Callback] = (),
    label: str | None = None,
    place: Place | None = None,
) -> list[Result]:
    """The same for configurations of one shape: all their members in one program, a run directory for each of them.

    ``resuming``: those of the directories that are there go on from their checkpoints. ``loggers``, ``place``: of a
    single run. ``label``: what they are in a study, which says where it lies and how it goes on by itself.
    """
    place = place or Place()
    if len({shape_of(cfg) for cfg in cfgs}) > 1:
        raise ValueError("configurations that are trained together may differ in traced fields and seeds alone")
    check_callbacks(callbacks)
    check_share(cfgs[0], place)
    with watched() as stop, contextlib.ExitStack() as stack:
        terminal = stack.enter_context(Terminal(quiet or place.index > 0, label or ""))
        hosts = stack.enter_context(joined(place, stop, terminal.warn))
        if hosts.count > 1:
            _check_alike(hosts, cfgs[0])
        trackers = [make_trackers(cfg.log) | name_loggers(loggers) if hosts.is_first else {} for cfg in cfgs]
        session = _Session(cfgs, stop, terminal, stack, hosts, trackers, callbacks, label is not None, quiet)
        return session.train(resuming)


def _check_alike(hosts: Hosts, cfg: Config) -> None:
    """Raises ``ConfigError`` where another process was asked for something else, or has another version."""
    versions = {p: _version(p) for p in ("jqmix", "jax", "jaxlib")}
    own = settings_of(cfg) | {"total_steps": cfg.total_steps, "group": cfg.group} | versions
    first = hosts.exchange(own)[0]
    for name in own:
        if own[name] != first.get(name):
            raise ConfigError(
                f"{name}: {own[name]} at host {hosts.index}, but {first.get(name)} at host 0; hosts are given one "
                "command (JQMIX_HOSTS=1 lets each process train a run of its own)"
            )


class _Session:
    """Everything that the training of one program shares."""

    def __init__(
        self,
        cfgs: Sequence[Config],
        stop: Stop,
        terminal: Terminal,
        stack: contextlib.ExitStack,
        hosts: Hosts,
        trackers: Sequence[dict[str, Tracker]],
        callbacks: Sequence[Callback],
        in_study: bool,
        quiet: bool,
    ):
        self.cfgs = cfgs
        self.cfg = replace(cfgs[0], seeds=sum(c.seeds for c in cfgs), group=cfgs[0].group if len(cfgs) == 1 else None)
        self.stop = stop
        self.terminal = terminal
        self.stack = stack
        self.hosts = hosts
        self.own = hosts.place.share(self.cfg.seeds)  # the members that this process trains
        self.devices = 1  # of all processes
        self.trackers = trackers
        self.callbacks = callbacks
        self.in_study = in_study
        self.quiet = quiet
        self.startup_s = 0.0
        self.runs: list[Run] = []
        self.starts: Starts = starts_of(*cfgs)
        self.programs: dict[int, Population] = {}

    # Before training

    def train(self, resuming: bool) -> list[Result]:
        """Everything, from the environment on."""
        with contextlib.ExitStack() as stack:
            try:
                groups = self._prepare(resuming)
                stack.enter_context(self.stop.waiting())
                log = self._train(groups)
            except RunError as error:
                self.hosts.close(error)  # others say themselves how to go on
                there = self.runs and all(run.path.is_dir() for run in self.runs)
                raise RunError(f"{error}; {self._how_to_go_on()}" if there else str(error)) from None
            return self._end(log)

    def _prepare(self, resuming: bool) -> list[Group]:
        """The groups that are to train; their runs' directories, and the program of the first."""
        self.terminal.stage("building the environment")
        check_own_env(self.cfg)
        check_kernels(self.cfg, build_env(self.cfg, 1), self.terminal.warn)
        self.member_programs = MemberPrograms(self.cfg)
        spec, member = self.member_programs.spec, self.member_programs.member
        self.cfgs, self.cfg = [_named(cfg, spec) for cfg in self.cfgs], _named(self.cfg, spec)
        self.stop.raise_if_asked()
        plan = self._plan(resuming)
        self.devices = sum(self.hosts.exchange(make_mesh(plan.group, learning_batch(self.cfg)).size))
        with contextlib.ExitStack() as undoing:
            self._open(spec, member, plan, resuming, undoing)
            spans = [self.own[first : first + plan.group] for first in range(0, len(self.own), plan.group)]
            to_do = [group for span in spans if not self._finished(span) for group in self._groups(span)]
            for run in self.runs if self.hosts.is_first else ():
                run.dir.update(run.cfg, self._metadata(run.cfg, spec, member, plan))
            if to_do:
                kind = "member" if self.in_study else "seed"
                for line in _headlines(self.cfg, spec, self._metadata(self.cfg, spec, member, plan), kind):
                    self.terminal.say(line)
                if self.hosts.count > 1:
                    self.terminal.say(f"{self._whose()}; what is shown while it trains is of these")
                self.terminal.say(str(plan))
                self.compiled(to_do[0])
            elif self.hosts.count > 1:
                self.terminal.say(f"{self._whose()}; they have made their {self.cfg.total_steps:,} steps")
            else:
                self.terminal.say(f"finished, with {self.cfg.total_steps:,} steps; --total-steps goes on to more")
            self.stop.raise_if_asked()
        return to_do

    def _whose(self) -> str:
        """Which process of the run this is, and what of it is its own."""
        seeds = range(self.cfg.seed + self.own.start, self.cfg.seed + self.own.stop)
        some = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        return f"host {self.hosts.index} of {self.hosts.count}: {some}"

    def _metadata(self, cfg: Config, spec: EnvSpec, member: Member, plan: MemoryPlan) -> dict[str, Any]:
        """With all processes and their devices; the memory plan is the first one's."""
        info = metadata(cfg, spec, member, plan)
        return info | {"device": info["device"] | {"count": self.devices}, "hosts": self.hosts.count}

    def _plan(self, resuming: bool) -> MemoryPlan:
        """Of this process's members. A run that is resumed keeps its groups, or where they don't fit any more divides
        them."""
        cfg, programs = replace(self.cfg, seeds=len(self.own)), self.member_programs
        if resuming and cfg.group is None:
            before = _recorded_group(Path(self.cfgs[0].run_dir or ""))
            if before is not None and cfg.seeds % before == 0:
                with contextlib.suppress(ConfigError):
                    return make_plan(replace(cfg, group=before), programs)
                return make_plan(replace(cfg, seeds=before), programs)._replace(members=cfg.seeds)
        return make_plan(cfg, programs)

    def _open(
        self, spec: EnvSpec, member: Member, plan: MemoryPlan, resuming: bool, undoing: contextlib.ExitStack
    ) -> None:
        """Makes the runs' folders and writes what is known before training, or locks those that are there. While
        ``undoing`` holds, what ends the program takes back those that are new."""
        if not self.hosts.is_first:
            return self._open_shared(resuming)
        first = 0
        for cfg in self.cfgs:
            there = resuming and cfg.run_dir is not None and (Path(cfg.run_dir) / "config.yaml").is_file()
            name = _dir_name(cfg, spec)
            run_dir = RunDir(Path(cfg.run_dir or ""), made=False) if there else RunDir.create(cfg.run_dir, name)
            self.stack.callback(run_dir.close)
            if not self.in_study:
                self.terminal.say(f"run directory: {run_dir.path}", to_copy=True)
            run = Run(cfg, run_dir, first)
            if there:
                self._check_unchanged(run)
            else:
                undoing.enter_context(self.stop.undoing(run.dir.discard))
                run.dir.begin(cfg, self._metadata(cfg, spec, member, plan))
            self.runs.append(run)
            first = run.last
        if self.hosts.count > 1:
            with self.runs[0].dir.marked() as mark:
                self.hosts.exchange([str(self.runs[0].path.resolve()), mark])
                self.hosts.exchange()  # all have seen it

    def _open_shared(self, resuming: bool) -> None:
        """The directory that the first process made or locked."""
        path, mark = self.hosts.exchange()[0]
        (cfg,) = self.cfgs
        run = Run(cfg, RunDir.join(Path(path), mark), 0)
        self.stack.callback(run.dir.close)
        self.hosts.exchange()
        if resuming:
            self._check_unchanged(run)
        self.runs.append(run)
        if not self.quiet:
            with contextlib.suppress(OSError, ValueError):  # nobody may be there to read it
                print(f"{self._whose()}; host 0 shows the run in {path}", flush=True)

    def _check_unchanged(self, run: Run) -> None:
        """Raises ``ConfigError`` where the run was begun with other settings, or made more steps than it is to make."""
        found = Part(run, range(1)).newest(self.terminal.warn)
        if found is None:
            return
        about: Manifest = found[1]
        if about.format != checkpoint.FORMAT:
            raise ConfigError(
                f"run_dir: {run.path} is of an earlier version and can't be resumed; `jqmix train "
                f"{run.path}/config.yaml --run-dir …` makes the run anew, evaluate and report read this one"
            )
        now = settings_of(run.cfg)
        for path, value in renamed(about.settings).items():
            if path in now and now[path] != value:
                raise ConfigError(f"{path}: config.yaml says {now[path]!r}, but the run was begun with {value!r}")
        if run.cfg.total_steps < min(about.total_steps, *about.env_steps):
            raise ConfigError(
                f"total_steps: {run.cfg.total_steps} are fewer than the {min(about.env_steps)} made already"
            )

    def _parts(self, span: range) -> list[Part]:
        """What each run has of the program's members in ``span``."""
        return [
            Part(run, range(max(span.start - run.first, 0), min(span.stop - run.first, run.cfg.seeds)))
            for run in self.runs
            if run.first < span.stop and span.start < run.last
        ]

    def _finished(self, span: range) -> bool:
        ends = [part.newest(lambda text: None) for part in self._parts(span)]
        return all(end is not None and end[1].final and end[1].total_steps == self.cfg.total_steps for end in ends)

    def _groups(self, span: range) -> list[Group]:
        """Members that are to train together, with what they go on from: checkpoints of the same iteration.

        Where there are none, they begin. Where they were saved in other groups, or one of the runs was lost, those that
        can go on together do.
        """
        parts, warn = self._parts(span), self.terminal.warn
        if not any(part.saved() for part in parts):
            return [Group(span.start, span.stop, parts, [])]
        if all(part.whole() for part in parts):
            newest = [part.newest(warn, to_resume=True) for part in parts]
            at = min(saved.iteration for saved, _ in newest)
            sources = [part.newest(warn, to_resume=True, at=at) for part in parts]
            if None not in sources:
                found = [Source(part, *source) for part, source in zip(parts, sources, strict=True)]
                return [Group(span.start, span.stop, parts, found)]
        groups: list[Group] = []
        for group in (self._alone(part) for whole in parts for part in whole.split()):
            if groups and group.continues(groups[-1]):
                groups[-1] = groups[-1].with_next(group)
            else:
                groups.append(group)
        return groups

    def _alone(self, part: Part) -> Group:
        first = part.run.first
        source = part.newest(self.terminal.warn, to_resume=True)
        if source is None and part.saved():
            raise ConfigError(f"run_dir: {part.run.path} holds what the run ended with, but nothing to go on from")
        sources = [Source(part, *source)] if source else []
        return Group(first + part.members.start, first + part.members.stop, [part], sources)

    def compiled(self, group: Group) -> Population:
        """The program for so many members, compiled once for each number."""
        if group.size not in self.programs:
            starts = self.starts.slice(group.first, group.size)
            self.programs[group.size] = compile_population(
                self.cfg, group.size, starts, self.terminal.stage, self.member_programs
            )
            self.startup_s += self.terminal.ready()
        return self.programs[group.size]

    # Training

    def _train(self, groups: list[Group]) -> Log:
        self.hosts.advice = self._how_to_go_on()
        log = Log(self.runs, groups, self.terminal, self.hosts, self.callbacks)
        saver = Saver(self.cfg.checkpoint, self.terminal.warn)
        self.stack.callback(saver.close)
        self.stack.callback(log.close)
        self._begin_trackers(log)
        try:
            for group in groups:
                population, starts = self.compiled(group), self.starts.slice(group.first, group.size)
                Training(self.cfg, self.stop, group, population, starts, log, saver).run()
            log.sort(groups)
            log.join()
        except StopTraining as stopped:
            log.sort(groups)
            self.hosts.close(stopped)
            why = f" ({stopped})" if str(stopped) else ""
            self.terminal.say(f"stopped by a callback{why}; saved; {self._how_to_go_on()}")
        except Interrupted as stopped:
            self.terminal.warn(f"stopped by {stopped}; saved; {self._how_to_go_on()}")
            raise
        except BaseException as error:
            if error is log.raised:
                error.add_note(f"jqmix: raised by a callback; the run was saved; {self._how_to_go_on()}")
            raise
        return log

    def _begin_trackers(self, log: Log) -> None:
        """Trackers of a run that goes on get what they don't have yet of what was logged before."""
        for run, trackers in zip(self.runs, self.trackers, strict=True):
            if not trackers:
                continue
            seeds = range(run.cfg.seed, run.cfg.seed + run.cfg.seeds)
            about = TrackedRun(run.path, to_dict(run.cfg), read_json(run.path / "metadata.json"), list(seeds))
            log.feeds[run.path] = [Feed(name, tracker, about, self.terminal.warn) for name, tracker in trackers.items()]
            written, _ = read_metrics(run.path / "metrics.jsonl", seeds)
            for feed in log.feeds[run.path]:
                feed.put(written)
        self.stack.callback(close_feeds, [feed for feeds in log.feeds.values() for feed in feeds])

    def _how_to_go_on(self) -> str:
        """A study's runs go on together, which who runs it says."""
        if len(self.runs) > 1:
            return "what was saved is kept"
        trust = " --trust" if foreign_code(self.cfg) else ""
        return f"go on with: jqmix resume {shlex.quote(str(self.runs[0].path))}{trust}"

    def _end(self, log: Log) -> list[Result]:
        programs, train_s = self.programs.values(), log.elapsed()
        trace_s, compile_s = (sum((getattr(p, name) for p in programs), 0.0) for name in ("trace_s", "compile_s"))
        times = trace_s, compile_s, train_s, self.startup_s
        results = [Result(run.cfg, run.path, *times, log.steps_made) for run in self.runs]
        self.terminal.stop()
        if log.steps_made and self.hosts.is_first:
            self._summarise(log.steps_made, train_s)
        if len(self.runs) == 1 and len(log.faults) == self.cfg.seeds:
            raise RunError("no member is left: " + "; ".join(log.faults.values()))
        return results

    def _summarise(self, steps: int, train_s: float) -> None:
        """What came out, and what may be done with it."""
        found: dict[str, list[MemberResults]] = {}
        for run in self.runs:
            with contextlib.suppress(ConfigError):  # it was never evaluated
                found[run.path.name] = read_run(run.path).members
        if self.in_study:
            self.terminal.summary_by_run(found)
        else:
            self.terminal.summary([member for members in found.values() for member in members])
        among = f" over {self.cfg.seeds} {'members' if self.in_study else 'seeds'}" if self.cfg.seeds > 1 else ""
        self.terminal.say(f"{steps:,} environment steps{among} in {train_s:.1f} s ({steps / train_s:,.0f} steps/s)")
        if not self.in_study:
            for line in _next_commands(self.runs[0]):
                self.terminal.say(line, to_copy=True)


def _named(cfg: Config, spec: EnvSpec) -> Config:
    """With an environment of the user's own under its own name."""
    return cfg if cfg.env.factory is None else replace(cfg, env=replace(cfg.env, name=spec.name))


def _headlines(cfg: Config, spec: EnvSpec, info: dict[str, Any], kind: str) -> list[str]:
    ratio, device = info["replay_ratio"], info["device"]
    return [
        f"{_algorithm(cfg)} on {spec.name}: {spec.n_agents} agents, {spec.n_actions} actions; "
        f"{cfg.seeds} {kind}{'s' * (cfg.seeds > 1)} × {cfg.rollouts} rollouts on {device['count']} × {device['kind']}",
        f"{info['parameter_count']:,} parameters; replay ratio {ratio['windows_drawn_per_window']:g} draws per window, "
        f"{ratio['updates_per_1000_steps']:.3g} updates per 1000 steps",
    ]


def _next_commands(run: Run) -> list[str]:
    """What may be done with a run that ended, to copy."""
    path, trust = shlex.quote(str(run.path)), " --trust" if foreign_code(run.cfg) else ""
    commands = {
        f"jqmix evaluate {path}{trust}": "play more greedy episodes",
        f"jqmix report {path}": "learning curves with intervals",
        f"jqmix render {path}{trust}": "watch it play",
        f"jqmix resume {path} --total-steps {2 * run.cfg.total_steps}{trust}": "train on",
    }
    width = max(map(len, commands))
    return ["next:", *(f"  {command:{width}}  # {what}" for command, what in commands.items())]


def _recorded_group(run_dir: Path) -> int | None:
    """How many members a run trained at once, by its metadata; None where it was all that a process had, or where that
    is not to be had."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        plan = json.loads((run_dir / "metadata.json").read_text(encoding="utf-8"))["memory_plan"]
        group = plan["group"]
        return group if type(group) is int and 0 < group < plan["members"] else None
    return None

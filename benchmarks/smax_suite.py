"""The SMAX learning suite: algorithms × maps × seeds at one budget, in slices of minutes, and one report.

python benchmarks/smax_suite.py run --out DIR [--algorithms smax …] [--maps 2s3z …] [--seeds 0 1] [--minutes 10]
python benchmarks/smax_suite.py run --out DIR … --plan              # what is left, and how long it takes here
python benchmarks/smax_suite.py run --out DIR --candidates FILE     # settings to be tried, of a YAML file
python benchmarks/smax_suite.py collect --out DIR --json-dir JSON   # a small file of results for every seed
python benchmarks/smax_suite.py report --json-dir JSON --to FOLDER  # curves, IQM and the worst map, of such files

An algorithm is a preset, or a candidate: a name in a YAML file, with a configuration and changes of fields. Every
algorithm plays every map with every seed in a run directory of its own, DIR/ALGORITHM/MAP/SEED, the first seed
everywhere before the second. With ``--together`` seeds that follow one another are members of one run, FIRST-LAST: on
an accelerator many take hardly longer than one.

The same call again does what is left: a finished run stays, one that was stopped, or killed at any moment, goes on from
its checkpoint. Calls at the same time share the runs, and the CPU's cores, between them. A run's settings can't change
under it: whatever differs is refused.

Seconds are those of a run's clock (``wall_s``): training with its evaluations, without imports and compiling. They add
up over all parts of a run that was stopped; what was trained after the last checkpoint before a kill is made again, and
counts once.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import smax_suite_report
from measure import device_platform
from smax_suite_report import BASE

from jqmix.analysis.duration import MACHINE, expected_speed, spell_seconds
from jqmix.analysis.results import WHO, MemberResults, read_run, spell
from jqmix.config import Config, ConfigError, check_effects, dump, flatten, foreign_code, load_config, to_dict
from jqmix.envs.registry import SMAX_MAPS, entries
from jqmix.files import read_json, warn, write_text
from jqmix.inputs import check_parent, check_path_text, one_line, quoted, read_yaml, shown
from jqmix.interrupts import exit_code, watched

ALGORITHMS = ("smax", "smax_vdn", "smax_pqn")
MAPS = ("2s3z", "3s5z", "3s_vs_5z", "5m_vs_6m", "6h_vs_8z", "3s5z_vs_3s6z", "smacv2_5_units", "smacv2_10_units")
EPISODES = 128  # of a greedy evaluation, at least
OWN = ("env.name", "seed", "seeds", "total_steps", "run_dir")  # the suite sets them
JQMIX = [sys.executable, "-m", "jqmix"]
POLL_S = 0.2
CURVE = {"env_steps": "env_steps", "updates": "updates", "wall_s": "wall_s"} | {
    name: f"eval/{name}" for name in ("win_rate", "return_mean")
}


# What is to be trained


class Candidate(NamedTuple):
    """Settings by a name: a preset or a file, changes of its fields, and those of ``base`` below them."""

    name: str
    config: str
    changes: dict[str, Any]
    inherited: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """Seeds of a candidate on a map, mostly one; the configuration names the directory."""

    candidate: Candidate
    map: str
    seeds: range
    cfg: Config

    @property
    def dir(self) -> Path:
        return Path(str(self.cfg.run_dir))

    @property
    def kind(self) -> tuple[str, str]:
        return self.candidate.name, self.map

    @property
    def name(self) -> str:
        return f"{self.candidate.name} on {self.map}, seed{'s' * (len(self.seeds) > 1)} {spelled(self.seeds)}"

    def beside(self, ending: str) -> Path:
        """A file next to its directory, which is jqmix's own."""
        return self.dir.with_name(f"{self.dir.name}.{ending}")

    @property
    def finished(self) -> bool:
        """What a run ends with is a checkpoint of its own."""
        return any(self.dir.glob("checkpoints/*_final"))

    def command(self) -> list[str]:
        """What trains it from its beginning, or from where it stopped."""
        if (self.dir / "config.yaml").is_file():
            trust = ["--trust"] if foreign_code(self.cfg) else []
            return ["resume", str(self.dir), "--quiet", *trust]
        write_text(self.beside("yaml"), dump(self.cfg))
        return ["train", str(self.beside("yaml")), "--quiet"]


def find_candidates(names: Sequence[str] | None, file: Path | None) -> list[Candidate]:
    """The candidates of a file, or of presets; ``names`` selects. Raises ``ConfigError``."""
    known = {} if file is None else read_candidates(file)
    for name in names or known or ALGORITHMS:
        if not re.fullmatch(r"\w[\w.+=-]*", name):
            raise ConfigError(
                f"algorithms: {quoted(name)} can't name a folder; a file of settings is a candidate's config"
            )
    return [known.get(name) or Candidate(name, name, {}, {}) for name in dict.fromkeys(names or known or ALGORITHMS)]


def read_candidates(file: Path) -> dict[str, Candidate]:
    """The candidates of a YAML file by name. One without a config is another ``base``, with its changes on top."""
    tree = read_yaml(file)
    if not isinstance(tree, dict) or not all(isinstance(changes, dict) for changes in tree.values()):
        raise ConfigError(f"{shown(file)}: candidates are a mapping of names, each to a mapping of config and fields")
    found = {}
    base = tree.get(BASE, {})
    for name, changes in tree.items():
        inherited = {} if "config" in changes else base
        config = str((inherited | changes).get("config", ""))
        if not config:
            raise ConfigError(f"{shown(file)}: {shown(name)}: config is missing, and so is a candidate {BASE} with one")
        beside = file.parent / config  # a path counts from the file
        fields = ({k: v for k, v in whole.items() if k != "config"} for whole in (changes, inherited))
        found[name] = Candidate(name, str(beside) if beside.is_file() else config, *map(flatten, fields))
    return found


def find_maps(names: Sequence[str]) -> list[str]:
    maps = list(SMAX_MAPS) if list(names) == ["all"] else list(dict.fromkeys(names))
    for name in maps:
        if name not in SMAX_MAPS:
            raise ConfigError(f"maps: no map {quoted(name)}; there are {', '.join(SMAX_MAPS)}, and all")
    return maps


def find_runs(args: argparse.Namespace) -> list[Run]:
    """Every run of the suite, in their order: something of every algorithm and map comes early.

    Raises ``ConfigError`` for settings that are unfit, or other than those that a run was begun with.
    """
    check_path_text("out", str(args.out))
    check_parent("out", args.out)
    candidates, maps = find_candidates(args.algorithms, args.candidates), find_maps(args.maps)
    shares = in_a_row(args.seeds) if args.together else [range(seed, seed + 1) for seed in dict.fromkeys(args.seeds)]
    order = itertools.product(shares, maps, candidates)
    runs = [make_run(args.out, candidate, name, seeds, args.total_steps) for seeds, name, candidate in order]
    for run in runs:
        check_unchanged(run)
        check_apart(run)
    return runs


def in_a_row(seeds: Sequence[int]) -> list[range]:
    """Seeds that follow one another, as a run has them."""
    found: list[range] = []
    for seed in sorted(set(seeds)):
        if found and found[-1].stop == seed:
            found[-1] = range(found[-1].start, seed + 1)
        else:
            found.append(range(seed, seed + 1))
    return found


def spelled(seeds: range) -> str:
    return f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"


def make_run(out: Path, candidate: Candidate, map_name: str, seeds: range, total_steps: int) -> Run:
    run_dir = str(out / candidate.name / map_name / spelled(seeds))
    try:
        fields = candidate.inherited | candidate.changes
        taken = sorted(set(OWN) & fields.keys())
        if taken:
            raise ConfigError(f"{taken[0]}: not a candidate's to choose; the suite has a flag for it")
        values = (f"smax_{map_name}", seeds[0], len(seeds), total_steps, run_dir)
        cfg = load_config(candidate.config, **fields, **dict(zip(OWN, values, strict=True)))
        check_effects([cfg], candidate.changes)
        if cfg.eval.episodes < EPISODES:
            raise ConfigError(f"eval.episodes: {cfg.eval.episodes} are too few; the suite takes {EPISODES} or more")
    except ConfigError as error:
        raise ConfigError(f"{candidate.name}: {error}") from None
    return Run(candidate, map_name, seeds, cfg)


def check_unchanged(run: Run) -> None:
    """Raises ``ConfigError`` where a run was begun with other settings, as after a change of a preset."""
    path = run.dir / "config.yaml"
    if not path.is_file():
        return
    begun, now = (flatten(to_dict(cfg)) for cfg in (load_config(path), run.cfg))
    for field in sorted((begun.keys() | now.keys()) - WHO):
        if begun.get(field) != now.get(field):
            raise ConfigError(
                f"{run.candidate.name}: {field}: {spell(now.get(field))} now, but {shown(run.dir)} was begun with "
                f"{spell(begun.get(field))}; take another --out"
            )


def check_apart(run: Run) -> None:
    """Raises ``ConfigError`` where one of its seeds is in another run, begun with fewer or more seeds beside it."""
    for config in sorted(run.dir.parent.glob("*/config.yaml")):
        name = re.fullmatch(r"(\d+)(?:-(\d+))?", config.parent.name)
        if name is None or config.parent == run.dir:
            continue
        first, last = int(name[1]), int(name[2] or name[1])
        twice = [seed for seed in run.seeds if first <= seed <= last]
        if twice:
            raise ConfigError(
                f"seeds: {run.candidate.name} on {run.map} has {twice[0]} in {shown(config.parent)} already; ask "
                "for the same seeds in the same way, or take another --out"
            )


# How long it takes


class Left(NamedTuple):
    """What a run has left: steps of a member, and how many of those a second are made; ``measured``: by runs of its
    kind in this folder."""

    run: Run
    steps: int
    speed: float
    measured: bool

    @property
    def seconds(self) -> float:
        return self.steps / self.speed


def results_of(run_dir: Path) -> list[MemberResults]:
    """Every seed's evaluations so far; none where there are none yet."""
    with contextlib.suppress(ConfigError):
        return [member for member in read_run(run_dir).members if member.evaluations]
    return []


def what_is_left(runs: Sequence[Run]) -> list[Left]:
    last = {run: found[0].evaluations[-1] for run in runs if (found := results_of(run.dir))}
    left = []
    for run in runs:
        if run.finished:
            continue
        alike = [at for other, at in last.items() if other.kind == run.kind and at["wall_s"] > 0]
        longest = max(alike, key=lambda at: at["env_steps"], default=None)
        sizes = entries()[run.cfg.env.name].sizes
        assert sizes is not None
        speed = longest["env_steps"] / longest["wall_s"] if longest else expected_speed(run.cfg, sizes)
        done = last[run]["env_steps"] if run in last else 0
        left.append(Left(run, max(run.cfg.total_steps - done, 0), speed, longest is not None))
    return left


def plan_lines(runs: Sequence[Run], workers: int) -> Iterator[str]:
    left = what_is_left(runs)
    for row in left:
        told = "measured" if row.measured else "estimate"
        about = f"{row.steps:>12,} steps left {row.speed:>8,.0f} steps/s ({told}) {spell_seconds(row.seconds):>9}"
        yield f"{row.run.name:44} {about}"
    total = spell_seconds(sum(row.seconds for row in left) / workers)
    together = "one after another" if workers == 1 else f"{workers} at a time"
    yield f"{len(left)} of {len(runs)} runs are left: about {total}, {together}, without compiling"
    if not all(row.measured for row in left):
        yield f"Estimates are for {MACHINE}, and rough; a run that was begun is measured."


# Runs, worker by worker


@dataclass
class Worker:
    """Trains a run at a time in a process of its own, on these cores, or where there are none on all that there is."""

    cores: list[int]
    device: list[int]  # locked files, by which nobody else uses the cores or the accelerator
    run: Run | None = None
    process: subprocess.Popen[bytes] | None = None
    lock: int = -1

    def begin(self, run: Run, lock: int) -> None:
        """The process holds the locks, too: should this one be killed, nobody touches the run while it goes on."""
        self.run, self.lock = run, lock
        with run.beside("log").open("ab") as log:
            # A group of its own: Ctrl-C is for the suite, which passes it on once.
            self.process = subprocess.Popen(
                [*JQMIX, *run.command()], stdout=log, stderr=log, pass_fds=[lock, *self.device], process_group=0
            )
        if self.cores:
            os.sched_setaffinity(self.process.pid, self.cores)

    def ended(self) -> int | None:
        """The exit code, if its process ended; then it is free."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            self.process = None
            os.close(self.lock)
        return code


def lock_file(path: Path) -> int | None:
    """A file's lock as an open file, to be closed; None where another process has it. It goes with its processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def make_workers(out: Path, workers: int, cores: int) -> list[Worker]:
    """Workers with cores of their own, or one with the accelerator, which no other call in this folder has.

    Raises ``ConfigError`` where too few are free.
    """
    try:
        platform = device_platform()
    except subprocess.CalledProcessError:
        raise ConfigError("JAX finds no device that is free; what it said stands above") from None
    if platform == "cpu":
        return make_cpu_workers(out, workers, cores)
    if workers > 1:
        raise ConfigError(f"workers: {workers} would share an accelerator; it takes 1")
    lock = lock_file(out / f"{platform}.lock")
    if lock is None:
        raise ConfigError(f"out: another call in {shown(out)} has the accelerator")
    return [Worker([], [lock])]


def make_cpu_workers(out: Path, workers: int, cores: int) -> list[Worker]:
    if not hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return [Worker([], []) for _ in range(workers)]
    usable = sorted(os.sched_getaffinity(0))
    locked = ((core, lock_file(out / f"core-{core}.lock")) for core in usable)
    free = [(core, lock) for core, lock in locked if lock is not None]
    if len(free) < workers * cores:
        raise ConfigError(
            f"cores: {workers} × {cores} are more than the {len(free)} of {len(usable)} that no other call in "
            f"{shown(out)} has"
        )
    for _, lock in free[workers * cores :]:
        os.close(lock)
    shares = [free[first : first + cores] for first in range(0, workers * cores, cores)]
    return [Worker([core for core, _ in share], [lock for _, lock in share]) for share in shares]


def next_run(runs: Sequence[Run], failed: set[Run]) -> tuple[Run, int] | None:
    """The first run that is left and that nobody else trains, with its lock."""
    for run in runs:
        if run in failed or run.finished:
            continue
        lock = lock_file(run.beside("lock"))
        if lock is not None and not run.finished:  # it may have ended just now
            return run, lock
        if lock is not None:
            os.close(lock)
    return None


def train_all(runs: Sequence[Run], workers: Sequence[Worker], minutes: float) -> set[Run]:
    """Trains what is left, for about so many minutes; those of the runs that failed.

    In the end, and at a signal, the runs in progress are asked to save and stop; a signal is raised then.
    """
    failed: set[Run] = set()
    deadline, leaving = time.monotonic() + 60 * minutes, False
    with watched() as stop:
        while True:
            for worker in workers:
                settle(worker, leaving, failed)
                if not leaving and worker.process is None and (found := next_run(runs, failed)):
                    worker.begin(*found)
            busy = [worker.process for worker in workers if worker.process is not None]
            if not busy:
                break
            if not leaving and (stop or time.monotonic() > deadline):
                leaving = True
                for process in busy:
                    process.terminate()
            time.sleep(POLL_S)
        stop.raise_if_asked()
    return failed


def settle(worker: Worker, leaving: bool, failed: set[Run]) -> None:
    """Says how a worker's run ended, if it just did."""
    code, run = worker.ended(), worker.run
    if code is None or run is None:
        return
    if run.finished:
        print(f"{run.name}: {last_words(run)}", flush=True)
    elif leaving:
        print(f"{run.name}: stopped; {last_words(run)} so far", flush=True)
    else:
        failed.add(run)
        said = run.beside("log").read_text(errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "nothing")
        print(f"{run.name}: failed with {code}: {one_line(last)}", file=sys.stderr, flush=True)


def last_words(run: Run) -> str:
    found = results_of(run.dir)
    if not found:
        return "no evaluation"
    ends = [member.evaluations[-1] for member in found]
    rates = ", ".join(f"{end['eval/win_rate']:.3f}" for end in ends)
    diverged = "".join(f", diverged ({member.fault['fault']})" for member in found if member.fault)
    took = spell_seconds(ends[0]["wall_s"])
    return f"{ends[0]['env_steps']:,} steps, win rate {rates}, {took}{diverged}"


def run_suite(args: argparse.Namespace) -> int:
    """The exit code: 1 where a run failed."""
    runs = find_runs(args)
    if args.plan:
        print("\n".join(plan_lines(runs, args.workers)))
        return 0
    workers = make_workers(args.out, args.workers, args.cores)
    try:
        failed = train_all(runs, workers, args.minutes)
    finally:
        for lock in (lock for worker in workers for lock in worker.device):
            os.close(lock)
        left = what_is_left(runs)
        about = f": about {spell_seconds(sum(row.seconds for row in left) / args.workers)}; the same call goes on"
        print(f"{len(left)} of {len(runs)} runs are left{about if left else ''}")
    return 1 if failed else 0


# Results


def collect(args: argparse.Namespace) -> int:
    """A file for every seed that was evaluated, whether or not its run is finished."""
    check_parent("json_dir", args.json_dir)
    written = 0
    for path in sorted(args.out.glob("*/*/*/config.yaml")):
        *_, algorithm, map_name, _ = path.parent.parts
        for result in read_results(path.parent) if map_name in SMAX_MAPS else ():
            file = args.json_dir / algorithm / f"{map_name}-{result['seed']}.json"
            written += put_result(file, {"algorithm": algorithm, "map": map_name, **result})
    if not written:
        raise ConfigError(f"out: {shown(args.out)} has no runs with evaluations that are not in {shown(args.json_dir)}")
    print(f"{written} files in {args.json_dir}")
    return 0


def read_results(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Every seed's configuration, what it was made with, its curve, and what its best parameters reached in the end."""
    try:
        found = read_run(run_dir)
    except ConfigError as error:
        warn(f"left out: {error}")
        return
    config = {name: value for name, value in read_yaml(run_dir / "config.yaml").items() if name != "run_dir"}
    made_with = {name: found.metadata.get(name) for name in ("versions", "commit", "device", "replay_ratio")}
    finished = any(run_dir.glob("checkpoints/*_final"))
    for member in found.members:
        yield {
            "seed": member.seed,
            "total_steps": config["total_steps"],
            "env_steps": member.evaluations[-1]["env_steps"] if member.evaluations else 0,
            "finished": finished,
            "fault": member.fault and member.fault["fault"],
            "config": config,
            **made_with,
            "absolute": absolute_of(member),
            "curve": {name: [rounded(line[key]) for line in member.evaluations] for name, key in CURVE.items()},
        }


def absolute_of(member: MemberResults) -> dict[str, float] | None:
    ended = {k.removeprefix("absolute/"): rounded(v) for k, v in (member.absolute or {}).items() if "absolute/" in k}
    return ended or None


def rounded(value: float) -> float:
    """Without digits that say nothing: a win rate is a share of some hundred episodes."""
    return round(value, 5)


def put_result(file: Path, result: dict[str, Any]) -> bool:
    """Whether it was written: not where what is there goes further. Raises ``ConfigError`` for another run's."""
    if file.exists():
        there = read_json(file)
        if there.get("config") != json.loads(json.dumps(result["config"])):
            raise ConfigError(f"json_dir: {shown(file)} is of other settings; nothing was overwritten")
        if there["env_steps"] > result["env_steps"]:
            warn(f"{shown(file)} goes further than the run in this folder, and was kept")
            return False
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items() if name != "curve"]
    points = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in result["curve"].items()]
    lines.append(' "curve": {\n' + ",\n".join(points) + "\n }")
    write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")
    return True


def report(args: argparse.Namespace) -> int:
    smax_suite_report.write_report(args.json_dir, args.to, args.overwrite)
    print(args.to / smax_suite_report.REPORT)
    return 0


# Command line


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        complain(message)
        raise SystemExit(2)


def complain(message: str) -> None:
    print(f"smax_suite: {one_line(message)}", file=sys.stderr)


def number(kind: type[int] | type[float], low: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) < float("inf"):
                return value
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number from {low:g}")

    return read


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="run | collect | report", parser_class=Parser)
    run = commands.add_parser("run", help="train what is left of the suite")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the runs lie")
    about = f"presets or candidates (all of --candidates; else {' '.join(ALGORITHMS)})"
    run.add_argument("--algorithms", nargs="+", metavar="NAME", help=about)
    run.add_argument("--candidates", type=Path, metavar="FILE", help="a YAML file of candidates by name")
    run.add_argument("--maps", nargs="+", default=MAPS, metavar="MAP", help=f"or all ({' '.join(MAPS)})")
    run.add_argument("--seeds", nargs="+", type=number(int, 0), default=[0, 1], metavar="SEED", help="(0 1)")
    about = "seeds that follow one another are members of one run"
    run.add_argument("--together", action="store_true", help=about)
    run.add_argument("--total-steps", type=number(int, 1), default=2_000_000, help="of a run (2000000)")
    about = "stop after about so long, with what was trained saved (a week)"
    run.add_argument("--minutes", type=number(float, 0), default=7 * 24 * 60.0, help=about)
    run.add_argument("--workers", type=number(int, 1), default=1, help="runs at a time (1)")
    run.add_argument("--cores", type=number(int, 1), default=1, help="CPU cores of each worker (1)")
    run.add_argument("--plan", action="store_true", help="say how long what is left takes here; train nothing")
    run.set_defaults(run=run_suite)
    collected = commands.add_parser("collect", help="a small file of results for every seed")
    collected.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the runs lie")
    collected.add_argument("--json-dir", type=Path, required=True, metavar="JSON", help="the folder for the files")
    collected.set_defaults(run=collect)
    told = commands.add_parser("report", help="one report on files of results")
    told.add_argument("--json-dir", type=Path, nargs="+", required=True, metavar="JSON", help="folders of files")
    told.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder for the report")
    told.add_argument("--overwrite", action="store_true", help="replace an earlier report there")
    told.set_defaults(run=report)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except ConfigError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt as stopped:
        return exit_code(stopped)


if __name__ == "__main__":
    sys.exit(main())

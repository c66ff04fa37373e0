"""The command line: one function per command. JAX is imported only by commands that compute."""

import argparse
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jqmix.config import Config, ConfigError, describe_type, fields_of, load_config, preset_names
from jqmix.envs.registry import EnvError, entries
from jqmix.runs.study import TRICKS

DEFAULT_PRESET = "smax_3m"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        print(f"jqmix: {message}", file=sys.stderr)
        raise SystemExit(2)


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of the configuration, grouped as the configuration is."""
    groups: dict[str, Any] = {}
    defaults = Config()
    for path, hint, f in fields_of():
        head, _, _ = path.rpartition(".")
        group = groups.setdefault(head, parser.add_argument_group(head or "run"))
        value: Any = defaults
        for part in path.split("."):
            value = getattr(value, part)
        spelled = dict.fromkeys([f"--{path.replace('_', '-')}", f"--{path}"])
        about = f"{f.metadata['about']} ({describe_type(hint)}; default {value})"
        group.add_argument(
            *spelled, dest=path, default=argparse.SUPPRESS, metavar="VALUE", help=about.replace("%", "%%")
        )


def _parser() -> _Parser:
    parser = _Parser(
        prog="jqmix", description="Multi-agent Q-learning on JAX, compiled end to end.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    train = command("train", _train, "Train a population and write its run directory.")
    bench = command("bench", _bench, "Environment steps per second, compile time, memory.")
    about = f"a preset's name, a YAML file or a run directory ({DEFAULT_PRESET}, unless an environment is named)"
    for sub in (train, bench):
        sub.add_argument("config", nargs="?", metavar="CONFIG", help=about)
        _add_config_flags(sub)
        sub.usage = f"{sub.prog} [CONFIG] [--field VALUE …]"
    sweep = command("sweep", _sweep, "Every combination of a grid of values, as few programs as shapes.")
    ablate = command("ablate", _ablate, "The implementation tricks, each varied around a configuration; one report.")
    for sub in (sweep, ablate):
        sub.add_argument("config", nargs="?", metavar="CONFIG", help=about)
        sub.add_argument("--out", metavar="DIR", help="the study's folder (a new one in runs/)")
        _add_config_flags(sub)
        sub.usage = f"{sub.prog} [CONFIG] [--grid FIELD=V1,V2 …] [--field VALUE …]"
    sweep.add_argument("--grid", nargs="+", action="extend", required=True, metavar="FIELD=V1,V2", help="values to try")
    ablate.add_argument(
        "--grid", nargs="+", action="extend", default=[], metavar="FIELD=V1,V2", help="values of a trick"
    )
    ablate.add_argument(
        "--only", nargs="+", default=[], metavar="TRICK", help="study these alone: " + ", ".join(TRICKS)
    )
    train.add_argument("--quiet", action="store_true", help="print the run directory alone")
    train.epilog = "presets: " + ", ".join(preset_names())

    evaluate = command("evaluate", _evaluate, "Play whole greedy episodes with a run's newest checkpoint.")
    evaluate.add_argument("run_dir", metavar="RUN_DIR")
    evaluate.add_argument("--episodes", type=_whole(1), default=128, help="whole episodes per member (128)")
    evaluate.add_argument("--seed", type=_whole(0), default=0, help="of the environments (0)")

    report = command("report", _report, "Learning curves of runs (IQM with bootstrap intervals) as PNG, Markdown, CSV.")
    report.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories, or folders of them")
    report.add_argument("--out", metavar="DIR", help="where it is written (RUN_DIR/report, or ./report for several)")
    report.add_argument("--threshold", type=float, metavar="VALUE", help="also say when the IQM first was there")
    report.add_argument("--overwrite", action="store_true", help="even if the folder holds something already")

    igm = command(
        "igm", _igm, "The joint values that a run on a matrix game or the two-step game learned, next to the true ones."
    )
    igm.add_argument("run_dir", metavar="RUN_DIR")
    igm.add_argument("--out", metavar="PNG", help="draw them into this file, too")

    envs = command("envs", _envs, "Every environment with its sizes.")
    for sub in (bench, evaluate, report, igm, envs):
        sub.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


def _whole(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it takes a whole number ≥ {low}")
        return int(text)

    return parse


def _config(args: argparse.Namespace) -> Config:
    """The configuration that the arguments describe; told neither a preset nor an environment, the default preset."""
    known = {path for path, _, _ in fields_of()}
    given = {k: v for k, v in vars(args).items() if k in known}
    chosen = args.config or (None if {"env.name", "env.factory"} & given.keys() else DEFAULT_PRESET)
    return load_config(chosen, **given)


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Whatever libraries print while computing goes to stderr, so that stdout stays machine-readable."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _prepare(cache: bool = True) -> None:
    """What has to be settled before JAX starts. Benchmarks report compile times, so they do without the cache."""
    from jqmix.runs.jax_settings import check_environment

    check_environment()
    from jqmix.runs.devices import use_compilation_cache, use_cpu_cores

    use_cpu_cores()
    if cache:
        use_compilation_cache()


def _train(args: argparse.Namespace) -> None:
    cfg = _config(args)
    _prepare()
    from jqmix.runs.experiment import train

    result = train(cfg, quiet=args.quiet)
    if args.quiet:
        print(result.run_dir)


def _sweep(args: argparse.Namespace) -> None:
    from jqmix.runs.study import parse_grid, sweep

    _run_study(sweep(_config(args), parse_grid(args.grid)), args)


def _ablate(args: argparse.Namespace) -> None:
    from jqmix.runs.study import ablation, parse_grid

    _run_study(ablation(_config(args), parse_grid(args.grid), args.only), args)


def _run_study(study: Any, args: argparse.Namespace) -> None:
    if "run_dir" in vars(args):
        raise ConfigError("run_dir: a study's configurations have folders of their own; --out is where they lie")
    if "group" in vars(args):
        raise ConfigError("group: a study trains as many members at once as fit")
    _prepare()
    from jqmix.runs.ablate import run_study
    from jqmix.runs.report import report

    folder = run_study(study, args.out, args.command)
    rows, written = report([folder])
    _print_table(rows)
    print(f"report: {written / 'report.md'}")


def _evaluate(args: argparse.Namespace) -> None:
    from pathlib import Path

    from jqmix.runs.jax_settings import check_environment

    check_environment()
    from jqmix.runs.policy import evaluate_run, load_run_config

    load_run_config(Path(args.run_dir))
    with _stdout_for_results():
        rows = evaluate_run(args.run_dir, args.episodes, args.seed)
    if args.json:
        print(json.dumps(rows))
    else:
        _print_table(rows)


def _igm(args: argparse.Namespace) -> None:
    from jqmix.runs.jax_settings import check_environment

    check_environment()
    from jqmix.runs.igm import draw, joint_values

    with _stdout_for_results():
        situations = joint_values(args.run_dir)
    rows = [row for values in situations for row in values.rows()]
    print(json.dumps(rows) if args.json else "\n\n".join(values.text() for values in situations))
    if args.out is not None:
        draw(situations, args.out)


def _bench(args: argparse.Namespace) -> None:
    cfg = _config(args)
    _prepare(cache=False)
    from jqmix.runs.bench import bench

    with _stdout_for_results():
        result = bench(cfg)
    if args.json:
        print(json.dumps(result))
        return
    env, train = result["env_only"], result["training"]
    print(f"{result['environment']} on {result['device']}: {cfg.seeds} member(s) × {cfg.rollouts} rollouts")
    print(f"  environment alone  {env['steps_per_s']:>12,.0f} steps/s   compiled in {env['trace_and_compile_s']:.1f} s")
    print(
        f"  whole training     {train['steps_per_s']:>12,.0f} steps/s   traced in {train['trace_s']:.1f} s, "
        f"compiled in {train['compile_s']:.1f} s; {train['state_bytes'] / 1e6:,.0f} MB of state, "
        f"{train['temporary_bytes'] / 1e6:,.0f} MB temporary"
    )


def _report(args: argparse.Namespace) -> None:
    from jqmix.runs.report import report

    rows, folder = report(args.run_dirs, args.out, args.overwrite, args.threshold)
    if args.json:
        print(json.dumps(rows))
        return
    _print_table(rows)
    print(f"report: {folder / 'report.md'}")


def _envs(args: argparse.Namespace) -> None:
    rows = [{"name": n, **e.sizes._asdict()} for n, e in entries().items() if e.sizes is not None]
    if args.json:
        print(json.dumps(rows))
    else:
        _print_table(rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Columns of text, numbers to the right."""
    cells = [[str(k) for k in rows[0]]] + [
        ["–" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        first = line[0].ljust(widths[0])
        print("  ".join([first, *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]))


def main(argv: list[str] | None = None) -> int:
    try:
        args, unknown = _parser().parse_known_args(argv)
        if unknown:
            raise ConfigError(_unknown_flag(unknown[0]))
        args.run(args)
        sys.stdout.flush()
    except (ConfigError, EnvError) as error:
        print(f"jqmix: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has read enough: `jqmix envs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed at the end
    return 0


def _unknown_flag(flag: str) -> str:
    flags = [f"--{path.replace('_', '-')}" for path, _, _ in fields_of()]
    near = difflib.get_close_matches(flag.split("=")[0], flags, n=3, cutoff=0.5)
    return f"{flag}: no such argument" + (f"; did you mean {', '.join(near)}?" if near else " (see --help)")


if __name__ == "__main__":
    sys.exit(main())

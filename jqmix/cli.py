"""The command line: one function per command. JAX is imported only by commands that compute."""

import argparse
import contextlib
import difflib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jqmix.analysis.study import STUDY, TRICKS
from jqmix.chips.catalogue import CHIPS, MOST_DEVICES, chip_named
from jqmix.config import (
    CHOICES,
    EPISODES,
    RENAMED,
    STEPS,
    Config,
    ConfigError,
    build,
    check_effects,
    coerce_text,
    describe_field,
    fields_of,
    foreign_code,
    known_fields,
    preset_names,
    read_values,
    renamed,
)
from jqmix.envs.registry import EnvError, Sizes, entries, make_env
from jqmix.files import check_replaceable
from jqmix.inputs import (
    INT32,
    check_new_file,
    check_new_folder,
    check_parent,
    check_path_text,
    check_readable_path,
    one_line,
    parse_scalar,
    quoted,
    shown,
    unfit_number,
)
from jqmix.interrupts import exit_code
from jqmix.plugins import Registry
from jqmix.runs.clusters import check_share, detect_place, place_by_flags
from jqmix.runs.hosts import Place
from jqmix.runs.run_dir import RunError
from jqmix.settings import describe_type, settings_in

DEFAULT_PRESET = "smax_3m"
HOSTS = 10_000  # the most; of seeds there are no more


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2. Help that cannot be printed is an error like any other."""

    def print_help(self, file: Any = None) -> None:
        (file or sys.stdout).write(self.format_help())

    def flags(self) -> list[str]:
        """All that it takes and help shows, each in its first spelling."""
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        return [action.option_strings[0] for action in shown if action.option_strings]

    def error(self, message: str) -> NoReturn:
        _complain(message)
        raise SystemExit(2)


class _Version(argparse.Action):
    """Says what is installed, which a report of a bug should hold; looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        python = ".".join(map(str, sys.version_info[:3]))
        print(f"jqmix {version('jqmix')} (jax {version('jax')}, Python {python})")
        parser.exit()


def _add_config_flags(parser: argparse.ArgumentParser, foreign: Iterable[str]) -> None:
    """A flag for every field of the configuration, grouped as the configuration is, and for every setting of a mixer
    or a core. Those of earlier versions and of mixers from outside (``foreign``) are taken, too, but not shown."""
    groups: dict[str, Any] = {}
    defaults = Config()
    for path, hint, f in fields_of():
        head, _, _ = path.rpartition(".")
        value: Any = defaults
        for part in path.split("."):
            value = getattr(value, part)
        about = f"{f.metadata['about']} ({describe_field(path, hint)}; default {value})"
        group = groups.setdefault(head, parser.add_argument_group(head or "run"))
        _add_flag(group, path, about)
    shown = set()
    for head, registry in CHOICES.items():
        group = parser.add_argument_group(head, f"settings of what {registry.field} names")
        for name, about in _settings_help(registry).items():
            _add_flag(group, f"{head}.{name}", about)
            shown.add(f"{head}.{name}")
    for path in dict.fromkeys([*RENAMED, *foreign]):
        if path not in shown:
            _add_flag(parser, path, argparse.SUPPRESS)


def _add_flag(group: Any, path: str, about: str) -> None:
    spelled = dict.fromkeys([f"--{path.replace('_', '-')}", f"--{path}"])
    about = about if about == argparse.SUPPRESS else about.replace("%", "%%")
    group.add_argument(*spelled, dest=path, default=argparse.SUPPRESS, metavar="VALUE", help=about)


def _settings_help(registry: Registry) -> dict[str, str]:
    """What every setting of those that come with jqmix is, and whose: alike ones together."""
    found: dict[str, dict[str, list[str]]] = {}
    for owner, cls in registry.known_settings().items():
        for name, hint, f in settings_in(cls):
            about = f"{f.metadata['about']} ({describe_type(hint)}; default {f.default})"
            found.setdefault(name, {}).setdefault(about, []).append(owner)
    return {name: "; ".join(f"{', '.join(of)}: {text}" for text, of in texts.items()) for name, texts in found.items()}


def _foreign_flags(argv: Sequence[str]) -> list[str]:
    """Flags of mixers and cores among the arguments: only the mixer could tell whether it has them."""
    flags = (arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in argv if arg.startswith("--"))
    return [f for f in flags if f.partition(".")[0] in CHOICES and all(map(str.isidentifier, f.split(".")))]


def _parser(foreign: Sequence[str] = ()) -> _Parser:
    """All commands, in the order in which help lists them. ``foreign``: flags of mixers and cores from outside."""
    parser = _Parser(
        prog="jqmix", description="Multi-agent Q-learning on JAX, compiled end to end.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version, and those of jax and Python")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        return sub

    _add_train_arguments(command("train", _train, "Train a population and write its run directory."), foreign)
    _add_bench_arguments(command("bench", _bench, "Environment steps per second, compile time, memory."), foreign)
    about = "Members on devices, memory, speed and cost of a run, on chips that need not be here."
    _add_plan_arguments(command("plan", _plan, about), foreign)
    about = "Every combination of a grid of values, as few programs as shapes."
    _add_sweep_arguments(command("sweep", _sweep, about), foreign)
    about = "The implementation tricks, each varied around a configuration; one report."
    _add_ablate_arguments(command("ablate", _ablate, about), foreign)
    _add_resume_arguments(command("resume", _resume, "Go on with a run or a study from its newest checkpoints."))
    _add_evaluate_arguments(
        command("evaluate", _evaluate, "Play whole greedy episodes with a run's newest checkpoint.")
    )
    _add_report_arguments(
        command("report", _report, "Learning curves of runs (IQM, bootstrap intervals), and tables to compare them.")
    )
    _add_export_arguments(command("export", _export, "A trained policy as a folder that runs anywhere, without jqmix."))
    about = "The joint values that a run on a matrix game or the two-step game learned, next to the true ones."
    _add_igm_arguments(command("igm", _igm, about))
    _add_render_arguments(command("render", _render, "A film of greedy episodes of a run, as GIF or MP4."))
    about = "Every preset: environment, algorithm, steps, and how long it is expected to take."
    _add_json_flag(command("presets", _presets, about))
    _add_envs_arguments(command("envs", _envs, "Every environment with its sizes; or one's own, checked."))
    return parser


def _add_config_argument(parser: argparse.ArgumentParser) -> None:
    about = f"a preset's name, a YAML file or a run directory ({DEFAULT_PRESET}, unless an environment is named)"
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=about)


def _add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _add_trust_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="store_true", help="run code from outside that the run names")


def _add_train_arguments(parser: argparse.ArgumentParser, foreign: Sequence[str]) -> None:
    _add_config_argument(parser)
    _add_config_flags(parser, foreign)
    parser.usage = f"{parser.prog} [CONFIG] [--field VALUE …]"
    parser.add_argument("--quiet", action="store_true", help="print the run directory alone")
    _add_json_flag(parser)
    about = "say what would be trained, where, in what memory and about how long; write nothing"
    parser.add_argument("--dry-run", action="store_true", help=about)
    _add_hosts_flags(parser)
    parser.epilog = "presets (`jqmix presets` says more): " + ", ".join(preset_names())


def _add_bench_arguments(parser: argparse.ArgumentParser, foreign: Sequence[str]) -> None:
    _add_config_argument(parser)
    _add_config_flags(parser, foreign)
    parser.usage = f"{parser.prog} [CONFIG] [--target CHIP] [--field VALUE …]"
    about = f"compile one iteration for this chip, which need not be here, in place of running it: {', '.join(CHIPS)}"
    parser.add_argument("--target", metavar="CHIP", help=about)
    about = "how many of the chip (1)"
    parser.add_argument("--devices", type=_whole(1, MOST_DEVICES), metavar="N", help=about)
    _add_json_flag(parser)


def _add_plan_arguments(parser: argparse.ArgumentParser, foreign: Sequence[str]) -> None:
    _add_config_argument(parser)
    _add_config_flags(parser, foreign)
    parser.usage = f"{parser.prog} [CONFIG] [--target CHIP] [--devices N] [--field VALUE …]"
    about = f"the chip (without, the machine at hand, and no speed): {', '.join(CHIPS)}"
    parser.add_argument("--target", metavar="CHIP", help=about)
    parser.add_argument("--devices", type=_whole(1, MOST_DEVICES), metavar="N", help="how many of the chip (1)")
    parser.add_argument("--price", type=_number, metavar="DOLLARS", help="of a chip for an hour: says what a run costs")
    about = "compile for the chip and go by that, where the traced program alone does (takes an extra, and a minute)"
    parser.add_argument("--compile", action="store_true", help=about)
    _add_json_flag(parser)


def _add_study_arguments(parser: argparse.ArgumentParser, foreign: Sequence[str]) -> None:
    """What sweep and ablate have in common."""
    _add_config_argument(parser)
    parser.add_argument("--out", metavar="DIR", help="the study's folder (a new one in runs/)")
    _add_config_flags(parser, foreign)
    parser.usage = f"{parser.prog} [CONFIG] [--grid FIELD=V1,V2 …] [--field VALUE …]"


def _add_sweep_arguments(parser: argparse.ArgumentParser, foreign: Sequence[str]) -> None:
    _add_study_arguments(parser, foreign)
    parser.add_argument(
        "--grid", nargs="+", action="extend", required=True, metavar="FIELD=V1,V2", help="values to try"
    )


def _add_ablate_arguments(parser: argparse.ArgumentParser, foreign: Sequence[str]) -> None:
    _add_study_arguments(parser, foreign)
    parser.add_argument(
        "--grid", nargs="+", action="extend", default=[], metavar="FIELD=V1,V2", help="values of a trick"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TRICK", help="study these alone: " + ", ".join(TRICKS)
    )


def _add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run directory, or a study's folder")
    parser.add_argument(
        "--total-steps", type=_whole(1, STEPS), metavar="N", help="go on to so many steps; also a finished run"
    )
    parser.add_argument("--log", metavar="NAMES", help="trackers, in place of the run's own; none: without")
    _add_trust_flag(parser)
    parser.add_argument("--quiet", action="store_true", help="print the run directory alone")
    _add_json_flag(parser)
    _add_hosts_flags(parser)


def _add_hosts_flags(parser: argparse.ArgumentParser) -> None:
    """For a run that several processes share."""
    about = "processes that share the run's seeds, each given this command; SLURM, MPI, TPU pods need no flags"
    group = parser.add_argument_group("hosts", about)
    about = "so many processes, one for each machine (1, unless a cluster says how many)"
    group.add_argument("--hosts", type=_whole(1, HOSTS), metavar="N", help=about)
    group.add_argument("--host", type=_whole(0, HOSTS - 1), metavar="I", help="which of them this is, counted from 0")
    group.add_argument("--coordinator", metavar="ADDRESS:PORT", help="where host 0 listens and all others find it")


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--episodes", type=_whole(1, EPISODES), default=128, help="whole episodes per member (128)")
    parser.add_argument("--best", action="store_true", help="the parameters that played best while training")
    parser.add_argument("--seed", type=_whole(0, INT32), default=0, help="of the environments (0)")
    _add_trust_flag(parser)
    _add_json_flag(parser)


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories, or folders of them")
    parser.add_argument("--out", metavar="DIR", help="where it is written (RUN_DIR/report, or ./report for several)")
    parser.add_argument("--threshold", type=_number, metavar="VALUE", help="also say when the IQM first was there")
    parser.add_argument("--metric", metavar="NAME", help="what is shown, as eval/return_mean or train/loss (win rate)")
    about = "names for groups: NAME=RUN_DIR, NAME=GROUP as tables call it, or by settings, NAME=algo.mixer=vdn"
    parser.add_argument("--labels", nargs="+", action="extend", metavar="NAME=WHAT", help=about)
    parser.add_argument("--over", default="steps", metavar="WHAT", help="curves over steps or seconds (steps)")
    about = "of figures: column (3.3 in), wide (6.9 in) or WIDTHxHEIGHT in inches"
    parser.add_argument("--size", metavar="SIZE", help=about)
    parser.add_argument("--format", default="png", metavar="KIND,…", help="of figures: png, svg, pdf or several (png)")
    parser.add_argument("--marl-eval", metavar="FILE", help="also write evaluations as JSON for the tool marl-eval")
    parser.add_argument("--overwrite", action="store_true", help="even if the folder holds something already")
    _add_json_flag(parser)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--member", type=_whole(0, INT32), default=0, help="whose policy: the run's seed plus this (0)")
    parser.add_argument("--best", action="store_true", help="the parameters that played best while training")
    parser.add_argument("--overwrite", action="store_true", help="even if the folder holds something already")
    _add_trust_flag(parser)
    parser.epilog = (
        "Writes weights (safetensors), a description (JSON), a program for any batch (StableHLO, for cpu, cuda and "
        "tpu) and numpy_policy.py, which acts with NumPy alone. jqmix.load_policy(DIR) reads the folder, too."
    )


def _add_igm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--out", metavar="PNG", help="draw them into this file, too")
    _add_trust_flag(parser)
    _add_json_flag(parser)


def _add_render_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--out", metavar="FILE", help=".gif, or .mp4 with jqmix[video] (RUN_DIR/episode.gif)")
    parser.add_argument("--episodes", type=_whole(1, 16), default=4, help="so many side by side, 1 to 16 (4)")
    parser.add_argument("--seed", type=_whole(0, INT32), default=0, help="of the environments, as in evaluate (0)")
    parser.add_argument("--member", type=_whole(0, INT32), default=0, help="of the run, counted from 0 (0)")
    parser.add_argument("--best", action="store_true", help="the parameters that played best while training")
    parser.add_argument("--fps", type=_whole(1, 50), help="frames per second, 1 to 50 (what suits the environment)")
    _add_trust_flag(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def _add_envs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", metavar="FACTORY", help="check what package.module:function builds")
    parser.add_argument(
        "--env.kwargs", dest="kwargs", default="{}", metavar="YAML", help="--check: the factory's arguments"
    )
    _add_json_flag(parser)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = parse_scalar(text)
        if isinstance(number, bool) or not isinstance(number, int | float) or number % 1 or not low <= number <= high:
            raise argparse.ArgumentTypeError(
                f"{quoted(text)} is not allowed; it takes a whole number ≥ {low} and ≤ {high}"
            )
        return int(number)

    return parse


def _number(text: str) -> int | float:
    number = parse_scalar(text)
    if isinstance(number, bool) or not isinstance(number, int | float) or unfit_number(number):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not allowed; it takes a number")
    return number


def _check_there(run_dir: str, file: str = "") -> None:
    """A folder is there, with this file in it: asked before anything is loaded that could read it."""
    check_readable_path("run_dir", run_dir)
    path = Path(run_dir)
    if not path.is_dir() or not (path / file).exists():
        raise ConfigError(f"run_dir: {shown(run_dir)} is not a run directory (no config.yaml)")


def _given(args: argparse.Namespace) -> dict[str, str]:
    """The configuration's fields that have a flag among the arguments, by today's names."""
    known = known_fields().keys() | RENAMED.keys()
    given = {p: text for p, text in vars(args).items() if p in known or p.partition(".")[0] in CHOICES}
    return renamed(given)


def _values(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say; told neither a preset nor an environment, of the default preset."""
    given = _given(args)
    nothing = None if {"env.name", "env.factory"} & given.keys() else DEFAULT_PRESET
    return read_values(nothing if args.config is None else args.config, **given)


def _config(args: argparse.Namespace) -> Config:
    """The configuration that the arguments describe."""
    values = _values(args)
    if any(registry.field in foreign_code(values) for registry in CHOICES.values()):
        _prepare(cache=False)  # it is loaded now, and JAX with it
    return build(values)


def _run_config(args: argparse.Namespace) -> Config:
    """The configuration of a single run: every flag that is given must do something in it."""
    cfg = _config(args)
    check_effects([cfg], _given(args))
    return cfg


def _check_place(field: str, path: str | None) -> None:
    """A new folder can be made there, or in runs/ where it has no name yet."""
    if path is None:
        check_parent("run_dir", "runs")
    else:
        check_new_folder(field, path)


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Whatever libraries print while computing goes to stderr, so that stdout stays machine-readable."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _prepare(cache: bool = True) -> None:
    """What has to be settled before JAX starts. Benchmarks report compile times, so they do without the cache."""
    from jqmix.runs.jax_settings import prepare

    prepare(cache)


def _place(args: argparse.Namespace) -> Place | None:
    """Which of several processes this is, as flags say; None where they don't, and the cluster may."""
    return place_by_flags(args.hosts, args.host, args.coordinator)


def _train(args: argparse.Namespace) -> None:
    cfg = _run_config(args)
    place = _place(args)
    check_share(cfg, place or Place())
    _check_place("run_dir", cfg.run_dir)
    if args.dry_run and args.json:
        raise ConfigError("json: has no effect with --dry-run, which tells in words")
    _prepare()
    from jqmix.runs.experiment import dry_run, train

    if args.dry_run:
        with _stdout_for_results():
            lines = dry_run(cfg, place)
        print("\n".join(lines))
        return
    place = place or detect_place()
    _print_result(args, place, lambda: train(cfg, quiet=args.quiet, place=place))


def _resume(args: argparse.Namespace) -> None:
    path = Path(args.run_dir)
    is_study, place = os.path.isfile(path / STUDY), _place(args)
    _check_there(args.run_dir, STUDY if is_study else "config.yaml")
    _prepare()
    if is_study:
        return _resume_study(path, args)
    from jqmix.runs.experiment import resume

    place = place or detect_place()
    options = {"quiet": args.quiet, "trust": args.trust, "log": args.log, "place": place}
    _print_result(args, place, lambda: resume(path, args.total_steps, **options))


def _print_result(args: argparse.Namespace, place: Place, compute: Callable[[], Any]) -> None:
    """What a run came to, as the flags ask for it. With ``--json``, stdout is for that alone; of several processes the
    first prints it."""
    with _stdout_for_results() if args.json else contextlib.nullcontext():
        result = compute()
    if place.index > 0:
        return
    if args.json:
        print(json.dumps(result.summary()))
    elif args.quiet:
        print(result.run_dir)


def _resume_study(path: Any, args: argparse.Namespace) -> None:
    if args.hosts is not None:
        raise ConfigError("hosts: a study trains in one process")
    if args.total_steps is not None:
        raise ConfigError("total_steps: a study's configurations have their own; it goes on to these")
    if args.log is not None:
        raise ConfigError("log: a study's configurations have their own; it goes on with these")
    from jqmix.analysis.report import report
    from jqmix.runs.ablate import resume_study

    with _stdout_for_results() if args.json else contextlib.nullcontext():
        resume_study(path, args.trust)
        rows, written = report([path], overwrite=True)
    if args.json:
        return print(json.dumps(rows))
    _print_table(rows)
    print(f"report: {written / 'report.md'}")


def _sweep(args: argparse.Namespace) -> None:
    from jqmix.analysis.study import parse_grid, sweep

    cfg = _config(args)
    grid = parse_grid(args.grid, cfg)
    study = sweep(cfg, grid, _values(args))
    check_effects(list(study.configs.values()), grid)
    _run_study(study, args)


def _ablate(args: argparse.Namespace) -> None:
    from jqmix.analysis.study import ablation, parse_grid

    cfg = _config(args)
    _run_study(ablation(cfg, parse_grid(args.grid, cfg), args.only), args)


def _run_study(study: Any, args: argparse.Namespace) -> None:
    if "run_dir" in vars(args):
        raise ConfigError("run_dir: a study's configurations have folders of their own; --out is where they lie")
    if "group" in vars(args):
        raise ConfigError("group: a study trains as many members at once as fit")
    check_effects(list(study.configs.values()), _given(args))
    _check_place("out", args.out)
    _prepare()
    from jqmix.analysis.report import report
    from jqmix.analysis.tables import filled
    from jqmix.runs.ablate import run_study

    folder = run_study(study, args.out, args.command)
    rows, written = report([folder])
    _print_table(filled(rows))
    print(f"report: {written / 'report.md'}")


def _evaluate(args: argparse.Namespace) -> None:
    _check_there(args.run_dir, "config.yaml")
    _prepare()
    from jqmix.runs.policy import evaluate_run, load_run_config
    from jqmix.runs.terminal import Terminal

    load_run_config(Path(args.run_dir), args.trust)  # refuses before anything is said
    with _stdout_for_results(), Terminal() as terminal:
        terminal.say(f"evaluating {args.run_dir}", to_copy=True)
        rows = evaluate_run(args.run_dir, args.episodes, args.seed, args.best, args.trust, terminal.stage)
    if args.json:
        print(json.dumps(rows))
    else:
        _print_table(rows)


def _export(args: argparse.Namespace) -> None:
    _check_there(args.run_dir, "config.yaml")
    check_path_text("out", args.out)
    check_replaceable(Path(args.out), args.overwrite)
    from jqmix.runs.jax_settings import check_environment

    check_environment()
    from jqmix.runs.export import export, summary

    with _stdout_for_results():
        about = export(args.run_dir, args.out, args.member, args.best, args.trust, args.overwrite)
    print(summary(about, Path(args.out)))


def _igm(args: argparse.Namespace) -> None:
    _check_there(args.run_dir, "config.yaml")
    if args.out is not None:
        check_new_file("out", args.out)
    _prepare()
    from jqmix.analysis.joint_values import draw_value_tables
    from jqmix.runs.igm import joint_values

    with _stdout_for_results():
        situations = joint_values(args.run_dir, args.trust)
    rows = [row for values in situations for row in values.rows()]
    print(json.dumps(rows) if args.json else "\n\n".join(values.text() for values in situations))
    if args.out is not None:
        draw_value_tables(situations, args.out)


def _render(args: argparse.Namespace) -> None:
    _check_there(args.run_dir, "config.yaml")
    from jqmix.rendering.video import video_format

    out = Path(args.run_dir) / "episode.gif" if args.out is None else args.out
    video_format(out, args.overwrite)
    from jqmix.runs.jax_settings import check_environment

    check_environment()
    from jqmix.runs.render import render

    options = {name: getattr(args, name) for name in ("episodes", "seed", "member", "best", "fps", "trust")}
    with _stdout_for_results():
        video = render(args.run_dir, out, overwrite=args.overwrite, **options)
    print(f"{video.path}: {video.about}")


def _bench(args: argparse.Namespace) -> None:
    cfg = _run_config(args)
    for field in ("run_dir", "log"):
        if field in _given(args):
            raise ConfigError(f"{field}: has no effect; bench writes nothing")
    if args.devices is not None and args.target is None:
        raise ConfigError("devices: has no effect without --target")
    if args.target is not None:
        return _bench_target(cfg, args)
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


def _bench_target(cfg: Config, args: argparse.Namespace) -> None:
    chip_named(args.target)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator that is here has no part in it
    _prepare(cache=False)
    from jqmix.runs.target import bench_target, target_summary

    with _stdout_for_results():
        result = bench_target(cfg, args.target, args.devices or 1)
    print(json.dumps(result) if args.json else target_summary(result))


def _plan(args: argparse.Namespace) -> None:
    cfg = _run_config(args)
    for field in ("run_dir", "log"):
        if field in _given(args):
            raise ConfigError(f"{field}: has no effect; plan writes nothing")
    for flag in ("devices", "price", "compile"):
        if args.target is None and getattr(args, flag) not in (None, False):
            raise ConfigError(f"{flag}: has no effect without --target")
    if args.price is not None and not args.price > 0:
        raise ConfigError(f"price: {args.price:g} is not allowed; it takes a number > 0")
    if args.target is not None:
        chip_named(args.target)
        os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator that is here has no part in it
    _prepare(cache=False)
    from jqmix.runs.plan import plan, plan_text

    with _stdout_for_results():
        said = plan(cfg, args.target, args.devices or 1, args.price, args.compile)
    print(json.dumps(said) if args.json else plan_text(said))


def _report(args: argparse.Namespace) -> None:
    for run_dir in args.run_dirs:
        _check_there(run_dir)
    from jqmix.analysis.figures import parse_drawing
    from jqmix.analysis.labels import parse_labels
    from jqmix.analysis.report import report
    from jqmix.analysis.tables import filled

    rows, folder = report(
        args.run_dirs,
        args.out,
        args.overwrite,
        args.threshold,
        metric=args.metric,
        labels=parse_labels(args.labels or []),
        drawing=parse_drawing(args.size, args.format, args.over),
        marl_eval=args.marl_eval,
    )
    if args.json:
        print(json.dumps(rows))
        return
    _print_table(filled(rows))
    print(f"report: {folder / 'report.md'}")


def _presets(args: argparse.Namespace) -> None:
    from jqmix.analysis.duration import MACHINE, preset_rows, spell_seconds

    rows = preset_rows()
    if args.json:
        print(json.dumps(rows))
        return
    shown_as = {"total_steps": "steps", "seconds": "about"}
    for row in rows:
        row["total_steps"] = f"{row['total_steps']:,}"
        more = "> " if "jaxmarl" in str(entries()[row["environment"]].factory) else ""
        row["seconds"] = None if row["seconds"] is None else more + spell_seconds(row["seconds"])
    _print_table([{shown_as.get(name, name): value for name, value in row.items()} for row in rows])
    print(f"\nabout: an estimate for one seed on {MACHINE}, without compiling")
    print(">: that, and what JaxMARL's own environment takes")
    print("`jqmix bench PRESET` measures the speed here, `jqmix train PRESET --dry-run` says what a run would be")


def _envs(args: argparse.Namespace) -> None:
    if args.check is not None:
        _check_env(args)
        return
    rows = [{"name": n, **e.sizes._asdict()} for n, e in entries().items() if e.sizes is not None]
    if args.json:
        print(json.dumps(rows))
    else:
        _print_table(rows)


def _check_env(args: argparse.Namespace) -> None:
    kwargs = coerce_text("env.kwargs", args.kwargs)
    _prepare()
    from jqmix.envs.check import check_env

    with _stdout_for_results():
        env = make_env(None, factory=args.check, **kwargs)
        check_env(env)
    row = {"name": env.spec.name, **{size: getattr(env.spec, size) for size in Sizes._fields}, "check": "ok"}
    print(json.dumps(row)) if args.json else _print_table([row])


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Columns of text, numbers to the right."""
    cells = [[str(k) for k in rows[0]]] + [[_cell(v) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        first = line[0].ljust(widths[0])
        print("  ".join([first, *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]))


def _cell(value: Any) -> str:
    if value in (None, []):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ready_streams() -> None:
    """What stdout cannot spell is replaced, not raised. Closed, it is a file that nothing can be written to: a file
    opened later must not become what is printed on."""
    if sys.stdout is None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _flush() -> None:
    """Prints what is still to be printed; what cannot be is dropped, so that it does not come up again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _complain(text: object) -> None:
    """One line on stderr, whatever the text; a stderr that is broken is no reason to stop."""
    with contextlib.suppress(OSError):
        print(f"jqmix: {one_line(str(text))}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code. No error leaves as a traceback, unless JQMIX_DEBUG is set."""
    _ready_streams()
    try:
        try:
            args, unknown = _parse(argv)
            if unknown:
                raise ConfigError(_unknown_flag(unknown[0], args.parser.flags()))
            _refuse_dashes(args)
            args.run(args)
        finally:
            _flush()
    except (ConfigError, EnvError) as error:
        _complain(error)
        return 2
    except RunError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt as interrupt:
        return exit_code(interrupt)
    except BrokenPipeError:  # whoever reads has read enough: `jqmix envs | head`
        return 0
    except Exception as error:
        if os.environ.get("JQMIX_DEBUG"):
            raise
        _complain(f"{type(error).__name__}: {error} (JQMIX_DEBUG=1 shows where)")
        return 1
    return 0


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    foreign = _foreign_flags(sys.argv[1:] if argv is None else argv)
    return _parser(tuple(foreign)).parse_known_args(argv)


def _refuse_dashes(args: argparse.Namespace) -> None:
    """argparse takes ``--flag=--`` for a flag without a value and makes a list of nothing of it."""
    for name, value in vars(args).items():
        if value == [] and name not in ("grid", "only"):
            raise ConfigError(f"{name}: '--' is not allowed")


def _unknown_flag(flag: str, flags: Sequence[str]) -> str:
    near = difflib.get_close_matches(shown(flag.split("=")[0]), flags, n=3, cutoff=0.5)
    return f"{shown(flag)}: no such argument" + (f"; did you mean {', '.join(near)}?" if near else " (see --help)")


if __name__ == "__main__":
    sys.exit(main())

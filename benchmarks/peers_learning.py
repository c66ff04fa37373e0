"""What JaxMARL's program and jqmix learn, over environment steps and over seconds, and how fast they do it.

``--algorithm pqn_vdn``: equal settings (those of JaxMARL's ``pqn_vdn_rnn_smax.yaml``, but for the width). What is left
different: JaxMARL normalises its layers by batch statistics, jqmix by layer normalisation. ``--algorithm qmix``, and
``vdn_cnn`` and ``pqn_vdn_cnn`` on Overcooked: each program's own settings, jqmix's from the preset of the case.

``--ours LABEL FIELD=VALUE …`` adds another run of ours, changed from the first (``preset=NAME``: begun from that preset
instead); for instance ``--ours PQN-QMIX algo.mixer=qmix``. It can be repeated.

SMAX is judged by win rates, MPE and Overcooked by returns; ``--level`` is one of them.

Every program trains every seed in a process of its own, the programs one after another for each seed, without a cache
of compiled programs. Both evaluate greedily at the same environment steps: JaxMARL plays ``--episodes`` environments
for a window and counts the episodes that end in it, jqmix that many whole episodes. Seconds begin before tracing and
include evaluations. Steps per second are those of training with its evaluations, after compiling. ``--limit`` ends a
run after so many seconds; its schedules stay those of ``--total-steps``. ``--products`` computes the convolutions of
JaxMARL's Overcooked programs as matrix products, which a CPU bears: the same function, other seconds.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from jaxmarl_work import (
    CASES,
    OVERCOOKED,
    Conv,
    load_program,
    overcooked_settings,
    pqn_fields,
    pqn_settings,
    qmix_settings,
    sized_case,
)
from measure import ANSWER, answer, fields, use_cpu_cores, write

Point = dict[str, float]  # env_steps, wall_s, and what the game is judged by
Trained = dict[str, Any]  # a seed's curve, and what compiling took

# The cases of each algorithm.
PLAYED = {
    "pqn_vdn": [name for name in CASES if name.startswith("smax")],
    "qmix": list(CASES),
    "vdn_cnn": list(OVERCOOKED),
    "pqn_vdn_cnn": list(OVERCOOKED),
}

# What a greedy evaluation is judged by, and what JaxMARL's program calls it.
JAXMARL_NAMES = {"win_rate": "test_returned_won_episode", "return_mean": "test_returned_episode_returns"}


def _judged_by(case: str) -> str:
    return "win_rate" if case.startswith("smax") else "return_mean"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jaxmarl", type=Path, required=True, metavar="CLONE", help="a clone of JaxMARL's repository")
    parser.add_argument("--algorithm", choices=list(PLAYED), default="pqn_vdn")
    parser.add_argument("--case", choices=[*CASES, *OVERCOOKED], default="smax_3m")
    parser.add_argument(
        "--hidden", type=int, help="width of the agents, in place of JaxMARL's default; not of Overcooked's"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …, trained one after another")
    parser.add_argument("--total-steps", type=int, default=2_000_000, help="of each seed; rounded to evaluations")
    parser.add_argument("--evaluations", type=int, default=20, help="of a whole run")
    parser.add_argument("--episodes", type=int, default=128, help="of an evaluation")
    parser.add_argument("--level", type=float, default=0.95, help="the win rate, or return, whose time is noted")
    parser.add_argument("--limit", type=float, default=86400.0, help="seconds to end a run after")
    parser.add_argument("--ours", nargs="+", action="append", default=[], metavar="LABEL FIELD=VALUE …")
    parser.add_argument("--figure", type=Path, help="where to draw the curves; else beside --json, as PNG")
    parser.add_argument("--products", action="store_true", help="JaxMARL's convolutions are matrix products")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    if args.case not in PLAYED[args.algorithm]:
        sys.exit(f"--case: {args.case}: --algorithm {args.algorithm} has {', '.join(PLAYED[args.algorithm])}")
    if args.case in OVERCOOKED and args.hidden is not None:
        sys.exit("--hidden: Overcooked's programs have the width of their own settings")
    if args.products and args.case not in OVERCOOKED:
        sys.exit("--products: Overcooked's programs alone have convolutions")
    plan = _plan(args)
    if args.serve is not None:
        return _serve(args, plan)
    judged = _judged_by(args.case)
    runs = {"jqmix": {}} | {label: fields(changes) for label, *changes in args.ours}
    flags = {label: _flags(args, plan, changes) for label, changes in runs.items()}
    trained: dict[str, list[Trained]] = {name: [] for name in ("JaxMARL", *flags)}
    for seed in range(args.seeds):
        trained["JaxMARL"].append(_jaxmarl(seed, args.limit))
        for label, words in flags.items():
            trained[label].append(_jqmix(seed, words, args.limit, judged))
        for name, seeds in trained.items():
            _show(name, seeds[-1], judged)
    use_cpu_cores()
    result = {
        "environment": args.case,
        "algorithm": args.algorithm,
        "plan": plan,
        "products": args.products,
        "judged_by": judged,
        "level": args.level,
        "settings": {"JaxMARL": _settings(args, plan)} | flags,
        "programs": {name: _summary(seeds, judged, args.level) for name, seeds in trained.items()},
    }
    _print_ratios(result["programs"], judged)
    write(args.json, result)
    picture = args.figure or (args.json and args.json.with_suffix(".png"))
    if picture:
        _draw(picture, result)


def _plan(args: argparse.Namespace) -> dict[str, int]:
    """How many iterations of JaxMARL's there are, and between evaluations; steps are whole evaluations' worth."""
    settings = _own_settings(args, args.total_steps)
    per_iteration = int(settings["NUM_ENVS"] * settings["NUM_STEPS"])
    between = max(1, args.total_steps // per_iteration // args.evaluations)
    return {
        "steps_per_iteration": per_iteration,
        "iterations_per_evaluation": between,
        "iterations": between * args.evaluations,
        "total_steps": between * args.evaluations * per_iteration,
        "episodes": args.episodes,
    }


# JaxMARL


def _own_settings(args: argparse.Namespace, total_steps: int) -> dict[str, Any]:
    """JaxMARL's settings as it is configured, but for its evaluations."""
    if args.case in OVERCOOKED:
        return overcooked_settings(args.jaxmarl, args.algorithm, OVERCOOKED[args.case], total_steps)
    make = pqn_settings if args.algorithm == "pqn_vdn" else qmix_settings
    return make(sized_case(args.case, args.hidden), total_steps)


def _settings(args: argparse.Namespace, plan: dict[str, int]) -> dict[str, Any]:
    settings = _own_settings(args, plan["total_steps"])
    return settings | {
        "TEST_DURING_TRAINING": True,
        # It takes the whole number below iterations × this.
        "TEST_INTERVAL": (plan["iterations_per_evaluation"] + 0.5) / plan["iterations"],
        # As long as an episode, of which Overcooked's programs collect a part at a time.
        "TEST_NUM_STEPS": max(settings["NUM_STEPS"], settings["TEST_NUM_STEPS"]),
        "TEST_NUM_ENVS": plan["episodes"],
    }


def _serve(args: argparse.Namespace, plan: dict[str, int]) -> None:
    """JaxMARL's own process: trains a seed and answers what compiling took, then every evaluation."""
    import jax

    use_cpu_cores()
    begin, judged = time.perf_counter(), _judged_by(args.case)

    def report(at: float, metrics: dict[str, Any]) -> None:
        if int(metrics["update_steps"]) % plan["iterations_per_evaluation"] == 0:
            score = {judged: float(metrics[JAXMARL_NAMES[judged]])}
            answer({"env_steps": int(metrics["env_step"]), "wall_s": at - begin} | score)

    if args.products:
        import flax.linen

        flax.linen.Conv = Conv
    config = _settings(args, plan)
    module = load_program(args.jaxmarl, args.algorithm, report)
    env, _ = module.env_from_config(dict(config))
    begin = time.perf_counter()
    lowered = jax.jit(module.make_train(config, env)).lower(jax.random.PRNGKey(args.serve))
    traced = time.perf_counter()
    compiled = lowered.compile()
    answer({"trace_s": traced - begin, "compile_s": time.perf_counter() - traced})
    jax.block_until_ready(compiled(jax.random.PRNGKey(args.serve)))
    jax.effects_barrier()


def _jaxmarl(seed: int, limit: float) -> Trained:
    """A seed trained by JaxMARL."""
    command = [sys.executable, *sys.argv, "--serve", str(seed)]
    answers: list[dict[str, float]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, _Deadline(process, limit):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(ANSWER):
                answers.append(json.loads(line.removeprefix(ANSWER)))
    if process.returncode > 0 or not answers:
        sys.exit(f"JaxMARL's program ended with {process.returncode}")
    costs, *points = answers
    return {"seed": seed, **costs, "curve": sorted(points, key=lambda point: point["env_steps"])}


class _Deadline(threading.Timer):
    """A context that ends a process after so many seconds."""

    def __init__(self, process: subprocess.Popen[str], seconds: float):
        super().__init__(seconds, process.kill)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: Any) -> None:
        self.cancel()


# jqmix


def _flags(args: argparse.Namespace, plan: dict[str, int], changes: dict[str, str]) -> list[str]:
    """A command line of ``jqmix train`` without its seed."""
    preset, values = changes.get("preset"), dict[str, Any]()
    if preset is None and args.algorithm == "pqn_vdn":
        values = pqn_fields(sized_case(args.case, args.hidden), plan["total_steps"])
        preset = "smax_pqn_published"
    values |= {
        "env.name": args.case,
        "total_steps": plan["total_steps"],
        "eval.every": plan["iterations_per_evaluation"] * plan["steps_per_iteration"],
        "eval.episodes": plan["episodes"],
        **{name: value for name, value in changes.items() if name != "preset"},
    }
    words = (word for name, value in values.items() for word in (f"--{name}", str(value).lower()))
    return [preset or CASES.get(args.case, {}).get("preset", args.case), *words]


def _jqmix(seed: int, flags: list[str], limit: float, judged: str) -> Trained:
    """A seed trained by jqmix, as its command line trains it."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, said = Path(folder, "run"), Path(folder, "said")
        command = [sys.executable, "-m", "jqmix", "train", *flags, "--seed", str(seed), "--run-dir", str(run_dir)]
        with said.open("w") as file:
            environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment)
            with _Deadline(process, limit):
                process.wait()
        text = said.read_text()
        took = re.search(r"tracing\s+([\d.]+),\s+compiling\s+([\d.]+)", text)
        if process.returncode > 0 or took is None:
            sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{text}")
        trace_s, compile_s = float(took[1]), float(took[2])
        return {
            "seed": seed,
            "trace_s": trace_s,
            "compile_s": compile_s,
            "curve": _logged(run_dir, trace_s + compile_s, judged),
        }


def _logged(run_dir: Path, compiling_s: float, judged: str) -> list[Point]:
    """The greedy evaluations in a run's metrics, whose seconds begin after compiling."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {"env_steps": m["env_steps"], "wall_s": compiling_s + m["wall_s"], judged: m[f"eval/{judged}"]}
        for m in lines
        if f"eval/{judged}" in m
    ]


# Results


def _summary(seeds: list[Trained], judged: str, level: float) -> dict[str, Any]:
    """All seeds, with the medians of speed and compile time, and when each stood at the level."""
    compiling = [seed["trace_s"] + seed["compile_s"] for seed in seeds]
    last = [(seed["curve"] or [{"env_steps": 0, "wall_s": float("inf"), judged: float("nan")}])[-1] for seed in seeds]
    speeds = [end["env_steps"] / (end["wall_s"] - took) for end, took in zip(last, compiling, strict=True)]
    return {
        "steps_per_s": median(speeds),
        "trace_and_compile_s": median(compiling),
        f"last_{judged}": [end[judged] for end in last],
        "reached": [next((p for p in seed["curve"] if p[judged] >= level), None) for seed in seeds],
        "seeds": seeds,
    }


def _show(name: str, trained: Trained, judged: str) -> None:
    curve = "  ".join(f"{p['env_steps'] / 1e6:.2f}M {p[judged]:.2f}" for p in trained["curve"])
    took = f"trace {trained['trace_s']:.1f} s  compile {trained['compile_s']:.1f} s"
    print(f"{name:12} seed {trained['seed']}  {took}  {curve}", flush=True)


def _print_ratios(programs: dict[str, Any], judged: str) -> None:
    peer = programs["JaxMARL"]
    for name, row in programs.items():
        shares = {what: row[what] / peer[what] for what in ("steps_per_s", "trace_and_compile_s")}
        print(
            f"{name:12} {row['steps_per_s']:>10,.0f} steps/s (×{shares['steps_per_s']:.2f})   trace + compile "
            f"{row['trace_and_compile_s']:6.1f} s (×{shares['trace_and_compile_s']:.3f})   {judged} "
            + ", ".join(f"{x:.3f}" for x in row[f"last_{judged}"])
        )


def _draw(path: Path, result: dict[str, Any]) -> None:
    """Every seed as a thin line and their mean as a thick one, over environment steps and over seconds."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = result["judged_by"]
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, (axis, label) in zip(panels, (("env_steps", "environment steps"), ("wall_s", "seconds")), strict=True):
        for number, (name, row) in enumerate(result["programs"].items()):
            curves = [([p[axis] for p in s["curve"]], [p[judged] for p in s["curve"]]) for s in row["seeds"]]
            curves, color = [c for c in curves if c[0]], f"C{number}"
            for x, y in curves:
                panel.plot(x, y, color=color, alpha=0.35, linewidth=1)
            if curves:
                grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 50)
                mean = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
                panel.plot(grid, mean, color=color, linewidth=2, label=name)
        panel.set(xlabel=label, **({"ylim": (-0.02, 1.02)} if judged == "win_rate" else {}))
        panel.grid(alpha=0.3)
    panels[0].set(ylabel=f"greedy {judged.replace('_', ' ')}", title=f"{result['environment']}, {result['algorithm']}")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

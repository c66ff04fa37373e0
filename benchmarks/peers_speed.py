"""Whole QMIX training on the same work: JaxMARL's own program and jqmix, each in a process of its own, taking turns.

The same environment, rollouts, window, batch, updates per iteration, widths and replay; both in float32. JaxMARL's
program does not evaluate while it is timed; jqmix's calls end with a greedy window of its rollouts, which is in its
time. Nothing in JaxMARL's program is corrected: its targets bootstrap over a terminal step (its flag is a step late),
and its steps include the slot of a final observation, which jqmix does not count. Only iterations that learn are timed;
those of JaxMARL are picked from the times at which it logs. Compiling is compared with evaluation on both sides, each
with its own options of the compiler; what JaxMARL's takes with jqmix's options stands beside.

``products`` says what can be won: JaxMARL's whole time over the time of the work's matrix products alone, at the rate
of a large product (``ceiling``), and at the rates of their own shapes. No float32 program passes the first that does
the same work, and none the second that is built from XLA's products.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
from jaxmarl_work import CASES, LEARNING_STARTS, load_program, qmix_settings, qmix_work, sized_case
from measure import Contender, Training, answer_turns, compiler_options, iteration, take_turns, use_cpu_cores, write
from products import measured_peak, products_in, timed

from jqmix.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jaxmarl", type=Path, required=True, metavar="CLONE", help="a clone of JaxMARL's repository")
    parser.add_argument("--case", choices=list(CASES), default="smax_3m")
    parser.add_argument("--hidden", type=int, help="width of the agents, in place of JaxMARL's default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--iterations", type=int, help="timed learning iterations of each turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    about = "leave out what takes long and is not the speed: JaxMARL's compiling with evaluation, the work's products"
    parser.add_argument("--speed-alone", action="store_true", help=about)
    parser.add_argument("--serve", choices=["jaxmarl", "jqmix"], help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    case = sized_case(args.case, args.hidden)
    iterations = args.iterations or case["iterations"]
    if args.serve:
        return _serve(args, case, iterations)
    result = _compare(args, case, iterations)
    for what in ("steps_per_s", "trace_and_compile_s", "replay_bytes_per_seed"):
        if (row := result.get(what)) is None:
            continue
        print(f"{what:22} jaxmarl {row['jaxmarl']:>14,.1f}   jqmix {row['jqmix']:>14,.1f}   ratio {row['ratio']:.3f}")
    if "products" in result:
        print("products               " + "   ".join(f"{k} {v:,.1f}" for k, v in result["products"].items()))
    write(args.json, result)


def _serve(args: argparse.Namespace, case: dict[str, Any], iterations: int) -> None:
    """A contender's own process."""
    use_cpu_cores()
    if args.serve == "jaxmarl":
        turn, costs = _jaxmarl(args, case, iterations)
    else:
        turn, costs = _jqmix(qmix_work(args.case, case, iterations, args.seeds))
    answer_turns(costs, turn)


def _jaxmarl(args: argparse.Namespace, case: dict[str, Any], learning: int) -> tuple[Callable[[], float], dict]:
    """A call that trains JaxMARL's program and returns its steps per second while it learns; what compiling took."""
    log: list[tuple[float, dict[str, Any]]] = []
    seeds = args.seeds
    module, work = load_program(args.jaxmarl, "qmix", lambda at, metrics: log.append((at, metrics))), case["work"]
    per_iteration = work["rollouts"] * work["steps"]
    # It learns from the iteration on at which each rollout has as many windows as a batch, and 10 000 steps are made.
    waiting = max(work["batch"], LEARNING_STARTS // per_iteration + 1)
    config = qmix_settings(case, (waiting + learning) * per_iteration)
    env, _ = module.env_from_config(dict(config))
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)

    def build(config: dict[str, Any], options: Any = None) -> tuple[Any, Any, dict]:
        begin = time.perf_counter()
        train = module.make_train(config, env)
        # One seed is run without vmap, as it hangs on initialising several at once on a CPU with few cores.
        lowered = jax.jit(jax.vmap(train)).lower(keys) if seeds > 1 else jax.jit(train).lower(keys[0])
        traced = time.perf_counter()
        compiled = lowered.compile(options)
        return lowered, compiled, {"trace_s": traced - begin, "compile_s": time.perf_counter() - traced}

    costs: dict[str, Any] = {}
    if not args.speed_alone:
        testing = {"TEST_DURING_TRAINING": True, "TEST_INTERVAL": 0.05, "TEST_NUM_STEPS": work["steps"],
                   "TEST_NUM_ENVS": 512}  # fmt: skip
        costs = build(config | testing)[2]
        alike = build(config | testing, compiler_options())[2]
        costs["with_our_options_s"] = alike["trace_s"] + alike["compile_s"]
    lowered, compiled, _ = build(config)
    buffer = jax.tree.leaves(lowered.out_info["runner_state"][1].experience)
    costs["replay_bytes_per_seed"] = sum(x.size * x.dtype.itemsize for x in buffer) // seeds

    def turn() -> float:
        log.clear()
        jax.block_until_ready(compiled(keys if seeds > 1 else keys[0]))
        jax.effects_barrier()
        learned = [t for t, metrics in log[::seeds] if metrics["grad_steps"] > 0]
        return seeds * per_iteration * (len(learned) - 1) / (learned[-1] - learned[0])

    return turn, costs


def _jqmix(cfg: Config) -> tuple[Callable[[], float], dict]:
    """A call that trains with jqmix and returns its steps per second; what compiling took."""
    training = Training(cfg)
    costs = training.costs | {"replay_bytes_per_seed": training.replay_bytes() // cfg.seeds}
    training.until_learning()

    def turn() -> float:
        before = training.env_steps()
        seconds = training.call()
        return (training.env_steps() - before) / seconds

    return turn, costs


def _compare(args: argparse.Namespace, case: dict[str, Any], iterations: int) -> dict[str, Any]:
    contenders = [Contender([*sys.argv, "--serve", who]) for who in ("jaxmarl", "jqmix")]
    take_turns(contenders, args.repeats)
    for contender in contenders:
        contender.end()
    theirs, ours = (contender.answers for contender in contenders)
    costs = [contender.costs for contender in contenders]
    use_cpu_cores()
    found = {
        "environment": args.case,
        "seeds": args.seeds,
        "work": case["work"],
        "iterations": iterations,
        "steps_per_s": _beside(median(theirs), median(ours)) | {"all": {"jaxmarl": theirs, "jqmix": ours}},
        "replay_bytes_per_seed": _beside(*(c["replay_bytes_per_seed"] for c in costs)),
    }
    if args.speed_alone:
        return found
    return found | {
        "products": _floors(qmix_work(args.case, case, iterations, args.seeds), case["work"], median(theirs)),
        "trace_and_compile_s": _beside(*(c["trace_s"] + c["compile_s"] for c in costs))
        | {"jaxmarl_with_our_options": costs[0]["with_our_options_s"]},
    }


def _floors(cfg: Config, work: dict[str, int], peers_steps_per_s: float) -> dict[str, float]:
    """What an iteration of all members takes at least, from its matrix products; how far below JaxMARL's it is."""
    function, shapes, devices = iteration(cfg)
    own, peak = timed(products_in(function, shapes)), measured_peak()["flops"]
    flops = 1e9 * cfg.seeds * devices * own["total_gflop"]
    peers_ms = 1e3 * cfg.seeds * work["rollouts"] * work["steps"] / peers_steps_per_s
    floor, at_own_shapes = 1e3 * flops / peak, cfg.seeds * own["total_ms"]
    return {
        "gflop": flops / 1e9,
        "peak_gflops": peak / 1e9,
        "floor_ms": floor,
        "ceiling": peers_ms / floor,
        "floor_ms_at_own_shapes": at_own_shapes,
        "ceiling_at_own_shapes": peers_ms / at_own_shapes,
    }


def _beside(theirs: float, ours: float) -> dict[str, Any]:
    return {"jaxmarl": theirs, "jqmix": ours, "ratio": ours / theirs}

"""Whole QMIX training on the same work: JaxMARL's own program and jqmix, each in a process of its own, taking turns.

python benchmarks/vs_peers.py --jaxmarl CLONE/baselines/QLearning/qmix_rnn.py [--case smax_3m] [--hidden 64]

Needs a clone of JaxMARL and its baselines' ``flashbax``. The same environment, rollouts, window, batch, updates per
iteration, widths and replay; both in float32. The peer does not evaluate while it is timed; jqmix's calls end with one
greedy window of its rollouts, which is in its time. Nothing in the peer is corrected:
its targets bootstrap over a terminal step (its flag is one step late), and its steps include the slot of a final
observation, which jqmix does not count. jqmix is timed with learning; the peer's learning iterations are picked from
the times at which it logs. Compiling is compared with evaluation on both sides, as it is the peer's default, too, and
each with its own options, the peer's being JAX's; what it takes with jqmix's stands beside.

``products`` says what can be won: the peer's whole time over the time of the work's matrix products alone, at the rate
that this device reaches in a large one, and at those that it reaches in each one's own shape (``products.py``). A
float32 program that does the same work stays below the first ``ceiling``, and below the second unless it has better
products than XLA's.
"""

import argparse
import importlib.util
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measure import Contender, answer_turns, take_turns, write
from products import floor as products_alone
from roofline import measured_peak, work_of

from jqmix.config import Config, load_config
from jqmix.runs.devices import compiler_options, use_cpu_cores
from jqmix.runs.memory import tree_bytes
from jqmix.runs.population import compile_population

# JaxMARL's settings for the environment (its config/alg/ql_rnn_*.yaml), and where it keeps the environment.
CASES: dict[str, dict[str, Any]] = {
    "mpe_simple_spread_v3": {
        "work": {"rollouts": 8, "steps": 26, "batch": 32, "updates": 1, "embed": 32, "hypernet": 128, "hidden": 64},
        "iterations": 200,
        "peer": {"ENV_NAME": "MPE_simple_spread_v3", "ENV_KWARGS": {}, "GAMMA": 0.9, "REW_SCALE": 1.0},
    },
    **{
        f"smax_{name}": {
            "work": {
                "rollouts": 16,
                "steps": 128,
                "batch": 32,
                "updates": 8,
                "embed": 64,
                "hypernet": 256,
                "hidden": 512,
            },
            "iterations": 10,
            "peer": {
                "ENV_NAME": "HeuristicEnemySMAX",
                "MAP_NAME": name,
                "ENV_KWARGS": {"see_enemy_actions": True, "walls_cause_death": True, "attack_mode": "closest"},
                "GAMMA": 0.99,
                "REW_SCALE": 10.0,
            },
        }
        for name in ("3m", "2s3z", "5m_vs_6m")
    },
}
BUFFER = 5000
LEARNING_STARTS = 10_000
Log = list[tuple[float, dict[str, Any]]]  # (seconds, what the peer reports), one per iteration


def stand_in(name: str, **attributes: Any) -> None:
    """A module that the peer imports for its own command line, where it is not installed."""
    if importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module


def load_peer(path: Path, log: Log) -> types.ModuleType:
    """JaxMARL's program; what it tells wandb comes to ``log``."""
    stand_in("hydra", main=lambda **_: lambda f: f)
    stand_in("omegaconf", OmegaConf=None)
    wandb = types.ModuleType("wandb")
    vars(wandb)["log"] = lambda metrics: log.append((time.perf_counter(), metrics))
    sys.modules["wandb"] = wandb
    spec = importlib.util.spec_from_file_location("jaxmarl_qmix", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer_config(case: dict[str, Any], total_steps: int) -> dict[str, Any]:
    """JaxMARL's own settings (its config/alg/ql_rnn_*.yaml) for a case, without evaluation."""
    work = case["work"]
    return {
        **case["peer"],
        "TOTAL_TIMESTEPS": total_steps,
        "NUM_ENVS": work["rollouts"],
        "NUM_STEPS": work["steps"],
        "BUFFER_SIZE": BUFFER,
        "BUFFER_BATCH_SIZE": work["batch"],
        "HIDDEN_SIZE": work["hidden"],
        "MIXER_EMBEDDING_DIM": work["embed"],
        "MIXER_HYPERNET_HIDDEN_DIM": work["hypernet"],
        "MIXER_INIT_SCALE": 0.001,
        "EPS_START": 1.0,
        "EPS_FINISH": 0.05,
        "EPS_DECAY": 0.1,
        "MAX_GRAD_NORM": 10,
        "TARGET_UPDATE_INTERVAL": 10,
        "TAU": 1.0,
        "NUM_EPOCHS": work["updates"],
        "LR": 5e-5,
        "LEARNING_STARTS": LEARNING_STARTS,
        "TEST_DURING_TRAINING": False,
        "TEST_NUM_STEPS": 1,
        "TEST_NUM_ENVS": 1,
        "WANDB_MODE": "logged",
    }


def peer_program(path: Path, case: dict[str, Any], learning: int, seeds: int) -> tuple[Callable[[], float], dict]:
    """A call that trains the peer and returns its steps per second while learning; and what compiling took."""
    log: Log = []
    module, work = load_peer(path, log), case["work"]
    per_iteration = work["rollouts"] * work["steps"]
    # It learns from the iteration on at which each rollout has as many windows as a batch, and 10 000 steps are made.
    waiting = max(work["batch"], LEARNING_STARTS // per_iteration + 1)
    config = peer_config(case, (waiting + learning) * per_iteration)
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

    testing = {
        "TEST_DURING_TRAINING": True,
        "TEST_INTERVAL": 0.05,
        "TEST_NUM_STEPS": work["steps"],
        "TEST_NUM_ENVS": 512,
    }
    costs = build(config | testing)[2]
    alike = build(config | testing, compiler_options())[2]
    costs["with_our_options_s"] = alike["trace_s"] + alike["compile_s"]
    lowered, compiled, _ = build(config)
    buffer = jax.tree.leaves(lowered.out_info["runner_state"][1].experience)
    costs["replay_bytes_per_seed"] = sum(x.size * x.dtype.itemsize for x in buffer) // seeds

    def run() -> float:
        log.clear()
        jax.block_until_ready(compiled(keys if seeds > 1 else keys[0]))
        jax.effects_barrier()
        learned = [t for t, metrics in log[::seeds] if metrics["grad_steps"] > 0]
        return seeds * per_iteration * (len(learned) - 1) / (learned[-1] - learned[0])

    return run, costs


def our_config(name: str, case: dict[str, Any], learning: int, seeds: int) -> Config:
    """The peer's work in jqmix's words."""
    work = case["work"]
    capacity = BUFFER // work["rollouts"] * work["rollouts"]
    per_iteration = work["rollouts"] * work["steps"]
    return load_config(
        None,
        **{
            "env.name": name,
            "seeds": seeds,
            "rollouts": work["rollouts"],
            "window": work["steps"],
            "updates": work["updates"],
            "agent.hidden": work["hidden"],
            "algo.embed": work["embed"],
            "algo.hypernet_hidden": work["hypernet"],
            "algo.td_lambda": 0.0,
            "algo.gamma": case["peer"]["GAMMA"],
            "algo.reward_scale": case["peer"]["REW_SCALE"],
            "replay.capacity": capacity,
            "replay.batch": work["batch"],
            "eval.every": learning * per_iteration,
            "eval.episodes": 1,
            "total_steps": 10**9,
        },
    )


def our_program(cfg: Config) -> tuple[Callable[[], float], dict]:
    """A call that trains with jqmix and returns its steps per second; and what compiling took."""
    population = compile_population(cfg)
    state = [population.members, population.shared]
    costs = {
        "trace_s": population.trace_s,
        "compile_s": population.compile_s,
        "replay_bytes_per_seed": tree_bytes(population.members.replay) // cfg.seeds,
    }
    state[:] = population.step(*state)[:2]  # fills replay to a batch; learning from here on

    def run() -> float:
        before, begin = int(jnp.sum(state[0].env_steps)), time.perf_counter()
        state[:] = jax.block_until_ready(population.step(*state))[:2]
        return (int(jnp.sum(state[0].env_steps)) - before) / (time.perf_counter() - begin)

    return run, costs


def products(cfg: Config, work: dict[str, int], peers_steps_per_s: float) -> dict[str, float]:
    """The floors of an iteration (all members), from its matrix products alone; and how far below the peer they lie."""
    parts, peak, own = work_of(cfg), measured_peak()["flops"], products_alone(cfg)["total_ms"]
    flops = cfg.seeds * (cfg.updates * parts["update"].flops + parts["acting, environment included"].flops)
    peers_ms = 1e3 * cfg.seeds * work["rollouts"] * work["steps"] / peers_steps_per_s
    floor = 1e3 * flops / peak
    return {
        "gflop": flops / 1e9,
        "peak_gflops": peak / 1e9,
        "floor_ms": floor,
        "ceiling": peers_ms / floor,
        "floor_ms_at_own_shapes": own,
        "ceiling_at_own_shapes": peers_ms / own,
    }


def case_of(name: str, hidden: int | None) -> dict[str, Any]:
    """A case, with another width of the agents where one is given."""
    case = CASES[name]
    return case | {"work": case["work"] | ({} if hidden is None else {"hidden": hidden})}


def serve(who: str, args: argparse.Namespace, case: dict[str, Any], iterations: int) -> None:
    """A contender's own process."""
    use_cpu_cores()
    if who == "jaxmarl":
        run, costs = peer_program(args.jaxmarl, case, iterations, args.seeds)
    else:
        run, costs = our_program(our_config(args.case, case, iterations, args.seeds))
    answer_turns(costs, run)


def compare(args: argparse.Namespace, case: dict[str, Any], iterations: int) -> dict[str, Any]:
    theirs, ours = contenders = [Contender([*sys.argv, "--serve", who]) for who in ("jaxmarl", "jqmix")]
    a, b = take_turns(contenders, args.repeats)
    compiling = [c.costs["trace_s"] + c.costs["compile_s"] for c in contenders]
    replay_bytes = [c.costs["replay_bytes_per_seed"] for c in contenders]
    use_cpu_cores()
    return {
        "environment": args.case,
        "seeds": args.seeds,
        "work": case["work"],
        "iterations": iterations,
        "steps_per_s": beside(a, b) | {"all": {"jaxmarl": theirs.results, "jqmix": ours.results}},
        "products": products(our_config(args.case, case, iterations, args.seeds), case["work"], a),
        "trace_and_compile_s": beside(*compiling) | {"jaxmarl_with_our_options": theirs.costs["with_our_options_s"]},
        "replay_bytes_per_seed": beside(*replay_bytes),
    }


def beside(theirs: float, ours: float) -> dict[str, Any]:
    return {"jaxmarl": theirs, "jqmix": ours, "ratio": ours / theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jaxmarl", type=Path, required=True, help="JaxMARL's baselines/QLearning/qmix_rnn.py")
    parser.add_argument("--case", choices=list(CASES), default="smax_3m")
    parser.add_argument("--hidden", type=int, help="width of the agents, in place of JaxMARL's default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--iterations", type=int, help="timed learning iterations of each turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument("--serve", choices=["jaxmarl", "jqmix"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    case = case_of(args.case, args.hidden)
    iterations = args.iterations or case["iterations"]
    if args.serve:
        return serve(args.serve, args, case, iterations)
    result = compare(args, case, iterations)
    for what in ("steps_per_s", "trace_and_compile_s", "replay_bytes_per_seed"):
        row = result[what]
        print(f"{what:22} jaxmarl {row['jaxmarl']:>14,.1f}   jqmix {row['jqmix']:>14,.1f}   ratio {row['ratio']:.3f}")
    print("products               " + "   ".join(f"{k} {v:,.1f}" for k, v in result["products"].items()))
    write(args.json, result)


if __name__ == "__main__":
    main()

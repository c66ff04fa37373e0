"""How long JaxMARL's QMIX takes to a greedy win rate: its own program and settings, one seed, its curve over time.

python benchmarks/peer_learns.py --jaxmarl CLONE/baselines/QLearning/qmix_rnn.py [--case smax_3m] [--hidden 64]

It trains until an evaluation reaches ``--level`` or the time is up, whichever comes first. Seconds count from before
tracing; evaluations are part of them, as in a run of ours. Its schedules are those of its 10 million steps, of which
only a part may be run. Evaluations play every environment for a window and count the episodes that end in it.
"""

import argparse
import os
import threading
import time
from pathlib import Path

import jax
from measure import write
from vs_peers import CASES, Log, case_of, load_peer, peer_config

from jqmix.runs.devices import use_cpu_cores

TOTAL_STEPS = 10_000_000


def curve(log: Log, begin: float) -> list[dict[str, float]]:
    """Its greedy evaluations, each once, over environment steps and seconds; the first comes with compiling's end."""
    points: list[dict[str, float]] = []
    for at, metrics in list(log):
        won = float(metrics["test_returned_won_episode"])
        if not points or won != points[-1]["win_rate"]:
            points.append({"env_steps": int(metrics["env_step"]), "wall_s": at - begin, "win_rate": won})
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jaxmarl", type=Path, required=True, help="JaxMARL's baselines/QLearning/qmix_rnn.py")
    parser.add_argument("--case", choices=[name for name in CASES if name.startswith("smax")], default="smax_3m")
    parser.add_argument("--hidden", type=int, help="width of the agents, in place of JaxMARL's default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=float, default=0.95, help="the greedy win rate to reach")
    parser.add_argument("--limit", type=float, default=1900, help="seconds to give up after")
    parser.add_argument("--evaluate", type=float, default=0.01, help="part of the whole run between evaluations")
    parser.add_argument("--episodes", type=int, default=128, help="environments of an evaluation")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    use_cpu_cores()
    log: Log = []
    case = case_of(args.case, args.hidden)
    module = load_peer(args.jaxmarl, log)
    config = peer_config(case, TOTAL_STEPS) | {
        "TEST_DURING_TRAINING": True,
        "TEST_INTERVAL": args.evaluate,
        "TEST_NUM_STEPS": case["work"]["steps"],
        "TEST_NUM_ENVS": args.episodes,
    }
    env, _ = module.env_from_config(dict(config))
    begin = time.perf_counter()
    train = jax.jit(module.make_train(config, env))
    training = threading.Thread(target=lambda: train(jax.random.PRNGKey(args.seed)), daemon=True)
    training.start()
    told = 0
    while training.is_alive() and time.perf_counter() - begin < args.limit:
        time.sleep(1)
        points = curve(log, begin)
        for point in points[told:]:
            print("{env_steps:>10,} steps {wall_s:7.0f} s  win rate {win_rate:.3f}".format(**point), flush=True)
        told = len(points)
        if points and points[-1]["win_rate"] >= args.level:
            break
    points = curve(log, begin)
    reached = next((p for p in points if p["win_rate"] >= args.level), None)
    write(
        args.json,
        {
            "environment": args.case,
            "seed": args.seed,
            "work": case["work"],
            "level": args.level,
            "reached": reached,
            "until": {"env_steps": int(log[-1][1]["env_step"]), "wall_s": log[-1][0] - begin} if log else None,
            "curve": points,
        },
    )
    print("reached:", reached, flush=True)
    os._exit(0)  # its program cannot be stopped halfway


if __name__ == "__main__":
    main()

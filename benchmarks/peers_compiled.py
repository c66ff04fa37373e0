"""JaxMARL's program and jqmix at the same work, both compiled for a chip that need not be here.

Counted from the compiled programs, and so exact: what an iteration launches, moves and multiplies, and what memory it
takes; and what compiling took, which is not exact. ``predicted_s`` is the model of ``jqmix bench --target``. JaxMARL's
programs are those of ``peers_speed.py`` (QMIX) and ``peers_learning.py`` (PQN-VDN), as they are configured. Each side
is counted with one turn of the loops of which it is not known how often they turn.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxmarl_work import CASES, PQN, load_program, pqn_fields, pqn_settings, qmix_settings, qmix_work, sized_case
from measure import bench_target, compiled_for, fields, write

from jqmix.config import Config, flatten, load_config, to_dict

ITERATIONS = 50  # of JaxMARL's program, which is one loop over them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jaxmarl", type=Path, required=True, metavar="CLONE", help="a clone of JaxMARL's repository")
    parser.add_argument("--target", choices=["h100", "a100", "v5e", "v6e"], default="h100")
    parser.add_argument("--algorithm", choices=["qmix", "pqn_vdn"], default="qmix")
    parser.add_argument("--case", choices=list(CASES), default="smax_2s3z")
    parser.add_argument("--hidden", type=int, default=64, help="width of the agents (64)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="members, one program for each number")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes jqmix's configuration")


def run(args: argparse.Namespace) -> None:
    case, rows = sized_case(args.case, args.hidden), {}
    module = load_program(args.jaxmarl, args.algorithm, lambda at, metrics: None)
    for seeds in args.seeds:
        theirs = _jaxmarl(module, args, case, seeds)
        ours = bench_target(_config(args, case, seeds), args.target)
        ratios = {
            "launches": theirs["total"]["launches"] / ours["total"]["launches"],
            "predicted_s": theirs["total"]["seconds"] / ours["total"]["seconds"],
            "reserved": theirs["memory"]["reserved"] / ours["memory"]["reserved"],
            "trace_and_compile_s": (theirs["trace_s"] + theirs["compile_s"]) / (ours["trace_s"] + ours["compile_s"]),
        }
        rows[str(seeds)] = {"jaxmarl": theirs, "jqmix": ours, "jaxmarl_over_jqmix": ratios}
        counts = f"launches {theirs['total']['launches']:,} and {ours['total']['launches']:,}"
        print(f"{args.case} {seeds:3} seeds: {counts}; ratios " + "  ".join(f"{k} {v:.2f}" for k, v in ratios.items()))
    about = {"environment": args.case, "algorithm": args.algorithm, "target": args.target, "hidden": args.hidden}
    write(args.json, about | {"seeds": rows, "jax": jax.__version__})


def _config(args: argparse.Namespace, case: dict[str, Any], seeds: int) -> Config:
    if args.algorithm == "qmix":
        ours = flatten(to_dict(qmix_work(args.case, case, 10, seeds)))
    else:
        ours = {"env.name": args.case, "seeds": seeds, "total_steps": 10**9} | pqn_fields(case, 10**7)
    return load_config(None, **(ours | fields(args.set)))


def _jaxmarl(module: Any, args: argparse.Namespace, case: dict[str, Any], seeds: int) -> dict[str, Any]:
    work, settings = (case["work"], qmix_settings) if args.algorithm == "qmix" else (PQN, pqn_settings)
    config = settings(case, ITERATIONS * work["rollouts"] * work["steps"]) | {"WANDB_MODE": "disabled"}
    env, _ = module.env_from_config(dict(config))
    train = module.make_train(config, env)
    keys = jax.ShapeDtypeStruct((seeds, 2), jnp.uint32)
    every = jax.vmap(train) if seeds > 1 else lambda keys: train(keys[0])
    return compiled_for(args.target, every, ITERATIONS, keys)

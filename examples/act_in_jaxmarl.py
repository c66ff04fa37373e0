"""An exported policy in JaxMARL's original SMAX: what ``jqmix export`` wrote acts there with NumPy alone.

jqmix export runs/smax_3m --out policy
python act_in_jaxmarl.py policy --episodes 512 --run runs/smax_3m

Of jqmix nothing is needed but the loader that lies in the folder; JAX is there for JaxMARL, which is made of it. With
``--run``, jqmix evaluates the run in its own SMAX, too, to print both.
"""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jaxmarl
import numpy as np
from jaxmarl.environments.smax import map_name_to_scenario

# The setting of JaxMARL's baselines, which jqmix's SMAX has, too.
SETTING = {"see_enemy_actions": True, "walls_cause_death": True, "attack_mode": "closest"}


def load_policy(folder: Path) -> Any:
    """The policy in an exported folder, by the loader that lies in it: code, so only from whom one trusts."""
    spec = importlib.util.spec_from_file_location("numpy_policy", folder / "numpy_policy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


def win_rate(policy: Any, map_name: str, episodes: int, seed: int = 0) -> float:
    """The share of so many episodes, all played at once, that the agents win."""
    env: Any = jaxmarl.make("HeuristicEnemySMAX", scenario=map_name_to_scenario(map_name), **SETTING)
    reset, step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step_env))  # which resets nothing by itself
    legal = jax.jit(jax.vmap(env.get_avail_actions))

    def stacked(by_agent: dict[str, Any]) -> np.ndarray:
        return np.stack([by_agent[agent] for agent in env.agents], axis=1)  # [B, N, …]

    key = jax.random.key(seed)
    obs, world = reset(jax.random.split(key, episodes))
    state = policy.initial_state(episodes)
    won, over = np.zeros(episodes, bool), np.zeros(episodes, bool)
    while not over.all():
        actions, state = policy.act(state, stacked(obs), stacked(legal(world)))
        key, key_step = jax.random.split(key)
        by_agent = dict(zip(env.agents, actions.T, strict=True))
        obs, world, _, done, _ = step(jax.random.split(key_step, episodes), world, by_agent)
        alive = np.asarray(world.state.unit_alive)
        ours, theirs = alive[:, : env.num_allies].any(axis=1), alive[:, env.num_allies :].any(axis=1)
        won |= ~over & ours & ~theirs
        over |= np.asarray(done["__all__"])
    return float(won.mean())


def evaluated(run_dir: Path, training: dict[str, Any], episodes: int, seed: int) -> float:
    """What ``jqmix evaluate`` says of the member that was exported."""
    from jqmix.runs.policy import evaluate_run

    rows = evaluate_run(run_dir, episodes, seed, best=training["parameters"] == "best")
    return next(float(row["win_rate"]) for row in rows if row["member"] == training["member"])


def main() -> None:
    parser = argparse.ArgumentParser(description="An exported policy in JaxMARL's original SMAX.")
    parser.add_argument("folder", type=Path, help="what jqmix export wrote")
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="the run that it was exported from, to evaluate it beside")
    args = parser.parse_args()
    about = json.loads((args.folder / "policy.json").read_text(encoding="utf-8"))
    map_name = about["environment"]["name"].removeprefix("jaxmarl/").removeprefix("smax_")
    rate = win_rate(load_policy(args.folder), map_name, args.episodes, args.seed)
    print(f"{rate:.3f} of {args.episodes} episodes won in JaxMARL's SMAX {map_name}, acting with NumPy")
    if args.run is not None:
        rate = evaluated(args.run, about["training"], args.episodes, args.seed)
        print(f"{rate:.3f} of {args.episodes} episodes won in jqmix's, by jqmix evaluate")


if __name__ == "__main__":
    main()

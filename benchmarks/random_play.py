"""What uniformly random available actions earn: the baseline that a learned return is read against.

python benchmarks/random_play.py mpe_simple_spread_v3 [--episodes 4096] [--json]
"""

import argparse
import json

import jax
import jax.numpy as jnp

from jqmix import make_env
from jqmix.learning.rollout import collect
from jqmix.networks.agent import Agent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--episodes", type=int, default=4096, help="one window of each of so many environments")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    env = make_env(args.env, batch=int(args.episodes))
    spec = env.spec
    agent = Agent(spec.n_agents, spec.n_actions, spec.obs_size, hidden=1)
    params = agent.init(jax.random.key(0))
    _, episodes = collect(agent, params, env, jax.random.key(1), jnp.float32(1.0), spec.episode_limit + 1)
    result = {"environment": args.env, **{k: float(v) for k, v in episodes.means().items()}}
    print(json.dumps(result) if args.json else "  ".join(f"{k} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()

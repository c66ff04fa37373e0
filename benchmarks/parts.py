"""Where an iteration's time goes: every part of it compiled and timed on its own, for one member.

python benchmarks/parts.py [PRESET] [--set field=value …] [--json OUT]

A part alone reads and writes what would stay in registers in the whole, so that parts do not add up exactly; the
whole iteration is the last line.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from measure import median_ms, write

from jqmix.config import Config, load_config
from jqmix.learning import replay
from jqmix.learning.rollout import collect
from jqmix.learning.train import make_program

Part = tuple[str, float, Callable[..., Any], tuple[Any, ...]]  # name, calls per iteration, function, arguments


def parts_of(cfg: Config) -> list[Part]:
    program = make_program(cfg)
    env, learner, agent = program.env, program.learner, program.learner.agent
    member, shared = jax.jit(program.init)(jnp.int32(cfg.seed))
    key = jax.random.key(0)

    @jax.jit
    def play(params: Any, key: jax.Array) -> Any:
        return collect(agent, params, env, key, jnp.float32(0.1), program.slots)[0]

    packed = play(member.learner.params["agent"], key)
    full = jnp.int32(cfg.replay.capacity)
    held = jax.jit(replay.add)(member.replay, packed, jnp.int32(0))

    def sample(ring: Any) -> Any:
        return replay.unpack(env, replay.sample(key, ring, full, cfg.replay.batch))

    batch = jax.jit(sample)(held)
    state = learner.mixer_state(member.moments, batch.state)
    params = member.learner.params
    q_taken = jnp.ones(batch.action.shape)
    grads = jnp.ones_like(ravel_pytree(params)[0])

    def play_env(key: jax.Array) -> Any:
        """The environment's own share of collecting: the same slots, an action that is always the first."""
        action = jnp.zeros((env.size, env.spec.n_agents), jnp.int32)

        def step(carry: Any, key: jax.Array) -> Any:
            state, seen = env.step(key, carry, action)
            return state, env.pack(state, seen)

        return jax.lax.scan(step, env.reset(key)[0], jax.random.split(key, program.slots))[1]

    def unroll(p: Any) -> jax.Array:
        return agent.unroll(p, batch.obs, batch.action, batch.first).q

    def mix(p: Any, q: jax.Array) -> jax.Array:
        return learner.mixer.apply(p, q, state)

    def add_in_place(ring: Any) -> Any:
        """Many adds in one call, as a call that does not own the replay would copy it."""
        return jax.lax.fori_loop(
            0, 100, lambda i, r: replay.add(r, packed, i * cfg.rollouts % cfg.replay.capacity), ring
        )

    def squared(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda *args: jnp.sum(jnp.square(f(*args)))

    u = float(cfg.updates)
    learning = shared._replace(held=full)
    update = partial(learner.update, lr=jnp.float32(1e-4))
    return [
        ("environment", 1, play_env, (key,)),
        ("acting, environment included", 1, play, (params["agent"], key)),
        ("replay: 100 adds", 0.01, add_in_place, (held,)),
        ("replay: sample and unpack", u, sample, (held,)),
        ("agent: unroll forward", u, unroll, (params["agent"],)),
        ("agent: unroll gradient", u, jax.grad(squared(unroll)), (params["agent"],)),
        ("mixer: forward", u, mix, (params["mixer"], q_taken)),
        ("mixer: gradient", u, jax.grad(squared(mix), (0, 1)), (params["mixer"], q_taken)),
        ("optimiser", u, learner.optimizer.update, (grads, member.learner.opt_state)),
        ("update", u, update, (member.learner, batch, member.moments, member.hyper)),
        ("iteration", 1, program.iteration, (member._replace(replay=held), learning)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="smax_3m")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields to change")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    changes = dict(text.split("=", 1) for text in args.set)
    cfg = load_config(args.preset, **changes)
    rows = {}
    for name, calls, function, inputs in parts_of(cfg):
        ms = median_ms(function, *inputs, repeats=args.repeats)
        rows[name] = {"ms": ms, "calls_per_iteration": calls, "ms_per_iteration": ms * calls}
        print(f"{name:30} {ms:10.3f} ms   × {calls:6g} = {ms * calls:10.2f} ms per iteration", flush=True)
    write(args.json, {"preset": args.preset, "changes": changes, "parts": rows})


if __name__ == "__main__":
    main()

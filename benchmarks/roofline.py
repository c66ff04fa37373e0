"""The floor of each part of an iteration, from its operations and bytes and what the device can do, beside its time.

python benchmarks/roofline.py [PRESET] [--set field=value …] [--json OUT]

Operations are those of the matrix products (2 per multiply-add; elementwise work is what the gap is made of), bytes
what must cross to memory and back if nothing stays in cache between calls. The device's peaks are measured here, in
the same run: a large float32 product and a large copy. A floor is the larger of operations / peak, bytes / bandwidth.
``benchmarks/ROOFLINE.md`` discusses the result.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from measure import median_ms, write
from parts import parts_of

from jqmix.config import Config, load_config
from jqmix.learning.train import make_program
from jqmix.runs.memory import tree_bytes

H200 = {"flops": 67e12, "bytes": 4.8e12}  # float32 outside the tensor cores and HBM3e, NVIDIA's data sheet


class Work(NamedTuple):
    flops: float
    bytes: float

    def floor_ms(self, peak: dict[str, float]) -> float:
        return 1e3 * max(self.flops / peak["flops"], self.bytes / peak["bytes"])


def work_of(cfg: Config) -> dict[str, Work]:
    """Operations and bytes of each part of ``parts.py`` that has matrix products or moves memory."""
    program = make_program(cfg)
    spec, slots = program.env.spec, program.slots
    n, a, o, s, h = spec.n_agents, spec.n_actions, spec.obs_size, spec.state_size, cfg.agent.hidden
    e, k = cfg.mixer.embed, cfg.mixer.hypernet_hidden
    params = jax.eval_shape(program.learner.init, jax.random.key(0)).params
    rows = slots * cfg.replay.batch  # slots of a batch
    # Of one slot, forward, what reads the inputs apart: nothing is propagated back to them.
    agent_in, mixer_in = 2.0 * n * (o + a) * h, 2.0 * s * (2 * k + 2 * e)
    agent = agent_in + 2.0 * n * (6 * h * h + h * a)
    mixer = mixer_in + 2.0 * (k * n * e + k * e + n * e + 2 * e)
    seen = 4.0 * (n * o + s) + n * a + n
    kept = 4.0 * n * h * (3 + 5)  # the gates' inputs; h, r, z, n and the candidate's recurrent part
    hyper = 4.0 * (2 * k + n * e + 3 * e)
    window = tree_bytes(jax.eval_shape(program.init, jnp.int32(0))[0].replay) / cfg.replay.capacity
    forward = Work(rows * agent, rows * (seen + kept))
    backward = Work(rows * (3 * agent - agent_in), rows * (seen + 3 * kept))
    mixing = (
        Work(rows * mixer, rows * (4.0 * s + hyper)),
        Work(rows * (3 * mixer - mixer_in), rows * (4.0 * s + 3 * hyper)),
    )
    optimiser = Work(0, 7.0 * tree_bytes(params))
    update = [forward, backward, *mixing, optimiser]
    return {
        "acting, environment included": Work(slots * cfg.rollouts * agent, cfg.rollouts * window),
        "replay: sample and unpack": Work(0, cfg.replay.batch * window + rows * seen),
        "agent: unroll forward": forward,
        "agent: unroll gradient": backward,
        "mixer: forward": mixing[0],
        "mixer: gradient": mixing[1],
        "optimiser": optimiser,
        "update": Work(sum(w.flops for w in update), sum(w.bytes for w in update)),
    }


def measured_peak() -> dict[str, float]:
    """This device's float32 product and copy, large enough to be limited by nothing else."""
    big = jnp.ones((2048, 2048))
    stream, passes = jnp.ones((64 * 2**20,)), 10

    def copy(x: jax.Array) -> jax.Array:
        """Many passes in one call: a fresh result for every pass would cost page faults, not bandwidth."""
        return jax.lax.fori_loop(0, passes, lambda _, x: x + 1.0, x)

    flops = 2 * 2048**3 / (1e-3 * median_ms(lambda x: x @ x, big, repeats=7))
    moved = passes * 2 * 4 * stream.size / (1e-3 * median_ms(copy, stream, repeats=5))
    return {"flops": flops, "bytes": moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="smax_2s3z")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields to change")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    changes = dict(text.split("=", 1) for text in args.set)
    cfg = load_config(args.preset, **changes)
    peak, work, rows = measured_peak(), work_of(cfg), {}
    print(f"peak {peak['flops'] / 1e9:,.0f} GFLOP/s, {peak['bytes'] / 1e9:,.0f} GB/s")
    print("| part | GFLOP | MB | floor ms | measured ms | × floor | H200 floor µs |\n|---|---|---|---|---|---|---|")
    for name, _, function, inputs in parts_of(cfg):
        if name not in work:
            continue
        w, ms = work[name], median_ms(function, *inputs, repeats=args.repeats)
        floor, h200 = w.floor_ms(peak), 1e3 * w.floor_ms(H200)
        rows[name] = {**w._asdict(), "floor_ms": floor, "measured_ms": ms, "h200_floor_us": h200}
        numbers = (w.flops / 1e9, w.bytes / 1e6, floor, ms, ms / floor, h200)
        print(f"| {name} | {' | '.join(f'{x:.3g}' for x in numbers)} |", flush=True)
    write(args.json, {"preset": args.preset, "changes": changes, "peak": peak, "h200_peak": H200, "parts": rows})


if __name__ == "__main__":
    main()

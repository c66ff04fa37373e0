"""Members on eight devices and on one, compared: a program of its own, as a process has the devices that it began with.

    python tests/eight_devices.py FOLDER CASE…    # prints what it found, as JSON

The devices are CPU cores' threads, but what is compiled is what accelerators would get.
"""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import worlds

from jqmix.config import load_config
from jqmix.kernels.platform import compiling_for, plain_forms
from jqmix.learning.train import whole_evaluation
from jqmix.runs.checkpoint import find, load_state
from jqmix.runs.experiment import resume, train
from jqmix.runs.population import compile_population

RUN = worlds.SMALL_RUN | {"eval.episodes": 16, "rollouts": 8}
CASES = {
    "uniform": {"seeds": 2, "updates": 3, "algo.mixer": "vdn", "agent.core": "none"},
    "many": {"seeds": 9, "updates": 2, "algo.mixer": "vdn", "agent.core": "none"},  # three at once, on two devices
    "continue": {
        "replay.prioritised": True,
        "replay.dtype": "bfloat16",
        "window_start": "continue",
        "window": 6,
        "replay.burn_in": 2,
        "agent.obs_norm": "running",
        "algo.reward_norm": "running",
    },
    "pqn": {
        "algo.name": "pqn",
        "window_start": "continue",
        "window": 6,
        "replay.burn_in": 2,
        "rollouts": 32,
        "algo.epochs": 2,
        "algo.minibatches": 2,
        "eval.episodes": 12,  # which eight do not share
    },
    "smax": {"env.name": "smax_3m", "algo.mixer": "vdn", "window_start": "continue", "window": 30},
    "tpu": {"updates": 3, "replay.prioritised": True},
}


def use(count):
    """From now on, so many of the devices."""
    jax.local_devices = lambda: EVERY[:count]


def trained(cfg, count):
    """(state and metrics on the host, how many collectives there are in a program of training)."""
    use(count)
    population = compile_population(cfg)
    members, shared, _ = population.train(population.members, population.shared, 5)
    members, shared, metrics = population.evaluate(members, shared, whole_evaluation(cfg))
    for name, x in zip(members._fields, members, strict=True):
        if name not in ("buffer", "ongoing"):
            check_alike(x)
    kinds = re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all)\(", population.training.as_text())
    return jax.device_get((members, shared, metrics)), {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def check_alike(tree):
    """All devices that hold the same part of an array hold the same numbers."""
    for x in jax.tree.leaves(tree):
        first = {}
        for shard in x.addressable_shards:
            data = np.asarray(shard.data)
            np.testing.assert_array_equal(first.setdefault(str(shard.index), data), data)


def farthest(a, b):
    """The largest relative difference of floats; everything else has to be the same."""
    worst = 0.0
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = (np.asarray(v) for v in (x, y))
        if x.dtype.kind in "iub":
            np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
        else:
            x, y = (v.astype(np.float64) for v in (x, y))
            worst = max(worst, float(np.max(np.abs(x - y) / (np.abs(y) + 1e-2), initial=0.0)))
    return worst


def compare(name):
    cfg = load_config(None, **RUN | CASES[name])
    (shared_out, collectives), (alone, none) = trained(cfg, 8), trained(cfg, 1)
    assert not none
    return {"farthest": farthest(shared_out, alone), "collectives": collectives, "updates": int(alone[1].updates)}


def checkpoints(folder):
    """A run on eight devices that goes on with one, and the other way round."""
    ends = []
    for first, then in ((8, 1), (1, 8)):
        path = folder / f"{first}"
        options = RUN | CASES["continue"] | {"run_dir": str(path), "total_steps": 480, "eval.every": 480}
        use(first)
        train(load_config(None, **options))
        use(then)
        resume(path, total_steps=960)
        newest = next(saved for saved in find(path, 1) if not saved.final)
        ends.append(load_state(newest.path, with_replay=True))
    return {"farthest": farthest(*ends), "updates": int(ends[0]["shared"]["updates"]["low"])}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    EVERY = jax.local_devices()
    assert len(EVERY) == 8
    found = {}
    for case in sys.argv[2:]:
        with compiling_for("tpu" if case == "tpu" else "gpu"), plain_forms():
            found[case] = checkpoints(Path(sys.argv[1])) if case == "checkpoints" else compare(case)
    print(json.dumps(found))

"""Writes a trained policy as a folder that runs anywhere, without jqmix.

policy.safetensors   the weights
policy.json          what they mean: sizes, preprocessing, architecture, actions, training; the files' checksums
policy.stablehlo     act(state, obs, avail) -> (action, q, state) for any batch, by ``jax.export``
numpy_policy.py      acts with NumPy alone (a copy of ``jqmix/exported_policy.py``); not for a core from outside
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array
from safetensors.numpy import save

from jqmix import exported_policy
from jqmix.config import ConfigError, to_dict
from jqmix.exported_policy import CORES, FORMAT, VERSION
from jqmix.files import check_replaceable, checksum, read_json, replacing
from jqmix.inputs import check_path_text
from jqmix.learning.exploration import greedy
from jqmix.plugins import raised
from jqmix.runs.exported import DESCRIPTION, LOADER, MOST_SIZES, PROGRAM, SWITCHES, WEIGHTS
from jqmix.runs.jax_settings import settled
from jqmix.runs.policy import Trained, load_trained
from jqmix.runs.shapes import by_name

PLATFORMS = ("cpu", "cuda", "tpu")

# What the numbers are to be used for, so that nobody has to read code for it.
CONVENTIONS = {
    "arrays": "float32, row-major; axes: B batch, N agent, A action, H hidden. Parameters lead with N where "
    "share_parameters is false, but for obs_norm's",
    "dense": "dense(x) = x @ kernel + bias, kernel [inputs, outputs]",
    "norm": "if layer_norm, over the last axis: (x - mean) / sqrt(variance + 1e-6) * scale + bias; else x",
    "input": "[obs, one-hot last action if last_action, one-hot agent id if agent_id and share_parameters]; no last "
    "action (zeros) where an episode starts",
    "obs_norm": "if obs_norm, obs = clip((obs - mean) / sqrt(m2 / max(rows, 1) + 1e-6), -5, 5) with obs_norm.*",
    "encoder": "x = relu(norm(dense(input))); then x = relu(norm{i}(dense_layer{i}(x))) for i = 2 … layers",
    "core gru": "r = sigmoid(x w_i.r + b_i.r + h w_h.r + b_h.r), z likewise; n = tanh(x w_i.n + b_i.n + r * "
    "(h w_h.n + b_h.n)); h = (1 - z) * n + z * h; memory: h; output: h",
    "core lstm": "i, f, o = sigmoid(x w_i + b_i + h w_h + b_h), g = tanh(the same); c = f * c + i * g; "
    "h = o * tanh(c); memory: h, c; output: h",
    "core none": "output: relu(dense(x)); memory: none",
    "entities": "if not null, obs is [group 0, group 1, …, own], a group [count, numbers]: e_i = relu(x_i kernel + "
    "bias) with entities.embeddings_i.*; own takes obs' place in input, and the sum over groups of "
    "entities.sums_i(sum of e_i over count / sqrt(count)), dense, is added to dense(input)",
    "q": "dense_head(norm(output of the core)), one value per action; if entities is not null, those of the last "
    "actions are dense entities.query(norm(output of the core)) . e / sqrt(embed), e those of group targets",
    "action": "the available action of the largest q, the lowest index among equals",
    "state": "memory, last_action and first; where first is true an episode starts, and memory and last_action are "
    "ignored; the next state has first false",
}


@settled()
def export(
    run_dir: str | Path,
    out: str | Path,
    member: int = 0,
    best: bool = False,
    trust: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the decentralised policy of a run's member into the folder ``out``; returns what its policy.json says.

    The folder holds the weights (safetensors), a description (JSON), a program for any batch (StableHLO) and a loader
    that needs NumPy alone; :func:`jqmix.load_policy` reads it, too. It is what the member learned last, or what
    played ``best`` in an evaluation.

    Raises ``ConfigError`` as :func:`jqmix.load_policy` does, and for a folder that holds anything, unless told to
    ``overwrite`` what is in the way. Nothing is written then.
    """
    folder, run_dir = Path(out), Path(run_dir)
    check_path_text("out", str(out))
    check_replaceable(folder, overwrite)
    trained = load_trained(run_dir, member, best, trust)
    return write_policy(trained, read_json(run_dir / "metadata.json"), folder, overwrite)


def write_policy(trained: Trained, metadata: dict[str, Any], folder: Path, overwrite: bool = False) -> dict[str, Any]:
    """What :func:`export` does, of a policy that is at hand; ``metadata``: of the run that it comes from."""
    program = _exported_program(trained)
    about = _describe(trained, metadata, program)
    with replacing(folder, overwrite) as new:
        weights = {name: np.asarray(x) for name, x in by_name(trained.params).items()}
        (new / WEIGHTS).write_bytes(save(weights))
        (new / PROGRAM).write_bytes(program.serialize())
        if about["numpy"]:
            shutil.copyfile(exported_policy.__file__, new / LOADER)
        about["files"] = {path.name: checksum(path) for path in sorted(new.iterdir())}
        (new / DESCRIPTION).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return about


def summary(about: dict[str, Any], folder: Path) -> str:
    """What was exported, in lines to print."""
    sizes, training = about["sizes"], about["training"]
    steps = "" if training["env_steps"] is None else f" after {training['env_steps']:,} environment steps"
    notes = {
        WEIGHTS: "the weights",
        DESCRIPTION: "what they mean",
        PROGRAM: f"act(state, obs, avail) for any batch, on {', '.join(about['program']['platforms'])}",
        LOADER: "acts with NumPy alone: from numpy_policy import load",
    }
    lines = [
        f"exported to {folder}: {sizes['n_agents']} agents of {about['environment']['name']}, "
        f"seed {training['seed']}{steps}"
    ]
    names = [name for name in notes if name in (*about["files"], DESCRIPTION)]
    width = max(map(len, names))
    for name in names:
        lines.append(f"  {name:<{width}}  {(folder / name).stat().st_size / 1000:>9,.1f} kB  {notes[name]}")
    if not about["numpy"]:
        lines.append(f"  no {LOADER}: NumPy has no form of the core {about['architecture']['core']}")
    return "\n".join(lines)


def _exported_program(trained: Trained) -> jax_export.Exported:
    """act(state, obs, avail) -> (action, q, state), the weights in it, for a batch of any size.

    ``state`` is {"memory": [arrays], "last_action", "first"}. Products are of full precision on every platform.
    """
    agent, params = trained.agent, trained.params
    start = trained.policy.initial_state(1)
    memory_form = jax.tree.structure(start.memory)

    def act(state: dict[str, Any], obs: Array, avail: Array) -> tuple[Array, Array, dict[str, Any]]:
        memory, last_action, first = state["memory"], state["last_action"], state["first"]
        q, memory = agent.step(params, jax.tree.unflatten(memory_form, memory), obs, last_action, first)
        action = greedy(q, avail)
        after = {"memory": jax.tree.leaves(memory), "last_action": action, "first": jnp.zeros_like(first)}
        return action, q, after

    (batch,) = jax_export.symbolic_shape("batch")
    team = batch, agent.n_agents
    state = start._asdict() | {"memory": jax.tree.leaves(start.memory)}
    args = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), state),
        jax.ShapeDtypeStruct((*team, agent.obs_size), jnp.float32),
        jax.ShapeDtypeStruct((*team, agent.n_actions), jnp.bool_),
    )
    try:
        with jax.default_matmul_precision("highest"), _without_locations():
            return jax_export.export(jax.jit(act), platforms=PLATFORMS)(*args)
    except Exception as error:
        if agent.core in CORES:
            raise
        raise ConfigError(f"agent.core: {agent.core} cannot be exported: it raised {raised(error)}") from None


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Programs that are traced within do not say in which files of this machine they were written."""
    name = "jax_traceback_in_locations_limit"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _describe(trained: Trained, metadata: dict[str, Any], program: jax_export.Exported) -> dict[str, Any]:
    """policy.json, without the files' checksums."""
    cfg, agent, environment = trained.cfg, trained.agent, metadata["environment"]
    switches = {group: {name: getattr(agent, name) for name in names} for group, names in SWITCHES.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "environment": {"name": environment.get("name"), "kwargs": cfg.env.kwargs},
        "sizes": {name: getattr(agent, name) for name in MOST_SIZES},
        "action_names": _action_names(environment, agent.n_actions),
        "preprocessing": switches["preprocessing"],
        "architecture": {
            "layers": agent.layers,
            "core": agent.core,
            **switches["architecture"],
            "entities": agent.entities and {**agent.entities._asdict(), "embed": agent.entity_embed},
        },
        "conventions": CONVENTIONS,
        "numpy": agent.core in CORES,
        "program": {
            "made_with": f"jax.export of JAX {jax.__version__}",
            "use": "jax.export.deserialize(bytearray(data)).call(state, obs, avail) -> (action, q, state)",
            "platforms": list(program.platforms),
            "inputs": _signature(("state", "obs", "avail"), jax.tree.unflatten(program.in_tree, program.in_avals)[0]),
            "outputs": _signature(("action", "q", "state"), jax.tree.unflatten(program.out_tree, program.out_avals)),
        },
        "training": {
            "member": trained.member,
            "seed": cfg.seed + trained.member,
            "parameters": "best" if trained.best else "newest",
            "env_steps": trained.env_steps,
            "algorithm": cfg.algo.name,
            "mixer": cfg.algo.mixer,
            "versions": metadata.get("versions"),
            "commit": metadata.get("commit"),
            "config": {name: value for name, value in to_dict(cfg).items() if name != "run_dir"},
        },
    }


def _action_names(environment: dict[str, Any], n_actions: int) -> list[str] | None:
    """What each action means, if the run's metadata say it of every one."""
    names = environment.get("action_names")
    whole = isinstance(names, list) and len(names) == n_actions and all(isinstance(name, str) for name in names)
    return names if whole else None


def _signature(names: Sequence[str], values: Sequence[Any]) -> dict[str, str]:
    """The arrays that a program takes or gives, in their order: ``{"obs": "float32[batch, 3, 75]"}``."""
    return {
        f"{name}.{part}".rstrip("."): f"{x.dtype}[{', '.join(map(str, x.shape))}]"
        for name, value in zip(names, values, strict=True)
        for part, x in by_name(value).items()
    }

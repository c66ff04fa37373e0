"""Reads the folder of an exported policy (:mod:`jqmix.runs.export`), which may be damaged or anybody's.

Every file must have the checksum that ``policy.json`` gives it. The agents are built anew from what it says and from
the weights, and no code in the folder is executed. The exception is a core from outside, whose code is not here: its
agents are the StableHLO program, which runs only where it is trusted.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jaxtyping import Array, Bool, Float, Int

from jqmix.exported_policy import CORES, FORMAT, VERSION, read_safetensors
from jqmix.files import open_regular, read_json, whole_number
from jqmix.inputs import ConfigError, one_line, quoted, shown
from jqmix.networks.agent import Agent
from jqmix.runs.shapes import by_name, difference
from jqmix.types import Entities

DESCRIPTION, WEIGHTS, PROGRAM, LOADER = "policy.json", "policy.safetensors", "policy.stablehlo", "numpy_policy.py"

# The largest sizes that are believed: nothing is built for larger ones, and some of it agent by agent.
MOST_SIZES = {"n_agents": 2**12, "n_actions": 2**24, "obs_size": 2**24, "hidden": 2**14}
MOST_LAYERS = 8
SWITCHES = {
    "architecture": ("layer_norm", "share_parameters"),
    "preprocessing": ("obs_norm", "last_action", "agent_id"),
}


class ProgramAgent(NamedTuple):
    """Agents as an exported program has them, weights included: to a policy, what an ``Agent`` is to it."""

    call: Callable[..., Any]  # (state, obs, avail) -> (action, q, state)
    memory: list[tuple[tuple[int, ...], Any]]  # of one episode: shapes [N, …] and dtypes
    n_agents: int
    n_actions: int

    def initial_state(self, *batch: int) -> list[Array]:
        """Zeros, in whose place the program takes the core's own initial state."""
        return [jnp.zeros((*batch, *shape), dtype) for shape, dtype in self.memory]

    def step(
        self,
        params: None,
        state: list[Array],
        obs: Float[Array, "B N O"],
        last_action: Int[Array, "B N"],
        first: Bool[Array, " B"],
    ) -> tuple[Float[Array, "B N A"], list[Array]]:
        """As ``Agent.step``."""
        del params
        avail = jnp.ones((*obs.shape[:-1], self.n_actions), bool)
        _, q, after = self.call({"memory": state, "last_action": last_action, "first": first}, obs, avail)
        return q, after["memory"]


def is_exported(folder: Path) -> bool:
    return os.path.isfile(folder / DESCRIPTION) and not os.path.isfile(folder / "config.yaml")


def load_exported(folder: Path, trust: bool = False) -> tuple[Agent | ProgramAgent, Any]:
    """The agents in an exported folder, and their parameters.

    Raises ``ConfigError``, one line that names the file, for what is missing, damaged or of another format, and, unless
    told to ``trust`` it, for a core that is code from outside.
    """
    path = folder / DESCRIPTION
    about = read_json(path)
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        found = f"{quoted(about.get('format'))}, version {quoted(about.get('version'))}"
        raise ConfigError(f"{shown(path)}: format: {found} is not what is read here: '{FORMAT}', version {VERSION}")
    group = _group(path, about, "sizes")
    sizes = {name: whole_number(path, group, name, most, "sizes.") for name, most in MOST_SIZES.items()}
    with_numpy = _switch(path, about, "numpy")
    files = _sound_files(folder, about, with_numpy)
    if with_numpy:
        return _built(folder, about, sizes, files[WEIGHTS])
    if not trust:
        raise ConfigError(f"{shown(folder)}: its core is code from outside, kept as a program; --trust runs it")
    return _program_agent(folder / PROGRAM, files[PROGRAM], sizes["n_agents"], sizes["n_actions"]), None


def _sound_files(folder: Path, about: dict[str, Any], with_numpy: bool) -> dict[str, bytes]:
    """What is in the folder beside its description."""
    path, sums = folder / DESCRIPTION, _group(folder / DESCRIPTION, about, "files")
    names = {WEIGHTS, PROGRAM, LOADER} if with_numpy else {WEIGHTS, PROGRAM}
    if sums.keys() != names:
        raise ConfigError(f"{shown(path)}: files: {quoted(sorted(sums))} is not allowed; it takes {sorted(names)}")
    found = {}
    for name in sorted(names):
        try:
            with open_regular(folder / name) as file:
                found[name] = file.read()
        except OSError as error:
            raise ConfigError(f"{shown(folder / name)}: cannot be read: {error.strerror}") from None
        if hashlib.sha256(found[name]).hexdigest() != sums[name]:
            raise ConfigError(f"{shown(folder / name)}: not what was exported: {DESCRIPTION} has another checksum")
    return found


def _built(folder: Path, about: dict[str, Any], sizes: dict[str, int], data: bytes) -> tuple[Agent, Any]:
    """The agents from their description, with their weights."""
    path, architecture = folder / DESCRIPTION, _group(folder / DESCRIPTION, about, "architecture")
    core = architecture.get("core")
    if not isinstance(core, str) or core not in CORES:
        raise ConfigError(f"{shown(path)}: architecture.core: {quoted(core)} is not one of {', '.join(CORES)}")
    layers = whole_number(path, architecture, "layers", MOST_LAYERS, "architecture.")
    switches: dict[str, Any] = {
        name: _switch(path, about, name, group) for group, names in SWITCHES.items() for name in names
    }
    agent = Agent(**sizes, layers=layers, core=core, **switches, **_by_entity(path, architecture, sizes))
    try:
        weights = read_safetensors(data)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ConfigError(f"{shown(folder / WEIGHTS)}: not safetensors: {one_line(str(error))}") from None
    like = jax.eval_shape(agent.init, jax.random.key(0))
    wanted = {name: x.shape for name, x in by_name(like).items()}
    differs = difference({name: x.shape for name, x in weights.items()}, wanted)
    if differs:
        name, found, expected = differs
        raise ConfigError(f"{shown(folder / WEIGHTS)}: {name} is {found} there, {expected} by {DESCRIPTION}")
    return agent, jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(weights[name]) for name in wanted])


def read_entities(path: Path, tree: dict[str, Any], sizes: Mapping[str, int], group: str) -> Entities | None:
    """What the ``group`` of a file says of entities; None where it has none, as what was written before there were any.

    Raises ``ConfigError`` for what is none, or does not fit the sizes."""
    about = tree.get("entities")
    if about is None:
        return None
    allowed = 'null or {"groups": [[count, numbers], …], "targets": …} that fit the sizes'
    wrong = ConfigError(f"{shown(path)}: {group}.entities: {quoted(about)} is not allowed; it takes {allowed}")
    try:
        entities = Entities(tuple(tuple(each) for each in about["groups"]), about["targets"])
    except (TypeError, KeyError):
        raise wrong from None
    if not entities.fit(sizes["obs_size"], sizes["n_actions"]):
        raise wrong
    return entities


def _by_entity(path: Path, architecture: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """An agent's fields of entities."""
    entities = read_entities(path, architecture, sizes, "architecture")
    if entities is None:
        return {}
    about = architecture["entities"]
    embed = whole_number(path, about, "embed", MOST_SIZES["hidden"], "architecture.entities.")
    return {"entities": entities, "entity_embed": embed}


def _program_agent(path: Path, data: bytes, n_agents: int, n_actions: int) -> ProgramAgent:
    try:
        program = jax_export.deserialize(bytearray(data))
        (state, _, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        memory = [(aval.shape[1:], aval.dtype) for aval in state["memory"]]
    except Exception as error:  # of whatever kind: it reads a format of its own
        why = f"JAX {jax.__version__} cannot read it: {one_line(str(error))}"
        raise ConfigError(f"{shown(path)}: {why}") from None
    here = jax_export.default_export_platform()
    if here not in program.platforms:
        raise ConfigError(f"{shown(path)}: made for {', '.join(program.platforms)}, not for {here}")
    return ProgramAgent(jax.jit(program.call), memory, n_agents, n_actions)


def _group(path: Path, about: dict[str, Any], name: str) -> dict[str, Any]:
    group = about.get(name)
    if not isinstance(group, dict):
        raise ConfigError(f"{shown(path)}: {name}: {quoted(group)} is not allowed; it takes a JSON object")
    return group


def _switch(path: Path, about: dict[str, Any], name: str, group: str = "") -> bool:
    found = (_group(path, about, group) if group else about).get(name)
    if not isinstance(found, bool):
        where = f"{group}.{name}" if group else name
        raise ConfigError(f"{shown(path)}: {where}: {quoted(found)} is not allowed; it takes true or false")
    return found

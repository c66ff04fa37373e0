"""Acts as a policy that ``jqmix export`` wrote, with NumPy alone: each agent on its own history.

    from numpy_policy import load                           # the copy of this file in the exported folder

    policy = load("policy")                                 # the folder; policy.json in it says what is what
    state = policy.initial_state(batch=1)                   # where an episode starts
    action, state = policy.act(state, obs, avail)           # obs [B, N, O], avail [B, N, A] -> action [B, N]

    state = policy.initial_state(batch=1, agent=2)          # agent 2 alone, as where each runs on its own
    action, state = policy.act(state, obs, avail, agent=2)  # obs [B, O], avail [B, A] -> action [B]

Where an episode of the batch starts anew, ``state.first`` must be true: ``state._replace(first=ended)``.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT, VERSION = "jqmix policy", 1
Weights = dict[str, np.ndarray]  # by name; where each agent has its own, leading with the agents
Memory = tuple[np.ndarray, ...]  # [B, N, H] each


class NumpyState(NamedTuple):
    """What the agents remember; of one agent alone, without the axis N."""

    memory: Memory
    last_action: np.ndarray  # [B, N]
    first: np.ndarray  # [B], whether an episode starts: then the rest is ignored


def load(folder: str | Path = Path(__file__).parent) -> "NumpyPolicy":
    """The policy in an exported folder. Raises ``ValueError`` for another format and for weights that were changed."""
    folder = Path(folder)
    about = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{folder / 'policy.json'} does not describe a {FORMAT} of version {VERSION}")
    if not about["numpy"]:
        raise ValueError(f"NumPy has no form of the core {about['architecture']['core']}; policy.stablehlo has it")
    data = (folder / "policy.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != about["files"]["policy.safetensors"]:
        raise ValueError(f"{folder / 'policy.safetensors'} is not what was exported")
    return NumpyPolicy(about, read_safetensors(data))


def read_safetensors(data: bytes) -> Weights:
    """Arrays of 32-bit floats by name: 8 bytes with the header's length, the header in JSON, the arrays' bytes."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    weights = {}
    for name, info in header.items():
        if info["dtype"] != "F32":
            raise ValueError(f"{name} is of type {info['dtype']}, not F32")
        begin, end = info["data_offsets"]
        weights[name] = np.frombuffer(data[start + begin : start + end], "<f4").reshape(info["shape"])
    return weights


class NumpyPolicy:
    """``about``: what policy.json says; ``weights``: what policy.safetensors holds."""

    def __init__(self, about: dict[str, Any], weights: Weights):
        self.about, self.weights = about, dict(weights)
        self.n_agents, self.n_actions, self.obs_size, self.hidden = (
            about["sizes"][name] for name in ("n_agents", "n_actions", "obs_size", "hidden")
        )
        self.layers, self._core = about["architecture"]["layers"], CORES[about["architecture"]["core"]]
        self._reads, self._entities = about["preprocessing"], about["architecture"].get("entities")
        self._own = weights.keys() - {"obs_norm.rows", "obs_norm.mean", "obs_norm.m2"}  # by agent
        if about["architecture"]["share_parameters"]:  # what distinguishes agents is a row of the first layer
            ids = weights["encoder.kernel"][-self.n_agents :] * np.float32(self._reads["agent_id"])
            self.weights["encoder.bias"] = weights["encoder.bias"] + ids
            self._own = {"encoder.bias"}

    def initial_state(self, batch: int, agent: int | None = None) -> NumpyState:
        """For ``batch`` episodes at their start."""
        team = (batch, self.n_agents) if agent is None else (batch,)
        memory = tuple(np.zeros((*team, self.hidden), np.float32) for _ in range(self._core.arrays))
        return NumpyState(memory, np.zeros(team, np.int32), np.ones(batch, bool))

    def act(
        self, state: NumpyState, obs: np.ndarray, avail: np.ndarray, agent: int | None = None
    ) -> tuple[np.ndarray, NumpyState]:
        """The best available actions, the lowest among equals; and the state to act from next."""
        q, memory = self.q_values(state, obs, agent)
        action = np.where(np.asarray(avail, bool), q, -np.inf).argmax(axis=-1).astype(np.int32)
        return action, NumpyState(memory, action, np.zeros_like(state.first))

    def q_values(self, state: NumpyState, obs: np.ndarray, agent: int | None = None) -> tuple[np.ndarray, Memory]:
        """The value of every action [B, N, A], and what is remembered next."""
        obs = np.asarray(obs, np.float32)
        if agent is None:
            return self._forward(slice(None), state, obs)
        if not 0 <= agent < self.n_agents:
            raise ValueError(f"agent: {agent} is not one of 0 … {self.n_agents - 1}")
        team = NumpyState(tuple(m[:, None] for m in state.memory), state.last_action[:, None], state.first)
        q, memory = self._forward(slice(agent, agent + 1), team, obs[:, None])
        return q[:, 0], tuple(m[:, 0] for m in memory)

    def _forward(self, agents: slice, state: NumpyState, obs: np.ndarray) -> tuple[np.ndarray, Memory]:
        w = {name: x[agents] if name in self._own else x for name, x in self.weights.items()}
        first = state.first[:, None, None]
        memory = tuple(np.where(first, np.float32(0), m) for m in state.memory)
        if self._reads["obs_norm"]:
            variance = w["obs_norm.m2"] / np.maximum(w["obs_norm.rows"], 1)
            obs = np.clip((obs - w["obs_norm.mean"]) / np.sqrt(variance + np.float32(1e-6)), -5, 5)
        obs, heard, targets = self._read(w, obs)
        hidden, memory = self._core.step(w, self._encode(w, obs, heard, state.last_action, first), memory)
        hidden = _norm(w, "norm", hidden)
        q = _dense(w, "head", hidden)
        if self._entities:
            query = _dense(w, "entities.query", hidden)[..., None, :]
            aimed = (query * targets).sum(axis=-1) / np.float32(self._entities["embed"] ** 0.5)
            q = np.concatenate([q, aimed], axis=-1)
        return q, memory

    def _read(self, w: Weights, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        """(what an agent sees of itself, what the entities add to the first layer, whom actions are aimed at)."""
        if not self._entities:
            return obs, np.zeros((), np.float32), None
        heard, embedded = np.zeros((), np.float32), []
        for i, (count, numbers) in enumerate(self._entities["groups"]):
            x, obs = obs[..., : count * numbers], obs[..., count * numbers :]
            x = x.reshape(*x.shape[:-1], count, numbers)
            name = f"entities.embeddings_{i}"
            embedded.append(_relu(x @ w[f"{name}.kernel"] + w[f"{name}.bias"]))
            heard = heard + _dense(w, f"entities.sums_{i}", embedded[-1].sum(axis=-2) / np.float32(count**0.5))
        return obs, heard, embedded[self._entities["targets"]]

    def _encode(
        self, w: Weights, obs: np.ndarray, heard: np.ndarray, last_action: np.ndarray, first: np.ndarray
    ) -> np.ndarray:
        o, a, kernel = obs.shape[-1], self.n_actions, w["encoder.kernel"]
        x = _product(obs, kernel[..., :o, :]) + w["encoder.bias"] + heard
        if self._reads["last_action"]:
            taken = np.eye(a, dtype=np.float32)[last_action] * ~first
            x = x + _product(taken, kernel[..., o : o + a, :])
        x = _relu(_norm(w, "encoder.norm", x))
        for i in range(2, self.layers + 1):
            x = _relu(_norm(w, f"encoder.norm{i}", _dense(w, f"encoder.layer{i}", x)))
        return x


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x)


def _product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [B, N, I] times what all agents share [I, H], or each one's own [N, I, H]."""
    return x @ w if w.ndim == 2 else (x[..., None, :] @ w)[..., 0, :]


def _dense(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return _product(x, w[f"{name}.kernel"]) + w[f"{name}.bias"]


def _norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Layer normalisation, where there is one."""
    if f"{name}.scale" not in w:
        return x
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(1e-6)) * w[f"{name}.scale"] + w[f"{name}.bias"]


def _gates(w: Weights, side: str, x: np.ndarray, gates: str) -> list[np.ndarray]:
    return [_product(x, w[f"core.w_{side}.{g}"]) + w[f"core.b_{side}.{g}"] for g in gates]


def _gru(w: Weights, x: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
    (h,) = memory
    (x_r, x_z, x_n), (h_r, h_z, h_n) = _gates(w, "i", x, "rzn"), _gates(w, "h", h, "rzn")
    n = np.tanh(x_n + _sigmoid(x_r + h_r) * h_n)
    h = n + _sigmoid(x_z + h_z) * (h - n)
    return h, (h,)


def _lstm(w: Weights, x: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
    h, c = memory
    i, f, g, o = (x + h for x, h in zip(_gates(w, "i", x, "ifgo"), _gates(w, "h", h, "ifgo"), strict=True))
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    return h, (h, c)


def _feedforward(w: Weights, x: np.ndarray, memory: Memory) -> tuple[np.ndarray, Memory]:
    return _relu(_dense(w, "core", x)), memory


class _Core(NamedTuple):
    arrays: int  # that it remembers
    step: Any  # (weights, x [B, N, H], memory) -> (output [B, N, H], memory)


CORES = {"gru": _Core(1, _gru), "lstm": _Core(2, _lstm), "none": _Core(0, _feedforward)}

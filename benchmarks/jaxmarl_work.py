"""JaxMARL's own programs and amounts of work, and the same work in jqmix's words. No script: the others use it.

The programs come from a clone of JaxMARL's repository and are run as they are; nothing of them is kept here. They need
jaxmarl, flashbax and six. What they tell wandb is caught. Numbers are those of the clone's
``baselines/QLearning/config/alg/``.
"""

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jqmix.config import Config, load_config
from jqmix.inputs import read_yaml

Report = Callable[[float, dict[str, Any]], None]  # (seconds, what the program reports), every iteration and seed
PROGRAMS = {
    "qmix": "qmix_rnn.py",
    "pqn_vdn": "pqn_vdn_rnn.py",
    "vdn_cnn": "vdn_cnn_overcooked.py",
    "pqn_vdn_cnn": "pqn_vdn_cnn_overcooked.py",
}
MAPS = ("3m", "2s3z", "5m_vs_6m")
SCENARIOS = ("simple_spread_v3", "simple_reference_v3", "simple_speaker_listener_v4")

_SMAX_WORK = {"rollouts": 16, "steps": 128, "batch": 32, "updates": 8, "embed": 64, "hypernet": 256, "hidden": 512}
_MPE_WORK = {"rollouts": 8, "steps": 26, "batch": 32, "updates": 1, "embed": 32, "hypernet": 128, "hidden": 64}
_SMAX_KWARGS = {"see_enemy_actions": True, "walls_cause_death": True, "attack_mode": "closest"}

# QMIX: the amount of work, iterations of a timed turn, the program's settings that differ between environments, and
# our preset, where it has another name.
CASES: dict[str, dict[str, Any]] = {
    **{
        f"mpe_{name}": {
            "preset": f"mpe_{name}".rsplit("_", 1)[0],
            "work": _MPE_WORK,
            "iterations": 200,
            "peer": {
                "ENV_NAME": f"MPE_{name}",
                "ENV_KWARGS": {},
                "GAMMA": 0.9,
                "REW_SCALE": 1.0,
                "LR": 0.005,
                "LR_LINEAR_DECAY": True,
                "MAX_GRAD_NORM": 25,
                "TARGET_UPDATE_INTERVAL": 200,
            },
        }
        for name in SCENARIOS
    },
    **{
        f"smax_{name}": {
            "work": _SMAX_WORK,
            "iterations": 10,
            "peer": {
                "ENV_NAME": "HeuristicEnemySMAX",
                "MAP_NAME": name,
                "ENV_KWARGS": _SMAX_KWARGS,
                "GAMMA": 0.99,
                "REW_SCALE": 10.0,
                "LR": 5e-5,
                "MAX_GRAD_NORM": 10,
                "TARGET_UPDATE_INTERVAL": 10,
            },
        }
        for name in MAPS
    },
}
BUFFER = 5000
LEARNING_STARTS = 10_000

# PQN-VDN on SMAX: each number once, for both programs.
PQN = {
    "rollouts": 128, "steps": 128, "overlap": 4, "minibatches": 16, "epochs": 4, "layers": 2, "lr": 2.5e-4,
    "td_lambda": 0.85, "gamma": 0.99, "reward_scale": 10.0, "eps_end": 0.01, "eps_share": 0.1, "grad_clip": 1.0,
}  # fmt: skip


def sized_case(name: str, hidden: int | None) -> dict[str, Any]:
    """A case, with another width of the agents where one is given."""
    case = CASES[name]
    return case | {"work": case["work"] | ({} if hidden is None else {"hidden": hidden})}


def load_program(clone: Path, algorithm: str, report: Report) -> types.ModuleType:
    """JaxMARL's program; what it tells wandb comes to ``report``."""
    _stand_in("hydra", main=lambda **_: lambda f: f)
    _stand_in("omegaconf", OmegaConf=None)
    wandb = types.ModuleType("wandb")
    vars(wandb)["log"] = lambda metrics, **_: report(time.perf_counter(), metrics)
    sys.modules["wandb"] = wandb
    path = _in_clone(clone, PROGRAMS[algorithm])
    spec = importlib.util.spec_from_file_location(f"jaxmarl_{algorithm}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_clone(clone: Path, *names: str) -> Path:
    path = clone.joinpath("baselines", "QLearning", *names)
    if not path.is_file():
        sys.exit(f"--jaxmarl: {path} is not there; a clone of JaxMARL's repository holds it")
    return path


def _stand_in(name: str, **attributes: Any) -> None:
    """A module that the program imports for its own command line, where it is not installed."""
    if importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module


_WITHOUT_TESTS = {"TEST_DURING_TRAINING": False, "TEST_NUM_STEPS": 1, "TEST_NUM_ENVS": 1}


def qmix_settings(case: dict[str, Any], total_steps: int) -> dict[str, Any]:
    """JaxMARL's QMIX as it is configured, without evaluation."""
    work = case["work"]
    return {
        **case["peer"],
        "TOTAL_TIMESTEPS": total_steps,
        "NUM_ENVS": work["rollouts"],
        "NUM_STEPS": work["steps"],
        "BUFFER_SIZE": BUFFER,
        "BUFFER_BATCH_SIZE": work["batch"],
        "HIDDEN_SIZE": work["hidden"],
        "MIXER_EMBEDDING_DIM": work["embed"],
        "MIXER_HYPERNET_HIDDEN_DIM": work["hypernet"],
        "MIXER_INIT_SCALE": 0.001,
        "EPS_START": 1.0,
        "EPS_FINISH": 0.05,
        "EPS_DECAY": 0.1,
        "TAU": 1.0,
        "NUM_EPOCHS": work["updates"],
        "LEARNING_STARTS": LEARNING_STARTS,
        **_WITHOUT_TESTS,
        "WANDB_MODE": "logged",
    }


def qmix_work(name: str, case: dict[str, Any], iterations: int, seeds: int) -> Config:
    """The amount of work of JaxMARL's QMIX in jqmix's words; a call has so many iterations."""
    work = case["work"]
    per_iteration = work["rollouts"] * work["steps"]
    return load_config(
        None,
        **{
            "env.name": name,
            "seeds": seeds,
            "rollouts": work["rollouts"],
            "window": work["steps"],
            "updates": work["updates"],
            "agent.hidden": work["hidden"],
            "mixer.embed": work["embed"],
            "mixer.hypernet_hidden": work["hypernet"],
            "algo.td_lambda": 0.0,
            "algo.gamma": case["peer"]["GAMMA"],
            "algo.reward_scale": case["peer"]["REW_SCALE"],
            "replay.capacity": BUFFER // work["rollouts"] * work["rollouts"],
            "replay.batch": work["batch"],
            "eval.every": iterations * per_iteration,
            "eval.episodes": 1,
            "total_steps": 10**9,
        },
    )


def pqn_settings(case: dict[str, Any], total_steps: int) -> dict[str, Any]:
    """JaxMARL's PQN-VDN on SMAX as it is configured, but for the width; its layers have batch normalisation."""
    return {
        **{name: value for name, value in case["peer"].items() if name not in ("GAMMA", "REW_SCALE")},
        "TOTAL_TIMESTEPS": total_steps,
        "NUM_ENVS": PQN["rollouts"],
        "NUM_STEPS": PQN["steps"],
        "MEMORY_WINDOW": PQN["overlap"],
        "HIDDEN_SIZE": case["work"]["hidden"],
        "NUM_LAYERS": PQN["layers"],
        "NORM_INPUT": True,
        "NORM_TYPE": "batch_norm",
        "EPS_START": 1.0,
        "EPS_FINISH": PQN["eps_end"],
        "EPS_DECAY": PQN["eps_share"],
        "MAX_GRAD_NORM": PQN["grad_clip"],
        "NUM_MINIBATCHES": PQN["minibatches"],
        "NUM_EPOCHS": PQN["epochs"],
        "LR": PQN["lr"],
        "LR_LINEAR_DECAY": True,
        "GAMMA": PQN["gamma"],
        "LAMBDA": PQN["td_lambda"],
        "REW_SCALE": PQN["reward_scale"],
        **_WITHOUT_TESTS,
        "WANDB_MODE": "logged",
    }


# Overcooked: JaxMARL's layout by our name, which is our preset's, too; and the files of its programs' settings.
OVERCOOKED = {f"overcooked_{layout}": layout for layout in ("cramped_room", "coord_ring")}
_OVERCOOKED_FILES = {"vdn_cnn": "ql_cnn_overcooked.yaml", "pqn_vdn_cnn": "pqn_vdn_cnn_overcooked.yaml"}


def overcooked_settings(clone: Path, algorithm: str, layout: str, total_steps: int) -> dict[str, Any]:
    """JaxMARL's settings of Overcooked as its file has them; the shaped reward goes over the same share of the run."""
    settings = read_yaml(_in_clone(clone, "config", "alg", _OVERCOOKED_FILES[algorithm]))
    return settings | {
        "ENV_KWARGS": {"layout": layout},
        "REW_SHAPING_HORIZON": settings["REW_SHAPING_HORIZON"] / settings["TOTAL_TIMESTEPS"] * total_steps,
        "TOTAL_TIMESTEPS": total_steps,
        "WANDB_MODE": "logged",
    }


class Conv(nn.Module):
    """flax's convolution (no stride, zeros around) as a matrix product: the same parameters, and values to rounding.

    Within a loop on a CPU, XLA takes several times as long for a convolution's gradient.
    """

    features: int
    kernel_size: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # (…, rows, columns, channels)
        height, width = self.kernel_size
        shape = (height, width, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        around = ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2), (0, 0)
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [*around])
        rows, columns = x.shape[-3:-1]
        seen = [padded[..., i : i + rows, j : j + columns, :] for i in range(height) for j in range(width)]
        return jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, self.features) + bias


def pqn_fields(case: dict[str, Any], total_steps: int) -> dict[str, Any]:
    """The same in jqmix's words; its layers have layer normalisation, its inputs running statistics."""
    return {
        "algo.name": "pqn",
        "algo.mixer": "vdn",
        "algo.epochs": PQN["epochs"],
        "algo.minibatches": PQN["minibatches"],
        "algo.td_lambda": PQN["td_lambda"],
        "algo.gamma": PQN["gamma"],
        "algo.reward_scale": PQN["reward_scale"],
        "rollouts": PQN["rollouts"],
        "window": PQN["steps"],
        "replay.burn_in": PQN["overlap"],
        "optim.name": "radam",
        "optim.lr": PQN["lr"],
        "optim.lr_end_factor": 0.0,
        "optim.grad_clip": PQN["grad_clip"],
        "explore.eps_start": 1.0,
        "explore.eps_end": PQN["eps_end"],
        "explore.eps_steps": int(PQN["eps_share"] * total_steps),
        "agent.layers": PQN["layers"],
        "agent.layer_norm": True,
        "agent.obs_norm": "running",
        "agent.hidden": case["work"]["hidden"],
        "agent.agent_id": True,
        "agent.last_action": False,
    }

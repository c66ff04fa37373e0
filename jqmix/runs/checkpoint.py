"""Saving and loading the training state with Orbax: everything but the replay, one folder per saved step."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jqmix.config import Config, ConfigError
from jqmix.learning.train import Member, Shared


def without_replay(members: Member) -> dict[str, Any]:
    """What a checkpoint holds of the members, on the host. Replay (with its priorities) is large, and only resuming
    would need it."""
    return jax.device_get({k: v for k, v in members._asdict().items() if k not in ("replay", "priority")})


def save(run_dir: Path, members: dict[str, Any], shared: Shared) -> Path:
    """Writes ``checkpoints/<iteration>``; never over an existing one."""
    path = (run_dir / "checkpoints" / str(int(shared.iteration))).resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"member": members, "shared": jax.device_get(shared)})
    return path


def newest(run_dir: Path) -> Path:
    """The folder of the newest checkpoint. Raises ``ConfigError`` where there is none."""
    folder = Path(run_dir) / "checkpoints"
    steps = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not steps:
        raise ConfigError(f"run_dir: no checkpoint in {run_dir}")
    return max(steps, key=lambda p: int(p.name))


def load_members(run_dir: Path, cfg: Config) -> dict[str, Any]:
    """What the newest checkpoint holds of the members, field by field: every leaf leads with P = ``cfg.seeds``."""
    path = newest(run_dir).resolve()
    with ocp.PyTreeCheckpointer() as checkpointer:
        # As NumPy arrays: they are read wherever the run was made, on whatever devices.
        saved = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    found = {x.shape[0] for x in jax.tree.leaves(tree["member"]["learner"]["params"])}
    if found != {cfg.seeds}:
        raise ConfigError(f"seeds: config.yaml says {cfg.seeds}, the checkpoint holds {found}")
    return tree["member"]


def load_params(run_dir: Path, cfg: Config) -> Any:
    """The learned parameters of all members, from the newest checkpoint: every leaf leads with P = ``cfg.seeds``."""
    return _gates_apart(load_members(run_dir, cfg)["learner"]["params"])


def _gates_apart(params: Any, name: str = "") -> Any:
    """Earlier checkpoints hold a GRU's three gates in one array, ahead of the axes that a gate's own has."""
    if isinstance(params, dict):
        return {name: _gates_apart(inner, name) for name, inner in params.items()}
    if not name.startswith("gru_"):
        return params
    gates = np.moveaxis(params, -3 if name.startswith("gru_w") else -2, 0)
    return dict(zip("rzn", gates, strict=True))

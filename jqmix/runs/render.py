"""Films of greedy episodes of a run: played by its newest checkpoint, drawn by :mod:`jqmix.rendering`."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqmix.config import Config, ConfigError
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.files import warn
from jqmix.learning.learner import Learner, make_learner
from jqmix.learning.recording import Recording, record
from jqmix.learning.train import build_env, build_single_env
from jqmix.networks import normalise
from jqmix.rendering.episode import Episode
from jqmix.rendering.film import MOST_EPISODES, Film
from jqmix.rendering.scenes import make_scene
from jqmix.rendering.video import FASTEST, Video, encode, video_format
from jqmix.runs import checkpoint
from jqmix.runs.jax_settings import settled
from jqmix.runs.memory import check_room, playing_bytes, tree_bytes
from jqmix.runs.policy import check_fits, check_member, load_run_config


@settled()
def render(
    run_dir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    episodes: int = 4,
    seed: int = 0,
    member: int = 0,
    best: bool = False,
    fps: int | float | None = None,
    trust: bool = False,
    overwrite: bool = False,
) -> Video:
    """A film of greedy episodes of one member of a run; in a notebook it shows itself.

    They are the episodes that ``jqmix evaluate`` plays with the same ``seed`` and number of ``episodes`` (1 to 16).
    ``best`` plays what played best in an evaluation; its Q_tot is not known, as checkpoints keep the agents of that
    time and not the mixer. ``fps``: frames per second, of which an environment may take several for a step.

    ``out`` ends with .gif or .mp4 (which needs ``jqmix[video]``); without it a GIF is made, and nothing written.
    Raises ``ConfigError`` or ``EnvError``, one line, for a file that is there unless told to ``overwrite`` it, for
    anything that is damaged, and, unless told to ``trust`` it, for a run whose environment is code of its own.
    """
    for name, value, low, high in (("episodes", episodes, 1, MOST_EPISODES), ("seed", seed, 0, 2**31 - 1)):
        if not low <= value <= high:
            raise ConfigError(f"{name}: {value} is out of range; it must be from {low} to {high}")
    if fps is not None and not 1 <= fps <= FASTEST:
        raise ConfigError(f"fps: {fps} is out of range; it must be from 1 to {FASTEST}")
    kind = ".gif" if out is None else video_format(out, overwrite)
    run_dir = Path(run_dir)
    cfg = load_run_config(run_dir, trust)
    check_member(cfg, member)
    played = _played(run_dir, cfg, episodes, seed, member, best)
    scene = make_scene(build_single_env(cfg).inner, played)  # type: ignore[attr-defined]  # without its time limit
    video = encode(Film(scene, played, _title(cfg, member, best)), kind, fps)
    return video if out is None else replace(video, path=video.save(out, overwrite))


def _title(cfg: Config, member: int, best: bool) -> str:
    name = cfg.env.factory or cfg.env.name
    which = "best parameters" if best else "newest parameters"
    return "  ·  ".join([name, cfg.algo.mixer, f"seed {cfg.seed + member}", which])


def _played(run_dir: Path, cfg: Config, count: int, seed: int, member: int, best: bool) -> list[Episode]:
    env = build_env(cfg, count)
    learner = make_learner(cfg, env.spec)
    learned = checkpoint.load_learned(run_dir, cfg, warn)
    check_fits(learned.params, learner, run_dir)
    row = learned.row(member)
    params = {"agent": learned.agents(best)} | ({} if best else {"mixer": learned.params["mixer"]})
    moments = normalise.Moments(**learned.tree["moments"])
    params, moments = jax.tree.map(lambda x: jnp.asarray(x[row]), (params, moments))
    play = partial(record, learner, params, moments, cfg, env)
    _check_fits_in_memory(env, learner, play)
    return split_up(jax.device_get(jax.jit(play)(jax.random.key(seed))))


def _check_fits_in_memory(env: BatchedDecPOMDP, learner: Learner, play: Any) -> None:
    """Raises ``ConfigError`` where recording would not fit; traced, not computed."""
    kept = tree_bytes(jax.eval_shape(play, jax.random.key(0)))
    playing = playing_bytes(env, learner.agent.hidden, env.spec.episode_limit)
    check_room("episodes", f"{env.size} with all that is kept of them", playing + 3 * kept)


def split_up(recording: Recording) -> list[Episode]:
    """The episodes of a recording, each as long as it was."""

    def episode(e: int) -> Episode:
        length = int(recording.episodes.length[e])
        states = jax.tree.map(lambda x: x[: length + 1, e], recording.states)
        window, won, q_tot = recording.window, recording.episodes.won, recording.q_tot
        return Episode(
            states=states.inner,  # without the time limit's count
            avail=np.asarray(window.avail[:length, e]),
            q=np.asarray(recording.q[:length, e]),
            action=np.asarray(window.action[:length, e]),
            score=np.asarray(recording.score[:length, e]),
            q_tot=None if q_tot is None else np.asarray(q_tot[:length, e]),
            won=None if won is None else bool(won[e]),
        )

    return [episode(e) for e in range(len(recording.episodes.length))]

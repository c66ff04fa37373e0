"""How long a run is expected to take on two CPU cores: an estimate from its sizes. Imports no JAX.

Seconds per environment step are a sum of four kinds of work: arithmetic of the agents, arithmetic of the mixer,
updates (of which each costs something however small it is), and playing. What each costs was fitted to thirteen speeds
of one seed on two idle cores of a Xeon at 2.8 GHz (SMAX 3m and 2s3z, MPE, predator–prey; widths 32 to 512; rollouts 4
to 64); that of reading entities to two of an EPYC. It meets them within a fifth. Elsewhere, and for large maps and
JaxMARL's own environments, it is a rough guide.
"""

from typing import Any

from jqmix.config import Config, load_config, preset_names
from jqmix.envs.registry import Sizes, entries

# Seconds, as fitted: of a floating-point operation of agents and of mixers, of an agent's unit at a slot, of what a
# number of an observation costs for each unit of an entity's embedding, of an update divided by the environment steps
# of an iteration, and of a step that is played.
AGENT_S, MIXER_S, UNIT_S, ENTITY_S, SLOT_S, STEP_S = 4.2e-12, 2.6e-12, 1.7e-8, 1.7e-10, 2.0e-5, 3.0e-6
CORE_WEIGHTS = {"gru": 6, "lstm": 8}  # times the width squared
MACHINE = "two CPU cores"


def expected_seconds(cfg: Config, sizes: Sizes) -> float:
    """Of training all members of a configuration on two CPU cores, without compiling."""
    return cfg.seeds * cfg.total_steps / expected_speed(cfg, sizes)


def expected_speed(cfg: Config, sizes: Sizes) -> float:
    """Environment steps per second, summed over members."""
    length = cfg.window or cfg.env.episode_limit or sizes.episode_limit
    if cfg.algo.name == "dqn":
        drawn, updates, passes = cfg.updates * cfg.replay.batch / cfg.rollouts, cfg.updates, 4
    else:  # every window in every epoch, and no target network
        drawn, updates, passes = cfg.algo.epochs, cfg.algo.epochs * cfg.algo.minibatches, 3
    slots = (cfg.replay.burn_in + length + 1) / length
    agents, mixer = _weights(cfg, sizes)
    units = UNIT_S * cfg.agent.hidden
    if cfg.agent.encoder == "entities":
        units += ENTITY_S * sizes.obs_size * cfg.agent.entity_embed
    arithmetic = 2 * passes * (AGENT_S * agents + MIXER_S * mixer) + units * sizes.n_agents
    return 1 / (drawn * slots * arithmetic + SLOT_S * updates * slots / cfg.rollouts + STEP_S)


def _weights(cfg: Config, sizes: Sizes) -> tuple[int, int]:
    """About how many weights are multiplied at a slot: in all agents, and in the mixer."""
    agent, hidden = cfg.agent, cfg.agent.hidden
    seen = sizes.obs_size + agent.agent_id * sizes.n_agents + agent.last_action * sizes.n_actions
    core = CORE_WEIGHTS.get(agent.core, 1) + agent.layers - 1
    agents = sizes.n_agents * (seen * hidden + core * hidden**2 + hidden * sizes.n_actions)
    embed, hypernet = getattr(cfg.mixer, "embed", 0), getattr(cfg.mixer, "hypernet_hidden", 0)
    mixer = 2 * sizes.state_size * (hypernet + embed) + hypernet * embed * (sizes.n_agents + 1)
    return agents, mixer


def spell_seconds(seconds: float) -> str:
    """About how long, to one or two digits: ``40 s``, ``25 min``, ``3.1 h``, ``2.4 days``."""
    for unit, length, until in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 36 * 3600)):
        if seconds < until:
            number = seconds / length
            return f"{max(number, 1):.0f} {unit}" if number >= 10 or unit == "s" else f"{number:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def preset_rows() -> list[dict[str, Any]]:
    """Every preset: its environment, algorithm, mixer, steps of a seed, and about how long one seed takes."""
    rows = []
    for name in preset_names():
        cfg = load_config(name)
        sizes = entries()[cfg.env.name].sizes
        rows.append(
            {
                "preset": name,
                "environment": cfg.env.name,
                "algorithm": cfg.algo.name,
                "mixer": cfg.algo.mixer,
                "total_steps": cfg.total_steps,
                "seconds": None if sizes is None else round(expected_seconds(cfg, sizes), 1),
            }
        )
    return rows

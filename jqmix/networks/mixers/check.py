"""Whether a mixer from outside is one: traced once, nothing is computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jqmix.inputs import ConfigError
from jqmix.networks.mixers.base import Mixer, MixerSizes, zero_batch
from jqmix.plugins import called, located, raised, where

BATCH = (3, 2)  # slots and windows: unlike each other, so that axes cannot be mistaken


def check_mixer(mixer: Any, sizes: MixerSizes, settings: Any, factory: Callable[..., Any]) -> None:
    """Raises ``ConfigError``, one line, unless ``mixer`` has init and apply that give what a mixer's have to.

    An auxiliary loss that reads the agents' parameters can be tried only where there are some: it is left to the
    learner.
    """
    whose = f"algo.mixer: {called(factory)}"
    place = where(factory)
    if not isinstance(mixer, Mixer):
        raise ConfigError(f"{located(f'{whose} returns {type(mixer).__name__}', place)}, not a Mixer")
    inner = {"": mixer} if mixer.critic is None else {"": mixer, "critic.mixer.": mixer.critic.mixer}
    for name, some in inner.items():
        for with_joint in (True, False):
            _check_apply(some, sizes, with_joint, f"{whose}: {name}", place)


def _check_apply(mixer: Mixer, sizes: MixerSizes, with_joint: bool, whose: str, place: str) -> None:
    """``apply`` gives float [...], or [..., N] where it is per agent, whatever the batch."""

    def run(key: Any, batch: tuple[int, ...]) -> Any:
        q, state = jnp.zeros((*batch, sizes.n_agents)), jnp.zeros((*batch, sizes.state_size))
        joint = (sizes.joint(*batch),) if with_joint else ()
        return mixer.apply(mixer.init(key), q, state, *joint)

    for batch in (BATCH, BATCH[:1]):
        try:
            found = jax.eval_shape(lambda key, batch=batch: run(key, batch), jax.random.key(0))
        except Exception as error:
            raise ConfigError(f"{whose}init or apply raised {raised(error, place)}") from None
        wanted = (*batch, sizes.n_agents) if mixer.per_agent else batch
        if not _is_floats(found, wanted):
            text = f"{whose}apply gives {_spelled(found)} for values {[*batch, sizes.n_agents]}"
            raise ConfigError(located(f"{text}; it must give floats {list(wanted)}", place))


def _is_floats(x: Any, shape: tuple[int, ...]) -> bool:
    return getattr(x, "shape", None) == shape and jnp.issubdtype(x.dtype, jnp.floating)


def _spelled(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


def check_auxiliary(mixer: Mixer, params: Any, sizes: MixerSizes, settings: Any) -> None:
    """The auxiliary loss gives floats [T1, B], and so do its metrics; ``params``: a team's, or their shapes.

    Raises ``ConfigError``, one line. Where there is no auxiliary loss nothing is checked.
    """
    if mixer.auxiliary is None:
        return
    whose, place = f"algo.mixer: {called(mixer.auxiliary)}", where(mixer.auxiliary)

    def run(params: Any, key: Any) -> Any:
        return mixer.auxiliary(params, zero_batch(sizes, *BATCH, mixer.per_agent), settings, key)  # type: ignore[misc]

    try:
        found = jax.eval_shape(run, params, jax.random.key(0))
    except Exception as error:
        raise ConfigError(f"{whose} raised {raised(error, place)}") from None
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise ConfigError(located(f"{whose} must give (loss per slot, {{name: metric per slot}})", place))
    for name, x in {"its loss": found[0], **{f"its metric {k!r}": v for k, v in found[1].items()}}.items():
        if not _is_floats(x, BATCH):
            text = f"{whose}: {name} is {_spelled(x)}; it must be floats {list(BATCH)}, [T1, B]"
            raise ConfigError(located(text, place))

"""What can be set of the mixers that come with jqmix. Imports no JAX."""

from dataclasses import dataclass
from typing import Any, Literal

from jqmix.settings import setting

WIDTH = 2**14  # the highest that is sensible; what widths come to together is for the memory plan
Positivity = Literal["abs", "softplus", "square", "none"]


def _hidden_width(of_what: str) -> Any:
    return setting(64, f"hidden width {of_what}", low=1, high=WIDTH)


@dataclass(frozen=True)
class QMixSettings:
    embed: int = setting(32, "embedding width E", low=1, high=WIDTH)
    hypernet_hidden: int = _hidden_width("of the hypernetworks")
    positivity: Positivity = setting(
        "abs", "the map that keeps weights positive (none breaks IGM: a control, not a method)"
    )


@dataclass(frozen=True)
class WeightedQMixSettings(QMixSettings):
    critic_hidden: int = setting(256, "hidden width of the unconstrained mixer of Q̂*", low=1, high=WIDTH)
    alpha: float = setting(0.5, "weight α of what is not to be represented well", above=0, high=1, traced=True)


@dataclass(frozen=True)
class QattenSettings:
    embed: int = setting(32, "width E of queries and keys", low=1, high=WIDTH)
    heads: int = setting(4, "attention heads", low=1, high=1024)
    hypernet_hidden: int = _hidden_width("of the mixer's networks")


@dataclass(frozen=True)
class QPlexSettings:
    heads: int = setting(4, "attention kernels", low=1, high=1024)
    hypernet_hidden: int = _hidden_width("of the mixer's networks")


@dataclass(frozen=True)
class QTranSettings:
    """The weights are PyMARL's."""

    hypernet_hidden: int = _hidden_width("of the mixer's networks")
    opt: float = setting(1.0, "weight of the loss that makes Σ Q_i + V equal Q_jt at û", low=0, traced=True)
    nopt: float = setting(0.1, "weight of the loss that keeps Σ Q_i + V from being below Q_jt", low=0, traced=True)

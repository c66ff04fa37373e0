"""What an agent makes of the entities in its observation: one embedding for all of a kind, and the values of actions
that are aimed at an entity from the agent's memory and that entity's embedding.

As in HPN-QMIX (2203.05285), what is learned of one entity holds for all of its kind. There a hypernetwork makes an
entity's weights; here they are one layer, and a target's value is a product of its embedding with a query, the bilinear
form of that. Every place in the list has a bias of its own, by which a team agrees whom of equals to shoot, as an
agent's id tells equal agents apart.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.kernels.products import product
from jqmix.networks.layers import dense_init, linear
from jqmix.types import Entities


class Heard(NamedTuple):
    """An observation, read."""

    own: Float[Array, "*batch O"]  # what an agent sees of itself
    sum: Float[Array, "*batch H"]  # what the encoder adds to that
    targets: Float[Array, "*batch K D"]  # whom actions are aimed at


class Embedding(nn.Module):
    """ReLU(W x + b) of the entities of a group: W shared, b one for each place."""

    count: int
    features: int
    width: int
    orthogonal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*batch _"]) -> Float[Array, "*batch count width"]:
        init = dense_init(self.features, self.orthogonal)
        kernel = self.param("kernel", init.kernel, (self.features, self.width))
        bias = self.param("bias", init.bias, (self.count, self.width))
        return nn.relu(product(x.reshape(*x.shape[:-1], self.count, self.features), kernel) + bias)


class EntityLayers(nn.Module):
    """``embed``: width D of an embedding. ``head_gain``: as of the Q head, where it is ``orthogonal``."""

    entities: Entities
    embed: int
    hidden: int
    orthogonal: bool
    head_gain: float

    def setup(self) -> None:
        groups = self.entities.groups
        self.embeddings = [Embedding(n, features, self.embed, self.orthogonal) for n, features in groups]
        self.sums = [linear(self.embed, self.hidden, init=dense_init(self.embed, self.orthogonal)) for _ in groups]
        self.query = linear(self.hidden, self.embed, init=dense_init(self.hidden, self.orthogonal, self.head_gain))

    def read(self, obs: Float[Array, "*batch O"]) -> Heard:
        """Sums of embeddings are divided by the root of how many they are: so they begin alike in all sizes."""
        parts = jnp.split(obs, self.entities.ends, axis=-1)
        embedded = [embedding(x) for embedding, x in zip(self.embeddings, parts[:-1], strict=True)]
        sums = [layer(jnp.sum(x, axis=-2) / x.shape[-2] ** 0.5) for layer, x in zip(self.sums, embedded, strict=True)]
        return Heard(parts[-1], sum(sums[1:], sums[0]), embedded[self.entities.targets])

    def aim(self, hidden: Float[Array, "*batch H"], targets: Float[Array, "*batch K D"]) -> Float[Array, "*batch K"]:
        """The values of the actions that are aimed at each target."""
        # As a product: XLA's CPU compiler puts a sum into one loop with what makes the embeddings, which takes thrice.
        return jnp.einsum("...d,...kd->...k", self.query(hidden), targets, precision="highest") / self.embed**0.5

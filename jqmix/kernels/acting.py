"""What an agent does with an observation as one kernel, up to its action: for GPUs, by Pallas and Triton.

Encoder, GRU, head and choice are some ten operations on few numbers, one after another in every slot: launches,
whatever they compute. Here each program of one kernel takes ``ROWS`` rows (rollouts × agents) through all of them. The
plain form is ``networks/agent.py``, with entities ``networks/entities.py``, and ``learning/exploration.py``; the GRU's
formulas are those of :mod:`jqmix.kernels.gru_step`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from jqmix.kernels.columns import power_of_two
from jqmix.kernels.gru_step import Gates, GRUParams, gated
from jqmix.kernels.platform import platform
from jqmix.types import Entities

ROWS = 16  # the least that a tensor core multiplies
CHUNK = 64  # inputs of the first layer at a time: what fits beside everything else
# Of the head, the least width. Where a product is no wider than its rows, Triton lets every warp compute all of it, and
# of all products that it follows from, too.
HEAD = 2 * ROWS
GREEDY = -1.0  # in place of a chance: the best action
_EPSILON = 1e-6  # of Flax's layer normalisation


class Norm(NamedTuple):
    """Of a layer normalisation."""

    scale: Any
    bias: Any


class Layer(NamedTuple):
    """A dense layer, and what normalises it, if anything."""

    kernel: Any
    bias: Any
    norm: Norm | None


class EntityGroup(NamedTuple):
    """Of the entities of a group: the weights of an embedding [F, D], a bias for each [K, D], and what their sum passes
    through."""

    kernel: Any
    bias: Any
    sum: Layer


class EntityParams(NamedTuple):
    """Of agents that read entities."""

    groups: list[EntityGroup]
    query: Layer


class ActingParams(NamedTuple):
    """Of an agent, as the kernel reads it."""

    encoder: list[Layer]
    core: GRUParams
    norm: Norm | None
    head: Layer
    entities: EntityParams | None


class Sight(NamedTuple):
    """What agents act on, a row for each."""

    x: Float[Array, "R I"]  # the encoder's inputs, entities first
    avail: Float[Array, "R A"]  # above zero: the action is there
    chance: Float[Array, "R 1"]  # in [0, 1): which of the available actions to take; or GREEDY
    keep: Float[Array, "R 1"]  # what the hidden state is multiplied by: 0 where an episode starts


def act(
    params: ActingParams, sight: Sight, h: Float[Array, "R H"], entities: Entities | None = None
) -> tuple[Int[Array, " R"], Float[Array, "R H"]]:
    """The actions, and the next hidden states. H, and where there are entities D, is a power of two from 16 on.

    Off a GPU the kernel is interpreted: for tests alone.
    """
    rows = jnp.concatenate(sight, axis=1)  # one array, as each would be a launch
    weights, tree = jax.tree.flatten(params)
    (count, hidden), inputs, actions = h.shape, sight.x.shape[1], sight.avail.shape[1]

    def kernel(rows: Any, h: Any, *refs: Any) -> None:
        program = _Program(rows, count, inputs, actions, entities)
        *_, action, after = refs
        chosen, state = program.run(jax.tree.unflatten(tree, refs[:-2]), h)
        triton.store(action, chosen, mask=program.is_there)
        triton.store(after, state, mask=program.is_there[:, None])

    def share(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((ROWS, width), lambda i: (i, 0))

    def whole(w: Any) -> pl.BlockSpec:
        return pl.BlockSpec(tuple(map(_room, w.shape)), lambda i: (0,) * w.ndim)

    def wide(w: Array) -> jax.ShapeDtypeStruct:
        """With room for all actions: those that are aimed at somebody have no weights in the head."""
        return jax.ShapeDtypeStruct((*w.shape[:-1], max(actions, HEAD)), w.dtype)

    specs = jax.tree.map(whole, params._replace(head=jax.tree.map(wide, params.head)))
    on_gpu = platform() == "gpu"
    return tuple(
        pl.pallas_call(
            kernel,
            out_shape=[jax.ShapeDtypeStruct((count,), jnp.int32), jax.ShapeDtypeStruct(h.shape, jnp.float32)],
            grid=(pl.cdiv(count, ROWS),),
            in_specs=[share(_room(rows.shape[1] + max(_room(actions), HEAD))), share(hidden), *jax.tree.leaves(specs)],
            out_specs=[pl.BlockSpec((ROWS,), lambda i: (i,)), share(hidden)],
            input_output_aliases={1: 1},  # a program reads its rows of h before it writes them
            interpret=not on_gpu,
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=1) if on_gpu else None,
        )(rows, h, *weights)
    )


def _room(size: int) -> int:
    """Of a block's axis, which is read in powers of two, or in chunks: the least that is not below ``size``."""
    return max(16, power_of_two(size)) if size <= CHUNK else pl.cdiv(size, CHUNK) * CHUNK


class _Program:
    """What is computed of ``ROWS`` rows. Rows beyond the last, and columns beyond a matrix, read as zeros."""

    def __init__(self, rows: Any, count: int, inputs: int, actions: int, entities: Entities | None):
        self.rows, self.inputs, self.actions, self.entities = rows, inputs, actions, entities
        self.is_there = pl.program_id(0) * ROWS + jnp.arange(ROWS) < count

    def run(self, params: ActingParams, h: Any) -> tuple[Array, Array]:
        first, *others = params.encoder
        entities = _Entities(self, self.entities, params.entities) if self.entities and params.entities else None
        x = self.encoded(first.kernel)
        x = _activated(x if entities is None else x + entities.heard(), first)
        for layer in others:
            x = _activated(x @ layer.kernel[...], layer)
        chance, keep = (self.columns(self.inputs + self.actions + i, 1, 1) for i in range(2))
        before = triton.load(h, mask=self.is_there[:, None], other=0.0) * keep
        core = jax.tree.map(lambda ref: ref[...], params.core)
        of_x, of_h = (Gates(*(a @ w for w in side)) for a, side in ((x, core.w_i), (before, core.w_h)))
        after = gated(before, of_x, of_h, core.b_i, core.b_h)[0]
        q = self.values(params, _normalised(after, params.norm), entities)
        width = q.shape[1]
        is_action = jnp.arange(width) < self.actions
        avail = self.columns(self.inputs, width, self.actions)
        best = jnp.argmax(jnp.where(avail > 0, q, -jnp.inf), axis=1)
        count = jnp.sum(avail, axis=1, keepdims=True)
        wanted = jnp.minimum(jnp.floor(chance * count), count - 1.0)
        explored = jnp.sum((jnp.cumsum(avail, axis=1) <= wanted) & is_action[None], axis=1)
        return jnp.where(jnp.sum(chance, axis=1) >= 0, explored, best).astype(jnp.int32), after

    def values(self, params: ActingParams, hidden: Array, entities: "_Entities | None") -> Array:
        """Of all actions, in the head's width."""
        column, aimed = jnp.arange(params.head.bias.shape[0]), entities.aimed if entities else 0
        in_head = column < self.actions - aimed
        w = triton.load(params.head.kernel, mask=in_head[None], other=0.0)
        q = hidden @ w + triton.load(params.head.bias, mask=in_head, other=0.0)
        return q if entities is None else entities.aim(hidden, q, column - (self.actions - aimed))

    def columns(self, start: Any, width: int, end: Any) -> Array:
        """So many columns of the rows, those from ``end`` on as zeros."""
        is_column = jnp.arange(width) < end
        return triton.load(
            self.rows.at[:, pl.ds(start, width)], mask=self.is_there[:, None] & is_column[None], other=0.0
        )

    def encoded(self, kernel: Any) -> Array:
        """The product of the first layer, whose inputs are many: all but entities."""
        begin = self.entities.ends[-1] if self.entities else 0
        inputs = self.inputs - begin

        def add(i: Array, total: Array) -> Array:
            start = i * CHUNK
            x = self.columns(begin + start, CHUNK, inputs - start)
            is_input = jnp.arange(CHUNK) < inputs - start
            return total + x @ triton.load(kernel.at[pl.ds(start, CHUNK), :], mask=is_input[:, None], other=0.0)

        none = jnp.zeros((ROWS, kernel.shape[1]))
        return jax.lax.fori_loop(0, pl.cdiv(inputs, CHUNK), add, none)


class _Entities(NamedTuple):
    """What a program makes of the entities, which come first in its rows."""

    program: _Program
    entities: Entities
    params: EntityParams

    @property
    def aimed(self) -> int:
        return self.entities.aimed

    def heard(self) -> Any:
        """What sums of embeddings add to the first layer."""
        total = 0.0
        for g, ((count, _), group) in enumerate(zip(self.entities.groups, self.params.groups, strict=True)):
            none = jnp.zeros((ROWS, group.kernel.shape[1]))
            each = jax.lax.fori_loop(0, count, lambda i, sum, g=g: sum + self.embedded(g, i), none)
            total += each / count**0.5 @ group.sum.kernel[...] + group.sum.bias[...]
        return total

    def aim(self, hidden: Array, q: Array, target: Array) -> Array:
        """``q`` with the values of the actions that are aimed at somebody; ``target``: whom that of a column is.

        Embeddings are computed anew: a program can't keep an array of them and choose one.
        """
        query = self.params.query
        asked = (hidden @ query.kernel[...] + query.bias[...]) / query.bias.shape[0] ** 0.5

        def add(i: Array, q: Array) -> Array:
            value = jnp.sum(asked * self.embedded(self.entities.targets, i), axis=1, keepdims=True)
            return jnp.where(target[None] == i, value, q)

        return jax.lax.fori_loop(0, self.aimed, add, q)

    def embedded(self, g: int, i: Array) -> Array:
        """The i-th entity of a group."""
        (count, features), group = self.entities.groups[g], self.params.groups[g]
        x = self.program.columns(self.entities.ends[g] - (count - i) * features, group.kernel.shape[0], features)
        is_number = jnp.arange(group.kernel.shape[0]) < features
        w = triton.load(group.kernel, mask=is_number[:, None], other=0.0)
        return jnp.maximum(x @ w + group.bias[i], 0.0)


def _activated(x: Array, layer: Layer) -> Array:
    return jnp.maximum(_normalised(x + layer.bias[...], layer.norm), 0.0)


def _normalised(x: Array, norm: Norm | None) -> Array:
    """As Flax does it."""
    if norm is None:
        return x
    mean = jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.maximum(jnp.mean(x * x, axis=1, keepdims=True) - mean * mean, 0.0)
    return (x - mean) * (jax.lax.rsqrt(variance + _EPSILON) * norm.scale[...]) + norm.bias[...]

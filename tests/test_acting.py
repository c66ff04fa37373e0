"""Acting as one kernel, interpreted, against acting operation by operation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import Counting

from jqmix.envs.base import Batched, TimeLimit
from jqmix.kernels import self_test
from jqmix.kernels.platform import compiling_for, plain_forms
from jqmix.learning import acting, rollout
from jqmix.networks.agent import Agent
from jqmix.networks.cores.settings import GRUSettings
from jqmix.types import Entities

AGENT = Agent(n_agents=3, n_actions=5, obs_size=7, hidden=32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_norm": True, "layers": 3},
        {"agent_id": False, "last_action": False, "n_agents": 1, "obs_size": 1, "n_actions": 2},
        {"obs_size": 131, "n_actions": 17, "hidden": 16},
        {"obs_norm": True},
        {"entities": Entities(((2, 3), (3, 4)), targets=1), "obs_size": 20, "obs_norm": True, "entity_embed": 16},
        {"entities": Entities(((2, 17), (3, 1)), targets=0), "obs_size": 40, "layer_norm": True, "layers": 2},
    ],
    ids=str,
)
def test_a_kernel_acts_as_its_operations_do(options):
    """Of several members, and more rows than programs have; the proof that a GPU is asked for says so, too."""
    agent = AGENT._replace(**options)
    members = acting._slot(agent)
    kernel, plain = acting._both_forms(agent)(*members)
    for a, b in zip(kernel, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert self_test.mismatch(acting._both_forms(agent), lambda: members) is None


def test_no_product_is_as_narrow_as_its_rows():
    """Triton would let every warp compute all of it, and of those before it."""
    one = jax.tree.map(lambda x: x[0], acting._slot(AGENT))
    program = jax.make_jaxpr(lambda *slot: acting.act_in_one_kernel(AGENT, *slot, jnp.float32(0.1)))(*one)
    products = re.findall(r"f32\[(\d+),(\d+)\] = dot_general", str(program))
    assert len(products) == 8  # encoder, six of the GRU, head
    assert all(int(width) > int(rows) for rows, width in products)


def test_the_proof_tells_wrong_actions_and_states():
    """A kernel that does not explore, and one that forgets nothing."""
    params, h, obs, last, first, avail, u = acting._slot(AGENT)
    both = acting._both_forms(AGENT)
    (_, greedy), _ = both(params, h, obs, last, first, avail, jnp.ones_like(u))
    (state, _), _ = both(params, h, obs, last, jnp.zeros_like(first), avail, u)
    (_, values), (right, exploring) = both(params, h, obs, last, first, avail, u)
    np.testing.assert_array_equal(values, exploring)
    tolerance = self_test.TOLERANCE
    for wrong, true in ((greedy, exploring), (state, right)):
        assert np.max(np.abs(wrong - true)) > tolerance * np.max(np.abs(true))


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ({}, True),
        ({"hidden": 8}, False),
        ({"hidden": 48}, False),
        ({"hidden": 256}, False),
        ({"entities": Entities(((2, 3),), targets=0)}, True),
        ({"entities": Entities(((2, 3),), targets=0), "entity_embed": 48}, False),
        ({"core": "lstm"}, False),
        ({"share_parameters": False}, False),
        ({"core_settings": GRUSettings(one_kernel="false")}, False),
    ],
    ids=str,
)
def test_which_agents_act_in_a_kernel(options, asks):
    agent = AGENT._replace(**options)
    assert not acting.acts_in_one_kernel(agent)  # on a CPU none does
    with compiling_for("gpu"):
        assert acting.acts_in_one_kernel(agent) == asks
        with plain_forms("acting"):
            assert not acting.acts_in_one_kernel(agent)


def test_a_gpu_that_gets_it_wrong_acts_without(monkeypatch):
    monkeypatch.setattr(acting, "trouble_with", lambda kernel, proof: "off by 0.5")
    with compiling_for("gpu"):
        assert acting.asks_to_act_in_one_kernel(AGENT) and not acting.acts_in_one_kernel(AGENT)


def test_windows_are_the_same(monkeypatch, key):
    """Collected with the kernel, interpreted, and without."""
    env = TimeLimit(Batched(Counting(3), 5), 7, "bootstrap")
    agent = Agent(env.spec.n_agents, env.spec.n_actions, env.spec.obs_size, hidden=16)
    params = agent.init(key)

    def collected():
        return jax.jit(lambda key: rollout.collect(agent, params, env, key, jnp.float32(0.4), 12)[0])(key)

    plain = collected()
    monkeypatch.setattr(acting, "acts_in_one_kernel", lambda agent: True)
    jax.tree.map(np.testing.assert_array_equal, collected(), plain)
    assert len(np.unique(plain.action)) > 1

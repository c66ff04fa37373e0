import jax
import numpy as np
import pytest

from jqmix.networks.agent import Agent
from jqmix.runs.checkpoint import _gates_apart


@pytest.mark.parametrize("share", [True, False])
def test_gates_of_earlier_checkpoints_are_taken_apart(key, share):
    """One array a side, [P, (N,) 3, …], as they were kept; and what is kept now stays as it is."""
    agent = Agent(3, 4, 5, hidden=6, share_parameters=share)
    params = {"agent": jax.vmap(agent.init)(jax.random.split(key, 2)), "mixer": {}}
    earlier = {
        name: np.stack([x[gate] for gate in "rzn"], axis=-3 if name.startswith("gru_w") else -2)
        if name.startswith("gru_")
        else x
        for name, x in params["agent"].items()
    }
    assert earlier["gru_w_i"].shape == (2, *(() if share else (3,)), 3, 6, 6)
    for kept in (params, {"agent": earlier, "mixer": {}}):
        read = _gates_apart(jax.tree.map(np.asarray, kept))
        assert jax.tree.structure(read) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, read, params)

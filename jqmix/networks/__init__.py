"""Networks: what an agent and a mixer are. Flax Linen stays in here; the rest sees pure functions."""

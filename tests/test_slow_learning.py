"""The learning results that the README reports, on real environments. Minutes to an hour each: `pytest -m slow`."""

import pytest

from jqmix.config import load_config
from jqmix.runs.experiment import train

pytestmark = pytest.mark.slow


def final(source, tmp_path, metric, **overrides):
    """The last greedy result of every seed."""
    cfg = load_config(source, run_dir=str(tmp_path / "run"), **overrides)
    result = train(cfg, quiet=True)
    return [line[f"eval/{metric}"] for line in result.metrics[-cfg.seeds :]]


def test_the_default_run_shows_learning(tmp_path):
    """Random play wins almost nothing; the default's 300k steps win most games."""
    assert min(final("smax_3m", tmp_path, "win_rate", seeds=2)) > 0.7


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("smax", {"env.name": "smax_3m", "seeds": 2}),  # as `benchmarks/smax_suite.py run --maps 3m` has it
        ("smax_3m_dense", {"seeds": 4, "total_steps": 3_000_000, "eval.every": 100_000}),
    ],
)
def test_smax_3m(tmp_path, preset, fields):
    wins = final(preset, tmp_path, "win_rate", **fields, **{"eval.episodes": 512})
    assert sum(wins) / len(wins) >= 0.95
    assert min(wins) > 0.93


def test_mpe_simple_spread(tmp_path):
    """Random play earns −83 (`benchmarks/learning.py random`), JaxMARL's QMIX −52 at 800k steps."""
    assert min(final("mpe_simple_spread", tmp_path, "return_mean", seeds=4)) > -52

"""The learning results that the README reports, on real environments. Minutes each: `pytest -m slow -k learning`."""

import pytest

from jqmix.config import load_config
from jqmix.runs.experiment import train

pytestmark = pytest.mark.slow


def final(source, tmp_path, metric, **overrides):
    """The last greedy result of every seed."""
    cfg = load_config(source, run_dir=str(tmp_path / "run"), **overrides)
    result = train(cfg, quiet=True)
    return [line[f"eval/{metric}"] for line in result.metrics[-cfg.seeds :]]


def test_default_run_shows_learning(tmp_path):
    wins = final(None, tmp_path, "win_rate", seeds=2)
    assert min(wins) > 0.5

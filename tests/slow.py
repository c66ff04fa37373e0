"""Cases that take long, of a kind that quicker ones cover: only ``pytest -m slow`` runs them."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(values: Iterable[Any]) -> list[Any]:
    """These values of a parameter, each a slow case."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]

"""Learning: pure functions, compiled together. Nothing here knows the host side of a run."""

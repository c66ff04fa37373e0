"""Environments: what the world is. Nothing here knows about learning."""

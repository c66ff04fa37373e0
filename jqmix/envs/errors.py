"""What is wrong with an environment."""


class EnvError(ValueError):
    """An environment that cannot be had: one line that names the field and what is allowed."""

"""Weights & Biases: a run for each seed, grouped by run directory; files in RUN_DIR/wandb until they are uploaded.

Its own variables apply: WANDB_MODE=offline uploads nothing (``wandb sync RUN_DIR/wandb/offline-run-*`` does later),
WANDB_PROJECT (jqmix unless set), WANDB_ENTITY, WANDB_DIR.
"""

import importlib
import os
import secrets
from typing import Any

from jqmix.inputs import ConfigError, one_line
from jqmix.trackers.base import TrackedLine, TrackedRun, measured

LONGEST = 128  # characters of a name


class WandB:
    """Everything over environment steps; configuration and metadata as the run's config."""

    def __init__(self) -> None:
        """Raises ``ConfigError`` where nobody is logged in: to ask for a key, a run would have to wait."""
        if os.environ.get("WANDB_MODE", "online") != "online":
            return
        wandb = importlib.import_module("wandb")
        try:
            is_ready = wandb.login(prompt=False)
        except wandb.Error as error:  # as for a key that is none
            raise ConfigError(f"log: wandb: {one_line(str(error))}") from None
        if not is_ready:
            raise ConfigError("log: wandb is not logged in; `wandb login` does that, WANDB_MODE=offline does without")

    def begin(self, run: TrackedRun) -> None:
        wandb = importlib.import_module("wandb")
        run.notes.setdefault("project", os.environ.get("WANDB_PROJECT") or "jqmix")
        self._runs: list[Any] = []
        for member, seed in enumerate(run.seeds):
            made = wandb.init(
                id=run.notes.setdefault(f"id of seed {seed}", secrets.token_hex(4)),
                resume="allow",
                reinit="create_new",  # several at once
                project=run.notes["project"],
                group=run.group[-LONGEST:],
                name=run.name(member)[-LONGEST:],
                dir=os.environ.get("WANDB_DIR") or str(run.path),
                config={**run.config, "seed": seed, "metadata": run.metadata},
                settings=wandb.Settings(silent=True, console="off"),
            )
            made.define_metric("env_steps")
            made.define_metric("*", step_metric="env_steps")
            self._runs.append(made)

    def log(self, lines: list[TrackedLine]) -> None:
        for line in lines:
            run = self._runs[line["member"]]
            run.log({"env_steps": line["env_steps"], **measured(line)})
            if "fault" in line:
                run.summary["fault"] = line["fault"]

    def end(self) -> None:
        for run in self._runs:
            run.finish()

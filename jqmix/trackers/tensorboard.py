"""TensorBoard: a folder for each seed, RUN_DIR/tensorboard/seed_S. ``tensorboard --logdir RUN_DIR`` shows them."""

import importlib
import json
from typing import Any

from jqmix.inputs import dump_yaml
from jqmix.trackers.base import TrackedLine, TrackedRun, measured


class TensorBoard:
    """Scalars over environment steps; configuration and metadata as texts. Written by tensorboardX."""

    def begin(self, run: TrackedRun) -> None:
        tensorboard = importlib.import_module("tensorboardX")
        folder = run.path / "tensorboard"
        self._writers: list[Any] = [tensorboard.SummaryWriter(str(folder / f"seed_{seed}")) for seed in run.seeds]
        if run.notes:
            return
        run.notes["folder"] = folder.name
        texts = {"config": dump_yaml(run.config), "metadata": json.dumps(run.metadata, indent=2)}
        for writer in self._writers:
            for name, text in texts.items():
                writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), 0)  # as code
            writer.flush()

    def log(self, lines: list[TrackedLine]) -> None:
        for line in lines:
            writer, steps = self._writers[line["member"]], line["env_steps"]
            for name, value in measured(line).items():
                writer.add_scalar(name, value, steps)
            if "fault" in line:
                writer.add_text("fault", line["fault"], steps)
            writer.flush()

    def end(self) -> None:
        for writer in self._writers:
            writer.close()

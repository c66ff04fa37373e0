"""MLflow: a run for each seed, tagged with its run directory; in the store that MLFLOW_TRACKING_URI names.

Otherwise in MLflow's own default, mlflow.db in the current folder (``mlflow ui`` shows it). MLFLOW_EXPERIMENT_NAME is
the experiment, jqmix unless set.
"""

import importlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jqmix.trackers.base import TrackedLine, TrackedRun, measured

LONGEST = 6000  # characters of a parameter
AT_ONCE = 100  # parameters of a request


class MLflow:
    """Metrics over environment steps; the configuration as parameters; metadata as tags."""

    def begin(self, run: TrackedRun) -> None:
        mlflow = importlib.import_module("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        store = run.notes.setdefault("store", mlflow.get_tracking_uri())
        self._client: Any = mlflow.MlflowClient(tracking_uri=store)
        self._ids: list[str] = []
        for member, seed in enumerate(run.seeds):
            noted = run.notes.get(f"id of seed {seed}")
            self._ids.append(self._create(run, member) if noted is None else noted)
            run.notes[f"id of seed {seed}"] = self._ids[-1]
            self._client.update_run(self._ids[-1], status="RUNNING")

    def _create(self, run: TrackedRun, member: int) -> str:
        entities = importlib.import_module("mlflow.entities")
        tags = {"group": run.group, "run_dir": str(run.path.resolve()), "seed": str(run.seeds[member])}
        made = self._client.create_run(self._experiment(), run_name=run.name(member), tags=tags).info.run_id
        params = [entities.Param(name, str(value)[:LONGEST]) for name, value in _flat(run.config)]
        for first in range(0, len(params), AT_ONCE):
            self._client.log_batch(made, params=params[first : first + AT_ONCE])
        about = [entities.RunTag(f"metadata.{name}", str(value)[:LONGEST]) for name, value in _flat(run.metadata)]
        self._client.log_batch(made, tags=about)
        return made

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "jqmix"
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def log(self, lines: list[TrackedLine]) -> None:
        entities = importlib.import_module("mlflow.entities")
        for line in lines:
            made, now = self._ids[line["member"]], int(1000 * time.time())
            metrics = [entities.Metric(name, value, now, line["env_steps"]) for name, value in measured(line).items()]
            self._client.log_batch(made, metrics=metrics)
            if "fault" in line:
                self._client.set_tag(made, "fault", line["fault"])

    def end(self) -> None:
        for made in self._ids:
            self._client.set_terminated(made)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

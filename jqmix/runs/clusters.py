"""Which of several processes this one is: as flags say, or SLURM, Open MPI, Kubernetes, or a Cloud TPU pod.

What these say is read by JAX's own code for ``jax.distributed``, with one difference: a process joins others only where
there are any. JAX would wait for those that a job could have, also in the shell of ``salloc`` or a batch script.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

from jqmix.config import Config
from jqmix.inputs import ConfigError, one_line, quoted
from jqmix.runs.hosts import Place

ALONE = "JQMIX_HOSTS"  # the variable that switches all of this off where it is 1


def place_by_flags(hosts: int | None, host: int | None, coordinator: str | None) -> Place | None:
    """What ``--hosts``, ``--host`` and ``--coordinator`` say; None where they say nothing. Raises ``ConfigError``."""
    if hosts is None:
        for flag, value in (("host", host), ("coordinator", coordinator)):
            if value is not None:
                raise ConfigError(f"{flag}: has no effect without --hosts, which says how many processes there are")
        return None
    if host is None and hosts > 1:
        raise ConfigError(f"host: must be given with --hosts {hosts}: which of them this is, 0 to {hosts - 1}")
    if host is not None and host >= hosts:
        raise ConfigError(f"host: {host} is not allowed; of {hosts} hosts it takes 0 to {hosts - 1}")
    if coordinator is None and hosts > 1:
        raise ConfigError(f"coordinator: must be given with --hosts {hosts}: where host 0 listens, ADDRESS:PORT")
    address = None if coordinator is None else _address(coordinator)
    return Place() if hosts == 1 or address is None else Place(hosts, host or 0, address)


def check_share(cfg: Config, place: Place) -> None:
    """Raises ``ConfigError`` where there is not a seed for each process."""
    if cfg.seeds < place.count:
        raise ConfigError(f"hosts: {place.count} are more than the {cfg.seeds} seeds; each host trains its own")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(letter.isspace() for letter in text) or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"coordinator: {quoted(text)} is not allowed; it takes ADDRESS:PORT, as 10.0.0.1:8476")
    if not 1 <= int(port[:6]) <= 65535:
        raise ConfigError(f"coordinator: {quoted(text)} is not allowed; ports are 1 to 65535")
    return host, int(port)


def detect_place() -> Place:
    """What the cluster says that started this process. Imports JAX where there may be several.

    Raises ``ConfigError`` where there are several but not all can be found out.
    """
    chosen = os.environ.get(ALONE)
    if chosen not in (None, "", "1"):
        raise ConfigError(f"{ALONE}: {quoted(chosen)} is not allowed; it takes 1, which joins no other process")
    if chosen == "1":
        return Place()
    for name, there in KINDS.items():
        if there():
            place = _place_by(name)
            if place.count > 1:
                return place
    return Place()


def _several(*names: str) -> Callable[[], bool]:
    """Whether the first variable says that there are several, and all others are there."""

    def there() -> bool:
        count = os.environ.get(names[0], "")
        return all(name in os.environ for name in names) and count.isdigit() and int(count) > 1

    return there


def _in_indexed_job() -> bool:
    there = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    return there and importlib.util.find_spec("kubernetes") is not None


def _on_tpu() -> bool:
    if "cpu" in os.environ.get("JAX_PLATFORMS", "") or importlib.util.find_spec("libtpu") is None:
        return False
    return bool(importlib.import_module("jax._src.cloud_tpu_init").running_in_cloud_tpu_vm)


# By the classes of JAX that read them; in its order. Of SLURM, only the variables of a step count: a job's are there in
# the shell of salloc, too, whose other tasks do not run.
KINDS: dict[str, Callable[[], bool]] = {
    "OmpiCluster": _several("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"),
    "SlurmCluster": _several(
        "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_ID"
    ),
    "GkeTpuCluster": _on_tpu,
    "GceTpuCluster": _on_tpu,
    "K8sCluster": _in_indexed_job,
}


def _place_by(name: str) -> Place:
    """Alone where the cluster is not of this kind, or tells of one process."""
    cluster: Any = getattr(importlib.import_module("jax._src.clusters"), name)
    count = 0
    try:
        if not cluster.is_env_present():
            return Place()
        count, index = cluster.get_process_count(), cluster.get_process_id()
        if count == 1:
            return Place()
        address = os.environ.get("JAX_COORDINATOR_ADDRESS") or cluster.get_coordinator_address(
            timeout_secs=300, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
        )
    except Exception as error:  # whatever a cluster's library raises
        if count == 0 and KINDS[name] is _on_tpu:  # nobody there to ask: no pod
            return Place()
        raise ConfigError(
            f"{name.removesuffix('Cluster')}: {one_line(str(error))}; --hosts, --host and --coordinator say what could "
            f"not be found out, {ALONE}=1 trains alone"
        ) from None
    if not 0 <= index < count:
        raise ConfigError(f"host: {index} of {count} processes; {ALONE}=1 trains alone")
    return Place(count, index, _address(address))

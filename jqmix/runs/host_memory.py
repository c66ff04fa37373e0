"""Memory that this process can still take: of the machine, of every control group it is in, of its own limits.

All sizes are bytes. Whatever a system does not tell counts as no limit. ``root`` is where ``/proc`` and ``/sys`` are.
"""

import os
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None

ROOT = Path("/")


def free_bytes(root: Path = ROOT) -> int:
    """The least that any of them leaves; never negative."""
    left = [machine_left(root), *groups_left(root), *limits_left(root)]
    return max(0, min(left))


def machine_left(root: Path = ROOT) -> int:
    """What programs can take without swapping; where the system does not say, all of the machine's."""
    return _fields(root / "proc/meminfo").get("MemAvailable", _physical())


def groups_left(root: Path = ROOT) -> Iterator[int]:
    """Of this process's control group and every one above it, under version 2 and version 1. A limit that a process
    in a container sees as its root's may be any of them."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                for limit in ("memory.max", "memory.high"):
                    yield from _left(root / mount, path, limit, "memory.current")
        elif "memory" in controllers.split(","):
            yield from _left(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _left(mount: Path, path: str, limit: str, usage: str) -> Iterator[int]:
    """What each group from the mount's root down to ``path`` leaves. Pages of files that were read can be had back."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        folder = mount.joinpath(*parts[:depth])
        most, used = _number(folder / limit), _number(folder / usage)
        if most is None or used is None:
            continue
        stat = _fields(folder / "memory.stat")
        cached = sum(stat.get(f"total_{kind}", stat.get(kind, 0)) for kind in ("inactive_file", "active_file"))
        yield most - max(0, used - cached)


def limits_left(root: Path = ROOT) -> Iterator[int]:
    """Of the limits that ``ulimit`` sets: address space (-v) and data (-d)."""
    if resource is None:
        return
    taken = _fields(root / "proc/self/status")
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - taken.get(field, 0)


def _physical() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**63 - 1


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _fields(path: Path) -> dict[str, int]:
    """Lines such as ``MemAvailable:  24 kB`` and ``inactive_file 4096``, in bytes."""
    fields = {}
    for line in _lines(path):
        name, *rest = line.replace(":", " ").split() or [""]
        if rest and rest[0].isdigit():
            fields[name] = int(rest[0]) * (1024 if rest[1:] == ["kB"] else 1)
    return fields


def _number(path: Path) -> int | None:
    """None where there is no such file, or it says ``max``."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None

"""Checkpoints: the whole training state, saved with Orbax, with a checksum of every file.

    checkpoints/1200/               members that train together: all of a run's, or those of checkpoints/members_0-3/
        learned/                    everything but the replay, as one array of bytes; the manifest says what is where
        replay/NAME/                an array of the replay, or its priorities
        manifest.json               what it holds, and the files' checksums; a first line with its own
    checkpoints/1230_final/         what the run ended with: ``learned`` of its last evaluation, nothing to go on from

Each array is an Orbax checkpoint of its own. (Where the disk fills up while Orbax writes several, it leaves all but one
error to threads that nobody waits for.)

A checkpoint is written under another name and moved into place when it is complete and on the disk: what has its name
is whole, or was damaged since, which the checksums tell.
"""

import contextlib
import errno
import hashlib
import importlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jqmix.buffers.windows import LANES
from jqmix.config import RENAMED, Config, ConfigError
from jqmix.files import checksum, open_regular, sync
from jqmix.learning.count import Count
from jqmix.learning.state import Member, Shared

MOST_BYTES = 64_000_000  # of a manifest
BUFFER = "buffer"  # the field of a member that is large, and that only resuming needs
FORMAT = 2  # of the saved state: what another one has cannot be gone on with
MANIFEST = "manifest.json"


class DamagedError(Exception):
    """A checkpoint is not what was saved: which, and which file of it."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself. ``lines``: how many lines of metrics each member had; ``final``: it is what a
    run of ``total_steps`` ended with; ``settings``: those of the run, by dotted path; ``format``: see ``FORMAT``."""

    iteration: int
    env_steps: list[int]
    lines: list[int]
    elapsed_s: float
    total_steps: int
    with_replay: bool
    final: bool
    settings: dict[str, Any]
    format: int = 1
    index: dict[str, list[Any]] = field(default_factory=dict)  # of ``learned``: names, each with dtype and shape
    files: dict[str, str] = field(default_factory=dict)


class Saved(NamedTuple):
    """Where a checkpoint is, by its name alone: of the run's members ``first`` to ``last`` (not included)."""

    path: Path
    first: int
    last: int
    iteration: int
    final: bool

    @property
    def order(self) -> tuple[int, bool]:
        return self.iteration, self.final


def snapshot(members: Member, shared: Shared) -> tuple[Member, Shared]:
    """Copies on the host, which stay what they are when the devices' are given away."""
    return jax.tree.map(np.array, jax.device_get(jax.tree.map(_without_key_type, (members, shared))))


def _without_key_type(x: Any) -> Any:
    """A random key of its own type, as an environment's state may hold one, as the numbers that it is made of."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def with_key_type(x: Any, like: Any) -> Any:
    """And back, where ``like`` has it."""
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return x
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like))


def select_members(members: Member, some: slice) -> Member:
    return jax.tree.map(lambda x: x[some], members)


# Saving


def folder_of(run_dir: Path, seeds: int, first: int, last: int) -> Path:
    """Where checkpoints of these members of a run lie."""
    folder = run_dir / "checkpoints"
    return folder if (first, last) == (0, seeds) else folder / f"members_{first}-{last - 1}"


def save(folder: Path, members: Member, shared: Shared, about: Manifest) -> Path:
    """Writes a checkpoint of states on the host. Raises ``OSError``; what it had written is gone then."""
    name = f"{about.iteration}_final" if about.final else str(about.iteration)
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    _make_folder(folder)
    temporary.mkdir()
    try:
        state = _leaves(members)
        replay = {name: x for name, x in state.items() if name.split(".")[0] == BUFFER}
        learned = {f"member.{name}": x for name, x in state.items() if name not in replay}
        learned |= {f"shared.{name}": x for name, x in _leaves(shared).items()}
        _check_room(folder, sum(x.nbytes for x in state.values()))
        pieces = [np.frombuffer(x.tobytes(), np.uint8) for x in learned.values()]
        _write_array(temporary / "learned", np.concatenate(pieces))
        for array_name, x in replay.items() if about.with_replay else ():
            _write_array(temporary / "replay" / array_name, x)
        index = {name: [x.dtype.name, list(x.shape)] for name, x in learned.items()}
        _write_manifest(temporary, replace(about, index=index, format=FORMAT))
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        _move_into_place(temporary, folder / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder / name


def _make_folder(folder: Path) -> None:
    """``checkpoints``, or one in it; never the run's own directory, which may be gone."""
    for path in (folder,) if folder.name == "checkpoints" else (folder.parent, folder):
        if not path.is_dir():
            path.mkdir()
            sync(path.parent)


def _check_room(folder: Path, size: int) -> None:
    """Raises ``OSError`` where the disk is too full for a state of ``size`` bytes in memory, before it is full.

    A state takes about what the one before took, which is less than it has in memory.
    """
    needed = size + 64 * 4096
    for before in sorted((s for s in _list(folder, 0, 0) if not s.final), key=lambda s: s.order)[-1:]:
        needed = min(needed, 1.5 * sum(p.stat().st_size for p in _files(before.path)) + 64 * 4096)
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def prune(folder: Path, keep: int, at: int) -> None:
    """Deletes all but the newest ``keep`` checkpoints up to the one of iteration ``at``, which was just saved: earlier
    ends of the run, what was interrupted while it was written, and what is newer, which the run went back from."""
    found = sorted(_list(folder, 0, 0), key=lambda saved: saved.order, reverse=True)
    keeping = [s for s in found if not s.final and s.iteration <= at][:keep]
    keeping += [s for s in found if s.final and s.iteration == at]
    for path in [*(s.path for s in found if s not in keeping), *folder.glob(".*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def _move_into_place(temporary: Path, path: Path) -> None:
    if path.exists():  # damaged, or of a run that was resumed from before it
        aside = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    os.rename(temporary, path)
    sync(path.parent)


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their dotted names, without empty ones, which Orbax does not save."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    named = {_name(path): np.asarray(x) for path, x in found}
    return {name: x for name, x in named.items() if x.size}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _write_array(path: Path, array: np.ndarray) -> None:
    """With Orbax, whose errors of the disk are ``OSError`` here, whatever they are there."""
    path.parent.mkdir(exist_ok=True)
    with _plain(path.parent) as parent, _quiet():
        try:
            with _checkpointer() as checkpointer:
                checkpointer.save(parent / path.name, {"array": array})
        except OSError:
            raise
        except Exception as error:
            raise OSError(None, _disk_error(error)) from error


def _checkpointer() -> ocp.Checkpointer:
    """Of this process alone. Where JAX knows of several, as on a TPU pod, Orbax would wait for all of them, and write
    NumPy arrays in the first one only: here each is told that it is the first."""
    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    multihost: Any = importlib.import_module("orbax.checkpoint._src.multihost.multihost")
    multihost.process_index = lambda: 0
    alone = ocp.options.MultiprocessingOptions(active_processes={0})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _disk_error(error: Exception) -> str:
    text = str(error)
    return "No space left on device" if "No space left" in text else text.split(" [")[0][-200:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs what it raises from threads of its own."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """A way to ``folder`` without characters that Orbax takes for patterns: a link to it, if there are any."""
    path = folder.resolve()
    if not set("[]*?\\{}") & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "run"
        link.symlink_to(path, target_is_directory=True)
        yield link


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _write_manifest(folder: Path, about: Manifest) -> None:
    files = {p.relative_to(folder).as_posix(): checksum(p) for p in _files(folder)}
    text = json.dumps(asdict(about) | {"files": files}, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(f"{digest}\n{text}", encoding="utf-8")


# Reading


def find(run_dir: Path, seeds: int) -> list[Saved]:
    """All checkpoints of a run, newest first, by their names."""
    root = run_dir / "checkpoints"
    found = _list(root, 0, seeds)
    for folder in root.iterdir() if root.is_dir() else ():
        ends = folder.name.removeprefix("members_").split("-")
        if folder.name.startswith("members_") and len(ends) == 2 and all(_is_number(x) for x in ends):
            found += _list(folder, int(ends[0]), min(int(ends[1]) + 1, seeds))
    return sorted(found, key=lambda saved: saved.order, reverse=True)


def _list(folder: Path, first: int, last: int) -> list[Saved]:
    if not folder.is_dir():
        return []
    names = [(path, path.name.removesuffix("_final")) for path in folder.iterdir() if path.is_dir()]
    return [
        Saved(path, first, last, int(name), path.name.endswith("_final")) for path, name in names if _is_number(name)
    ]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def check_files(path: Path, parts: Sequence[str] = ("learned", "replay")) -> Manifest:
    """What a checkpoint says of itself, after its manifest and the files of these parts were found to be what was
    saved. Raises ``DamagedError``."""
    about = _read_manifest(path)
    for part in parts:
        names = [name for name in about.files if name.split("/")[0] == part]
        if not names and (part == "learned" or about.with_replay):
            raise DamagedError(f"{path} is damaged: it has no {part}")
        for name in names:
            try:
                sound = checksum(path / name) == about.files[name]
            except OSError as error:
                raise DamagedError(f"{path} is damaged: {name}: {error.strerror}") from None
            if not sound:
                raise DamagedError(f"{path} is damaged: {name} is not what was saved")
    return about


def _read_manifest(path: Path) -> Manifest:
    try:
        with open_regular(path / MANIFEST) as file:
            digest, _, text = file.read(MOST_BYTES).partition(b"\n")
    except OSError as error:
        raise DamagedError(f"{path} is damaged: {MANIFEST}: {error.strerror}") from None
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise DamagedError(f"{path} is damaged: {MANIFEST} is not what was saved")
    try:
        about = Manifest(**json.loads(text))
        if _is_sound(about):
            return about
    except (TypeError, ValueError, RecursionError, AttributeError):
        pass
    raise DamagedError(f"{path} was saved by another version, or is damaged")


def _is_sound(about: Manifest) -> bool:
    """Whether everything is of the type that it has to be, and every file one of the checkpoint's own."""
    whole = [about.iteration, about.total_steps, about.format, *about.env_steps, *about.lines]
    members = len(about.env_steps) == len(about.lines) > 0
    names = all(not {"", ".", ".."} & set(name.split("/")) and isinstance(x, str) for name, x in about.files.items())
    index = all(isinstance(d, str) and all(type(n) is int and n > 0 for n in s) for d, s in about.index.values())
    switches = isinstance(about.final, bool) and isinstance(about.with_replay, bool)
    rest = isinstance(about.settings, dict) and isinstance(about.elapsed_s, float) and switches
    return all(type(n) is int and n >= 0 for n in whole) and members and names and index and rest


def load_state(path: Path, with_replay: bool) -> dict[str, Any]:
    """``{"member": …, "shared": …}``: fields as dictionaries of NumPy arrays, read wherever they were saved."""
    about = _read_manifest(path)
    data, at, tree = _read_tree(path / "learned")["array"], 0, {}
    for name, (dtype, shape) in about.index.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        _put(tree, _todays_name(name), data[at : at + size].view(dtype).reshape(shape))
        at += size
    arrays = {name.split("/")[1] for name in about.files if name.startswith("replay/")} if with_replay else set()
    for name in sorted(arrays):
        _put(tree["member"], name, _read_tree(path / "replay" / name)["array"])
    return tree


def _todays_name(name: str) -> str:
    """Hyperparameters are named as the configuration's fields, and those may have had other names."""
    _, prefix, path = name.partition("member.hyper.")
    return prefix + RENAMED.get(path, path) if prefix else name


def _put(tree: dict[str, Any], name: str, array: np.ndarray) -> None:
    *groups, last = name.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
    tree[last] = array


def _read_tree(path: Path) -> Any:
    with _plain(path.parent) as parent, _quiet(), _checkpointer() as checkpointer:
        place = parent / path.name
        saved = checkpointer.metadata(place).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        return checkpointer.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def fill(like: Any, tree: Any) -> Any:
    """``tree`` in the form of ``like``, whose leaves tell shapes and types.

    Raises ``ConfigError`` where they differ: the configuration is not the one that it was saved with.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    named = {_name(path): x for path, x in paths}
    saved = _replay_as_here(_flat(tree), {name: x.shape for name, x in named.items()})
    return jax.tree.unflatten(structure, [_fitting(name, x, saved) for name, x in named.items()])


def _replay_as_here(saved: dict[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What is saved, the replay's windows in the form that this platform holds them in (``buffers/windows.as_ring``):
    in order of time, [P, T, C, …], or each as a row, [P, C, T · …], which may go on to the end of a tile."""
    ring = next((name.removesuffix("action") for name in wanted if name.endswith("buffer.windows.action")), None)
    if ring is None or f"{ring}action" not in saved:
        return saved
    from_rows, to_rows = saved[f"{ring}action"].ndim == 3, len(wanted[f"{ring}action"]) == 3
    if not (from_rows or to_rows):
        return saved

    def converted(name: str, x: np.ndarray) -> np.ndarray:
        if not name.startswith(ring) or name not in wanted:
            return x
        axis = 1 if name.startswith(f"{ring}start") else 2  # that counts windows in order of time
        shape = wanted[name]
        row = shape[2:] if to_rows else shape[1:axis] + shape[axis + 1 :]
        moved = x if from_rows else np.moveaxis(x, axis, 1)
        rows = _to_width(moved.reshape(*moved.shape[:2], math.prod(moved.shape[2:])), math.prod(row))
        if rows.shape[2] != math.prod(row):
            return x  # which is told of by its name
        return rows if to_rows else np.moveaxis(rows.reshape(*rows.shape[:2], *row), 1, axis)

    return {name: converted(name, x) for name, x in saved.items()}


def _to_width(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows that end with a tile as those that do not, or the other way round; any others as they are."""
    shorter, longer = sorted((rows.shape[2], width))
    if longer != math.ceil(shorter / LANES) * LANES:
        return rows
    return np.pad(rows, ((0, 0), (0, 0), (0, longer - rows.shape[2])))[..., :width]


def _fitting(name: str, like: Any, saved: Mapping[str, np.ndarray]) -> np.ndarray:
    like = jax.eval_shape(_without_key_type, jax.ShapeDtypeStruct(like.shape, like.dtype))
    if np.prod(like.shape) == 0:
        return np.zeros(like.shape, like.dtype)
    x = saved.get(name)
    if x is None or np.shape(x) != like.shape or x.dtype != like.dtype:
        found = "nothing" if x is None else f"{x.dtype}{list(np.shape(x))}"
        wanted = f"{like.dtype}{list(like.shape)}"
        raise ConfigError(f"config.yaml does not fit the checkpoint: {name} is {found} there, and {wanted} here")
    return x


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted names."""
    if not isinstance(tree, Mapping):
        return {name: tree}
    prefix = f"{name}." if name else ""
    return {k: x for key, inner in tree.items() for k, x in _flat(inner, f"{prefix}{key}").items()}


def newest(
    run_dir: Path,
    seeds: int,
    members: range,
    say: Callable[[str], None],
    to_resume: bool = False,
    at: int | None = None,
) -> tuple[Saved, Manifest] | None:
    """The newest sound checkpoint that holds these members of a run (of iteration ``at``); damaged ones are told of.

    ``to_resume``: one to go on from, which a run's end is not. None where there is none; raises ``ConfigError`` where
    all are damaged.
    """
    found = [s for s in find(run_dir, seeds) if s.first <= members.start and members.stop <= s.last]
    found = [s for s in found if not (to_resume and s.final) and at in (None, s.iteration)]
    for saved in found:
        try:
            return saved, check_files(saved.path, ("learned", "replay") if to_resume else ("learned",))
        except DamagedError as error:
            say(str(error))
    if found:
        raise ConfigError(f"run_dir: every checkpoint in {run_dir} is damaged; {found[0].path} is the newest")
    return None


class Learned(NamedTuple):
    """What members of a run learned: fields of ``Member`` without the replay, as dictionaries whose leaves lead with
    the axis of ``members``; some may not have been trained yet."""

    members: list[int]
    tree: dict[str, Any]

    @property
    def params(self) -> Any:
        """All that was learned, of agents and mixer, which may have nothing to learn."""
        return {"mixer": {}} | self.tree["learner"]["params"]

    def row(self, member: int) -> int:
        """Where a member is on the leaves' axis. Raises ``ConfigError`` if it was not trained yet."""
        if member not in self.members:
            raise ConfigError(f"member: {member} was not trained yet; {', '.join(map(str, self.members))} were")
        return self.members.index(member)

    def agents(self, best: bool = False) -> Any:
        """The agents' parameters: the newest, or those that played best in an evaluation."""
        if not best:
            return self.params["agent"]
        if "best" not in self.tree:
            raise ConfigError("best: this run is of an earlier version, which kept none")
        return self.tree["best"]["params"]

    def env_steps(self, row: int, best: bool = False) -> int | None:
        """After how many environment steps that was, of one row; None where an earlier version does not say."""
        count = (self.tree.get("best", {}) if best else self.tree).get("env_steps")
        return int(Count(count["high"][row], count["low"][row])) if isinstance(count, dict) else None


def load_learned(run_dir: Path, cfg: Config, say: Callable[[str], None]) -> Learned:
    """What the newest sound checkpoints hold. Raises ``ConfigError`` where there is none."""
    pieces: list[tuple[list[int], Any]] = []
    member = 0
    while member < cfg.seeds:
        chosen = _of_earlier_version(run_dir) or newest(run_dir, cfg.seeds, range(member, member + 1), say)
        if chosen is None:
            member += 1
            continue
        if isinstance(chosen, Path):
            tree, first, last = _core_apart(_gates_apart(_read_tree(chosen)["member"])), 0, cfg.seeds
        else:
            saved, about = chosen
            tree, first, last = load_state(saved.path, with_replay=False)["member"], saved.first, saved.last
            tree = tree if about.format == FORMAT else _core_apart(tree)
        _check_count(tree, last - first, cfg)
        pieces.append((list(range(member, last)), jax.tree.map(lambda x, i=member - first: x[i:], tree)))
        member = last
    if not pieces:
        raise ConfigError(f"run_dir: no checkpoint in {run_dir}")
    trees = [tree for _, tree in pieces]
    members = [m for some, _ in pieces for m in some]
    return Learned(members, jax.tree.map(lambda *x: np.concatenate(x), *trees))


def _check_count(tree: Any, count: int, cfg: Config) -> None:
    found = len(tree["seed"])
    if found != count:
        raise ConfigError(f"seeds: config.yaml says {cfg.seeds}, the checkpoint holds {found} members")


def _of_earlier_version(run_dir: Path) -> Path | None:
    """The newest checkpoint of a version that had no checksums; it holds no replay and can't be resumed."""
    found = [s for s in find(run_dir, 1) if (s.path / "_CHECKPOINT_METADATA").is_file()]
    return found[0].path if found else None


def _gates_apart(params: Any, name: str = "") -> Any:
    """Earlier checkpoints hold a GRU's three gates in one array, ahead of the axes that a gate's own has."""
    if isinstance(params, dict):
        return {name: _gates_apart(inner, name) for name, inner in params.items()}
    if not name.startswith("gru_"):
        return params
    gates = np.moveaxis(params, -3 if name.startswith("gru_w") else -2, 0)
    return dict(zip("rzn", gates, strict=True))


def _core_apart(tree: Any) -> Any:
    """Earlier checkpoints hold a GRU's parameters (``gru_w_i``, …) beside those of the other layers."""
    if not isinstance(tree, dict):
        return tree
    core = {name.removeprefix("gru_"): x for name, x in tree.items() if name.startswith("gru_")}
    rest = {name: _core_apart(x) for name, x in tree.items() if not name.startswith("gru_")}
    return rest | ({"core": core} if core else {})

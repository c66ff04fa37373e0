"""Whether anything loses a run: kills, signals, damaged checkpoints, long runs, and what checkpoints cost.

python benchmarks/reliability.py kills [--kills 50]      # kill -9 at random moments; the end must be the same
python benchmarks/reliability.py signals                 # every signal in every phase
python benchmarks/reliability.py damage                  # every file of a checkpoint cut, zeroed, flipped, deleted
python benchmarks/reliability.py memory [--calls 10000]  # the process's memory over a long run
python benchmarks/reliability.py cost [--preset smax_3m] # checkpoints at the default interval, and none, taking turns

Each prints what it found, writes it as JSON with --json, and exits with 1 where anything was lost. Runs are of small
games in processes of their own; nothing is simulated.
"""

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from measure import write

from jqmix.config import load_config

SMALL = {
    "env.name": "two_step_game",
    "seeds": 2,
    "agent.hidden": 16,
    "mixer.embed": 8,
    "mixer.hypernet_hidden": 16,
    "replay.capacity": 64,
    "replay.batch": 16,
    "eval.every": 64,
    "eval.episodes": 4,
    "checkpoint.every": 64,
    "checkpoint.share": 1.0,
}
PHASES = ("import", "environment", "trace", "compile", "train", "save", "end")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Runs the command line, and says on stderr when it comes to a phase.
ANNOUNCING = """
import os, sys
from jqmix.interrupts import take_over_process
take_over_process()

def say(phase):
    os.write(2, f"PHASE {phase}\\n".encode())

say("import")
import jax
from jax._src import stages
from jqmix.runs import checkpoint, experiment, population
from jqmix.runs.training import Training

def announced(owner, name, phase):
    function = getattr(owner, name)
    def run(*args, **kwargs):
        say(phase)
        return function(*args, **kwargs)
    setattr(owner, name, run)

announced(experiment, "MemberPrograms", "environment")
announced(population, "_lowered", "trace")
announced(stages.Lowered, "compile", "compile")
announced(Training, "_train", "train")
announced(checkpoint, "save", "save")
announced(Training, "_play_best", "end")
from jqmix.cli import main
sys.exit(main())
"""


def flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value).lower())]


def jqmix(*args: str, announcing: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, *(["-c", ANNOUNCING] if announcing else ["-m", "jqmix"]), *args]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], limit: float = 900) -> tuple[int, str]:
    """Its exit code, and what it says on stderr from now on."""
    _, err = process.communicate(timeout=limit)
    return process.returncode, err


def run_to_end(*args: str) -> None:
    code, err = finish(jqmix(*args))
    if code != 0:
        raise SystemExit(f"jqmix {' '.join(args)}: exit code {code}\n{err}")


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    """The log without the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def state_of(run_dir: Path) -> Any:
    """All arrays of the newest whole checkpoint."""
    import jax

    from jqmix.runs import checkpoint

    saved = next(s for s in checkpoint.find(run_dir, load_config(run_dir).seeds) if not s.final)
    checkpoint.check_files(saved.path)
    return jax.tree.map(lambda x: x, checkpoint.load_state(saved.path, with_replay=True))


def same(a: Path, b: Path) -> bool:
    """Whether two runs have the same log and the same last state, bit for bit."""
    import jax

    states = [jax.tree_util.tree_leaves_with_path(state_of(path)) for path in (a, b)]
    equal = len(states[0]) == len(states[1]) and all(
        p == q and np.asarray(x).tobytes() == np.asarray(y).tobytes() for (p, x), (q, y) in zip(*states, strict=True)
    )
    return equal and lines_of(a) == lines_of(b)


def go_on(run_dir: Path, settings: dict[str, Any], announcing: bool = False) -> subprocess.Popen[str]:
    """Resumes a run, or begins it where it was stopped before it had a configuration."""
    if (run_dir / "config.yaml").is_file():
        return jqmix("resume", str(run_dir), announcing=announcing)
    return jqmix("train", *flags(settings), "--run-dir", str(run_dir), announcing=announcing)


def kills(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kills one run so often, at random moments from its start on, and lets it end."""
    settings = SMALL | {"total-steps": 40_000 * count}
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    run_to_end("train", *flags(settings), "--run-dir", str(undisturbed))
    begin = time.perf_counter()
    run_to_end("train", *flags(SMALL | {"total-steps": 64}), "--run-dir", str(folder / "short"))
    starting = time.perf_counter() - begin
    rng, phases = random.Random(seed), Counter[str]()
    for _ in range(count):
        process = go_on(killed, settings, announcing=True)
        time.sleep(rng.uniform(0.0, 1.2 * starting))
        process.send_signal(signal.SIGKILL)
        _, err = finish(process)
        phases[(re.findall(r"PHASE (\w+)", err) or ["start"])[-1]] += 1
        if "Traceback" in err:
            raise SystemExit(err)
    made = lines_of(killed)[-1]["env_steps"]  # by then: it must not have come to its end before the last kill
    run_to_end("resume", str(killed))
    return {
        "kills": count,
        "env_steps_when_last_killed": made,
        "env_steps": 40_000 * count,
        "by_phase": dict(phases),
        "end_equal": same(undisturbed, killed),
    }


def one_signal(
    folder: Path, signum: signal.Signals, phase: str, settings: dict[str, Any], whole: Path
) -> dict[str, Any]:
    """Sends a signal when the run comes to a phase; then the run goes on to its end."""
    run_dir = folder / f"{signum.name}_{phase}"
    process = jqmix("train", *flags(settings), "--run-dir", str(run_dir), announcing=True)
    assert process.stderr is not None
    heard = ""
    for line in process.stderr:
        heard += line
        if line == f"PHASE {phase}\n":
            break
    time.sleep(0.05)
    begin = time.perf_counter()
    process.send_signal(signum)
    code, err = finish(process)
    heard += err
    answered = time.perf_counter() - begin
    found = {"signal": signum.name, "phase": phase, "exit": code, "seconds": round(answered, 2)}
    found["kept"] = run_dir.exists()
    if run_dir.exists():
        run_to_end("resume", str(run_dir))
        found["end_equal"] = same(run_dir, whole)
    trained = phase in ("train", "save", "end")
    found["good"] = code == 128 + signum and "Traceback" not in heard and found.get("end_equal", not trained)
    return found


def signals(folder: Path) -> dict[str, Any]:
    settings = SMALL | {"total-steps": 100_000}
    whole = folder / "whole"
    run_to_end("train", *flags(settings), "--run-dir", str(whole))
    rows = [one_signal(folder, signum, phase, settings, whole) for signum in SIGNALS for phase in PHASES]
    for row in rows:
        print(row)
    return {"tried": len(rows), "good": sum(row["good"] for row in rows), "rows": rows}


DAMAGES = {
    "cut": lambda data, rng: data[: len(data) // 2],
    "emptied": lambda data, rng: b"",
    "zeroed": lambda data, rng: bytes(len(data)),
    "flipped": lambda data, rng: _flipped(data, rng.randrange(len(data)), 1 << rng.randrange(8)),
    "first byte": lambda data, rng: _flipped(data, 0, 0xFF),
    "last byte": lambda data, rng: _flipped(data, len(data) - 1, 0xFF),
    "lengthened": lambda data, rng: data + b"\0",
    "deleted": lambda data, rng: None,
}


def _flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def damage(folder: Path, seed: int) -> dict[str, Any]:
    """Every file of the newest checkpoint, in every way: it must be found, and the one before taken in its place."""
    from jqmix.runs import checkpoint

    run_dir = folder / "run"
    run_to_end("train", *flags(SMALL | {"total-steps": 20_000}), "--run-dir", str(run_dir))
    newest, before = [s for s in checkpoint.find(run_dir, 2) if not s.final][:2]
    rng, found, tried, harmless = random.Random(seed), Counter[str](), 0, 0
    for file in sorted(p for p in newest.path.rglob("*") if p.is_file()):
        data = file.read_bytes()
        for kind, change in DAMAGES.items():
            changed = change(data, rng) if data else None
            if changed == data:
                harmless += 1
                continue
            tried += 1
            file.unlink() if changed is None else file.write_bytes(changed)
            said: list[str] = []
            chosen = checkpoint.newest(run_dir, 2, range(2), said.append, to_resume=True)
            assert chosen is not None
            found[kind] += chosen[0].path == before.path and len(said) == 1 and "\n" not in said[0]
            file.write_bytes(data)
    return {"tried": tried, "found": sum(found.values()), "unchanged": harmless, "by_kind": dict(found)}


def memory(folder: Path, calls: int) -> dict[str, Any]:
    """The process's resident memory after a tenth of so many evaluations, and at the end."""
    run_dir = folder / "run"
    settings = SMALL | {"total-steps": 64 * calls, "checkpoint.every": 6400}
    process = jqmix("train", *flags(settings), "--run-dir", str(run_dir), "--quiet")
    sizes: list[tuple[int, int]] = []
    while process.poll() is None:
        time.sleep(0.5)
        done = sum(1 for _ in (run_dir / "metrics.jsonl").open()) // 2 if (run_dir / "metrics.jsonl").is_file() else 0
        status = Path(f"/proc/{process.pid}/status")
        resident = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
        if resident:
            sizes.append((done, int(resident[1]) * 1024))
    code, err = finish(process)
    early = [size for done, size in sizes if calls / 10 <= done < calls / 5]
    late = [size for done, size in sizes if done >= 0.9 * calls]
    growth = float(np.median(late) / np.median(early) - 1)
    return {"evaluations": calls, "exit": code, "early_mb": np.median(early) / 1e6, "late_mb": np.median(late) / 1e6,
            "growth": growth, "errors": err}  # fmt: skip


def cost(folder: Path, preset: str, turns: int, steps: int) -> dict[str, Any]:
    """Seconds of training with checkpoints as they are by default, and with none but at the end, taking turns."""
    times: dict[str, list[float]] = {"default": [], "none": []}
    for turn in range(turns):
        for name, every in (("default", []), ("none", ["--checkpoint.every", str(10**9)])):
            run_dir = folder / f"{name}_{turn}"
            run_to_end("train", preset, "--total-steps", str(steps), *every, "--run-dir", str(run_dir))
            lines = [line for line in map(json.loads, (run_dir / "metrics.jsonl").open()) if "eval/episodes" in line]
            times[name].append(lines[-1]["wall_s"])
    ratios = [a / b for a, b in zip(times["default"], times["none"], strict=True)]
    return {"preset": preset, "steps": steps, "seconds": times, "ratio": float(np.median(ratios)), "ratios": ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "signals", "damage", "memory", "cost"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--preset", default="smax_3m")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        if args.what == "kills":
            result = kills(folder, args.kills, args.seed)
            good = result["end_equal"] and result["env_steps_when_last_killed"] < result["env_steps"]
        elif args.what == "signals":
            result = signals(folder)
            good = result["good"] == result["tried"]
        elif args.what == "damage":
            result = damage(folder, args.seed)
            good = result["found"] == result["tried"]
        elif args.what == "memory":
            result = memory(folder, args.calls)
            good = result["growth"] < 0.01
        else:
            result = cost(folder, args.preset, args.turns, args.steps)
            good = result["ratio"] <= 1.02
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=1))
    write(args.json, {args.what: result})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

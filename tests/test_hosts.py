"""Processes that share a run: real ones on the loopback, stopped and killed; and how they find each other."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
import worlds

from jqmix.analysis.results import read_run
from jqmix.cli import main
from jqmix.config import ConfigError, load_config
from jqmix.interrupts import Interrupted, Stop
from jqmix.runs import checkpoint, clusters, hosts
from jqmix.runs.clusters import detect_place, place_by_flags
from jqmix.runs.experiment import train
from jqmix.runs.hosts import Hosts, Place, joined
from jqmix.runs.metrics_file import join_parts
from jqmix.runs.run_dir import RunDir, RunError

# Two processes have two of these members each, so that one process in two groups has the same program.
# Long enough that it still trains when a busy machine looks at it for the third time.
SMALL = worlds.SMALL_RUN | {"seeds": 4, "checkpoint.every": 640, "checkpoint.share": 1.0, "total_steps": 48_000}
FLAGS = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


class Pair:
    """A command in two processes."""

    def __init__(self, *argv):
        address, environment = free_address(), os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "jqmix", *argv, "--hosts", "2", "--host", str(i), "--coordinator", address],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]

    def wait_for(self, there, limit=240):
        until = time.monotonic() + limit
        while not there():
            assert time.monotonic() < until and all(p.poll() is None for p in self.processes), self.end()
            time.sleep(0.05)

    def end(self, limit=240):
        """What each process came to: exit code, stdout, stderr."""
        try:
            said = [process.communicate(timeout=limit) for process in self.processes]
        except subprocess.TimeoutExpired:
            for process in self.processes:
                process.kill()
            raise
        return [(process.returncode, *texts) for process, texts in zip(self.processes, said, strict=True)]


def lines_of(run_dir, member):
    """A member's log without the clock."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["member"] == member]
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def newest(run_dir, member):
    """Where the newest checkpoint to go on from with a member is, and the iteration that it is of."""
    found = [s for s in checkpoint.find(Path(run_dir), 4) if not s.final and s.first <= member < s.last]
    return found[0] if found else None


def assert_same(a, b):
    """Every member's log and state, bit for bit."""
    for member in range(4):
        assert lines_of(a, member) == lines_of(b, member)
        states = []
        for run_dir in (a, b):
            saved = newest(run_dir, member)
            tree = checkpoint.load_state(saved.path, with_replay=True)
            states.append((jax.tree.map(lambda x, i=member - saved.first: x[i], tree["member"]), tree["shared"]))
        leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
        assert len(leaves[0]) > 50
        for (path, x), (same, y) in zip(*leaves, strict=True):
            assert path == same and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one undisturbed process makes."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(load_config(None, **{**SMALL, "group": 2, "run_dir": str(path)}), quiet=True)
    return path


def test_two_processes_train_what_one_does(tmp_path, whole):
    path = tmp_path / "run"
    (code, shown, err), (other_code, other_shown, other_err) = Pair("train", *FLAGS, "--run-dir", str(path)).end()
    assert (code, other_code) == (0, 0) and "Traceback" not in err + other_err
    assert_same(path, whole)
    assert {f.name for f in path.iterdir()} == {"config.yaml", "metadata.json", "metrics.jsonl", "checkpoints"}
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["seeds"] == [0, 1, 2, 3] and metadata["device"]["count"] == 4 and metadata["hosts"] == 2
    members = [json.loads(line)["member"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert members[:8] == [0, 1, 2, 3, 0, 1, 2, 3]  # as a process that trains all of them at once logs them
    assert "host 0 of 2: seeds 0 to 1" in shown and " environment steps over 4 seeds in" in shown
    assert other_shown == f"host 1 of 2: seeds 2 to 3; host 0 shows the run in {path}\n"
    assert load_config(path).seeds == 4


@pytest.mark.slow
def test_a_signal_and_kills(tmp_path, whole):
    """SIGTERM to one process; then the other, the coordinator, is killed; then the first. One process ends the run."""
    path = tmp_path / "run"
    before = [-1, -1]

    def stand():
        """The iteration of each process's newest checkpoint."""
        found = [newest(path, member) for member in (0, 2)]
        return [saved.iteration if saved else -1 for saved in found]

    for signum, victim in ((signal.SIGTERM, 1), (signal.SIGKILL, 0), (signal.SIGKILL, 1)):
        pair = Pair("train", *FLAGS, "--run-dir", str(path)) if -1 in before else Pair("resume", str(path))
        pair.wait_for(lambda before=before: -1 not in stand() and stand() != before)
        pair.processes[victim].send_signal(signum)
        begin = time.monotonic()
        ended = pair.end()
        assert time.monotonic() - begin < 60
        assert not any("Traceback" in text for _, *texts in ended for text in texts)
        code, _, err = ended[1 - victim]
        if signum == signal.SIGTERM:
            assert [code for code, *_ in ended] == [143, 143]
            assert all(f"stopped by SIGTERM; saved; go on with: jqmix resume {path}" in err for *_, err in ended)
        else:
            assert code == 1 and err.startswith(f"jqmix: host {victim} is gone (") and err.count("\n") == 1
            assert err.endswith(f"; go on with: jqmix resume {path}\n")
        before = stand()
    assert {member.seed for member in read_run(path).members} == {0, 1, 2, 3}  # also what host 1 wrote
    assert main(["resume", str(path), "--quiet"]) == 0
    assert_same(path, whole)
    assert not list(path.glob("metrics.*.jsonl"))


@pytest.mark.slow
def test_more_processes_and_fewer(tmp_path):
    """Begun by one, resumed by two; begun by two, resumed by one, which trains all members at once."""
    one, two = tmp_path / "one", tmp_path / "two"
    short = {**SMALL, "total_steps": 6400}
    train(load_config(None, **{**short, "run_dir": str(one)}), quiet=True)
    flags = [text for name, value in short.items() for text in (f"--{name}", str(value))]
    assert [code for code, *_ in Pair("train", *flags, "--run-dir", str(two)).end()] == [0, 0]
    assert [code for code, *_ in Pair("resume", str(one), "--total-steps", "12800").end()] == [0, 0]
    assert main(["resume", str(two), "--total-steps", "12800", "--quiet"]) == 0
    assert newest(one, 3).first == 2 and newest(two, 3).first == 0
    for run_dir in (one, two):  # when a run ends is up to the slowest of those that train together
        found = read_run(run_dir)
        assert [member.evaluations[-1]["env_steps"] >= 12_800 for member in found.members] == [True] * 4
        assert all(member.absolute for member in found.members) and not found.notes


@pytest.mark.slow
def test_a_signal_before_training(tmp_path):
    """Nothing is left of a run that did not begin."""
    path = tmp_path / "run"
    pair = Pair("train", *FLAGS, "--run-dir", str(path))
    assert any(line.startswith("initialising") for line in pair.processes[0].stdout)
    pair.processes[1].send_signal(signal.SIGTERM)
    assert [code for code, *_ in pair.end()] == [143, 143]
    assert not path.exists()


@pytest.mark.slow
def test_commands_that_differ_are_refused(tmp_path):
    address = free_address()
    argv = [sys.executable, "-m", "jqmix", "train", *FLAGS, "--hosts", "2", "--coordinator", address]
    processes = [
        subprocess.Popen([*argv, "--host", str(i), "--seed", str(i)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 2]
    assert "host 1 ended: seed: 1 at host 1, but 0 at host 0" in errors[0] and list(tmp_path.iterdir()) == []


SAVING = """
import sys, jax, numpy as np
from pathlib import Path
from jqmix.runs import checkpoint
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), cluster_detection_method="deactivate")
assert jax.process_count() == 2
for k in range(1 + jax.process_index()):  # each when it likes
    path = Path(sys.argv[3]) / f"{jax.process_index()}_{k}"
    checkpoint._write_array(path, np.arange(k, 9))
    assert checkpoint._read_tree(path)["array"].tolist() == list(range(k, 9))
"""


@pytest.mark.slow
def test_each_process_saves_what_is_its_own(tmp_path):
    """Also where JAX knows of several, as on a TPU pod, where Orbax takes them for one."""
    argv = [sys.executable, "-c", SAVING, free_address()]
    processes = [subprocess.Popen([*argv, str(i), str(tmp_path)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


# The wire


def places(count=2):
    host, port = free_address().split(":")
    return [Place(count, i, (host, int(port))) for i in range(count)]


def together(*functions):
    """What each returned or raised, called at the same time."""
    found = [None] * len(functions)

    def call(i):
        try:
            found[i] = functions[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found


def at_each(act, count=2):
    """What ``act(hosts)`` comes to at each process, all of them threads of this one."""

    def run(place):
        with joined(place, Stop(), lambda text: None) as found:
            return act(found)

    return together(*[lambda place=place: run(place) for place in places(count)])


def test_values_are_exchanged():
    found = at_each(lambda hosts: [hosts.exchange(hosts.index), hosts.exchange([hosts.count])], count=3)
    assert found == [[[0, 1, 2], [[3], [3], [3]]]] * 3


def test_lines_come_to_the_first():
    def act(hosts):
        hosts.tell([{"seed": hosts.index}])
        hosts.exchange()
        return list(hosts.told())

    first, *others = at_each(act, count=3)
    assert sorted(lines[0]["seed"] for lines in first) == [1, 2] and others == [[], []]


def test_an_error_at_one_ends_all():
    def act(hosts):
        if hosts.index == 1:
            raise ConfigError("group: too\nlarge")
        hosts.exchange()

    first, second, third = at_each(act, count=3)
    assert isinstance(first, RunError) and str(first).startswith("host 1 ended: group: too") and "\n" not in str(first)
    assert isinstance(second, ConfigError) and str(third) == str(first)


def test_a_signal_at_one_is_one_at_all():
    def act(place):
        stop = Stop()
        stop.careful = True
        with joined(place, stop, lambda text: None) as hosts:
            if hosts.index == 1:
                stop.take(signal.SIGINT)
            while not stop:
                time.sleep(0.05)
            with pytest.raises(Interrupted):
                hosts.exchange()
            return stop.take(signal.SIGINT), stop.take(signal.SIGINT)

    first, second, third = together(*[lambda place=place: act(place) for place in places(3)])
    assert first == third == (False, True)  # what comes here, too, is no second signal
    assert second == (True, True)


def test_who_is_to_stop_passes_no_exchange():
    """Though all values are there: others may have stopped since they sent theirs."""

    def act(place):
        stop = Stop()
        stop.careful = True
        with joined(place, stop, lambda text: None) as hosts:
            if hosts.is_first:
                while not hosts._values[1]:
                    time.sleep(0.01)
                stop.take(signal.SIGTERM)
            with pytest.raises(Interrupted):
                hosts.exchange()

    assert together(*[lambda place=place: act(place) for place in places()]) == [None, None]


def test_a_silent_process_is_gone(monkeypatch):
    """As where a machine lost its power: its connection stays, and says nothing."""
    monkeypatch.setattr(hosts, "SILENCE_S", 0.5)
    first, second = places()

    def be_silent():
        with socket.create_server(first.address) as listening, listening.accept()[0] as connection:
            connection.sendall(b'{"kind": "welcome"}\n')
            time.sleep(1.5)

    def wait():
        with joined(second, Stop(), lambda text: None) as found:
            found.exchange()

    assert "host 0 is gone (nothing was heard of it" in str(together(be_silent, wait)[1])


def test_a_process_that_cannot_save_is_ended(monkeypatch):
    """As while XLA compiles for minutes."""
    monkeypatch.setattr(hosts, "LEAVE_S", 0.2)
    codes = []
    monkeypatch.setattr(Stop, "end_process", lambda stop, code: codes.append(code))

    def act(hosts):
        if hosts.index == 1:
            raise RunError("no room")
        time.sleep(1)

    at_each(act)
    assert codes == [1]


def test_who_does_not_come(monkeypatch):
    monkeypatch.setattr(hosts, "JOIN_S", 0.5)
    said = []
    for place in places():
        with pytest.raises(RunError, match=f"host {1 - place.index} .*did not come to 127.0.0.1:.* within"):
            Hosts(place, Stop(), said.append)


def test_what_is_no_host_is_refused():
    first, second = places()
    stop = Stop()
    coming = threading.Thread(target=lambda: Hosts(first, stop).close())
    coming.start()
    for wrong in (b"GET / HTTP/1.1\r\n", b'{"kind": 3}\n', b'{"kind": "join"}\n', b'{"kind": "join", "hosts": [1]}\n'):
        while True:
            try:
                with socket.create_connection(first.address) as connection:
                    connection.sendall(wrong)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    with pytest.raises(ConfigError, match="hosts: 3 here, but 2 at host 0"):
        Hosts(Place(3, 1, first.address), stop)
    Hosts(second, stop).close()
    coming.join(20)
    assert not coming.is_alive()


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(ConfigError, match=r"coordinator: cannot listen at 127.0.0.1:\d+: Address already in use"):
            Hosts(Place(2, 0, listening.getsockname()), Stop())
        taken = threading.Thread(target=lambda: listening.accept()[0].close())
        taken.start()
        with pytest.raises(ConfigError, match="is no host 0 of a run"):
            Hosts(Place(2, 1, listening.getsockname()), Stop())
        taken.join()


def test_another_directory_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    run = RunDir(tmp_path, made=False)
    with run.marked() as mark:
        RunDir.join(tmp_path, mark).close()
    with pytest.raises(ConfigError, match="is not that of host 0; hosts need it on a file system that they share"):
        RunDir.join(tmp_path, mark)
    run.close()
    assert list(tmp_path.iterdir()) == []


def test_logs_are_joined_once(tmp_path):
    """A kill while they were joined left lines in both places, or a torn one."""
    lines = [f'{{"env_steps": {steps}, "member": {member}}}\n' for steps in (8, 16) for member in (0, 1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines[0::3]) + lines[2])
    (tmp_path / "metrics.1.jsonl").write_text("".join(lines[1::3]))
    (tmp_path / "metrics.10.jsonl").write_text("".join(lines[2::3]) + lines[2][:9])
    join_parts(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# Which process this is


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--host", "0"], "host: has no effect without --hosts"),
        (["--coordinator", "a:1"], "coordinator: has no effect without --hosts"),
        (["--hosts", "0"], "--hosts: '0' is not allowed"),
        (["--hosts", "2"], "host: must be given with --hosts 2: which of them this is, 0 to 1"),
        (["--hosts", "2", "--host", "2", "--coordinator", "a:1"], "host: 2 is not allowed; of 2 hosts it takes 0 to 1"),
        (["--hosts", "1", "--host", "1"], "host: 1 is not allowed"),
        (["--hosts", "2", "--host", "1"], "coordinator: must be given with --hosts 2"),
        (
            ["--hosts", "2", "--host", "1", "--coordinator", "a"],
            "coordinator: 'a' is not allowed; it takes ADDRESS",
        ),
        (["--hosts", "2", "--host", "1", "--coordinator", "a:b"], "it takes ADDRESS:PORT"),
        (["--hosts", "2", "--host", "1", "--coordinator", "a:70000"], "ports are 1 to 65535"),
        (["--hosts", "5", "--host", "1", "--coordinator", "a:1"], "hosts: 5 are more than the 4 seeds"),
    ],
)
def test_flags_that_are_refused(flags, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", *FLAGS, *flags])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and says in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_flags():
    assert place_by_flags(None, None, None) is None
    assert place_by_flags(1, 0, "a:1") == Place()
    assert place_by_flags(3, 2, "[fe80::1]:80") == Place(3, 2, ("fe80::1", 80))
    shares = [Place(4, i).share(10) for i in range(4)]
    assert [member for share in shares for member in share] == list(range(10)) and set(map(len, shares)) == {2, 3}


def test_a_dry_run_says_what_one_host_would_train(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *FLAGS, "--dry-run", "--hosts", "2", "--host", "1", "--coordinator", "a:1"]) == 0
    assert "2 seeds × 8 rollouts" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


STEP = {"SLURM_JOB_ID": "4100", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
STEP |= {"SLURM_STEP_NODELIST": "node[007-008]", "SLURM_STEP_NUM_TASKS": "2"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
MPI |= {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
CLUSTERS = {
    "srun": (STEP, Place(2, 1, ("node007", 61444))),
    "srun_with_a_port": (STEP | {"JAX_COORDINATOR_PORT": "8476"}, Place(2, 1, ("node007", 8476))),
    "srun_each_alone": (STEP | {"JQMIX_HOSTS": "1"}, Place()),
    "lone_job": (STEP | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
    "shell_of_salloc": (STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
    "batch_script": ({name: STEP[name] for name in STEP if "STEP" not in name}, Place()),
    "mpirun": (MPI, Place(2, 1, ("10.96.0.1", 62624))),
    "mpirun_of_one": (MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, Place()),
    "pod_of_an_indexed_job": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, Place()),
    "machine": ({}, Place()),
}


@pytest.mark.parametrize(("environment", "place"), CLUSTERS.values(), ids=CLUSTERS)
def test_clusters(environment, place, monkeypatch):
    for name in [
        n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "JQMIX_"))
    ]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert detect_place() == place


def test_a_tpu_pod(monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(clusters, "_on_tpu", lambda: True)
    monkeypatch.setattr(clusters, "KINDS", {"GkeTpuCluster": clusters._on_tpu})
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    for name in ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,worker-1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    assert detect_place() == Place(2, 1, ("localhost", 8482))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert detect_place() == Place()


def test_what_cannot_be_found_out_is_said(monkeypatch):
    monkeypatch.setattr(clusters, "KINDS", {"SlurmCluster": lambda: True})
    for name, value in (STEP | {"SLURM_NTASKS": "many"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="^Slurm: .*; --hosts, --host and --coordinator say what .*JQMIX_HOSTS=1"):
        detect_place()
    monkeypatch.setenv("JQMIX_HOSTS", "3")
    with pytest.raises(ConfigError, match="JQMIX_HOSTS: '3' is not allowed; it takes 1"):
        detect_place()

"""Signals in a real process: in every phase the answer is prompt, and nothing is lost."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import reliability

from jqmix.interrupts import Interrupted, Stop, watched


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    reliability.run_to_end("train", *reliability.flags(SETTINGS), "--run-dir", str(path))
    return path


SETTINGS = reliability.SMALL | {"total-steps": 30_000}
FAST = [(signal.SIGHUP, "train")]
ALL = [(s, phase) for s in reliability.SIGNALS for phase in reliability.PHASES if (s, phase) not in FAST]


@pytest.mark.parametrize(("signum", "phase"), [*FAST, *(pytest.param(*p, marks=pytest.mark.slow) for p in ALL)])
def test_a_signal(tmp_path, whole, signum, phase):
    found = reliability.one_signal(tmp_path, signum, phase, SETTINGS, whole)
    assert found["good"], found
    assert found["seconds"] < 30


def test_a_second_signal_stops_at_once(tmp_path, whole):
    """The last good checkpoint stays, and the run goes on from it."""
    run_dir = tmp_path / "run"
    settings = SETTINGS | {"total-steps": 10**9}
    process = reliability.jqmix("train", *reliability.flags(settings), "--run-dir", str(run_dir), announcing=True)
    heard = 0
    for line in process.stderr:
        heard += line == "PHASE save\n"
        if heard == 3:
            break
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    code, err = reliability.finish(process)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "Traceback" not in err
    assert any((run_dir / "checkpoints").iterdir())


@pytest.mark.slow
def test_kills(tmp_path):
    assert reliability.kills(tmp_path, 5, seed=1)["end_equal"]


@pytest.mark.slow
def test_every_damage_of_every_file_is_found(tmp_path):
    found = reliability.damage(tmp_path, seed=1)
    assert found["found"] == found["tried"] > 100


def test_what_is_undone_is_undone_once():
    stop, undone = Stop(), []
    with stop.undoing(lambda: undone.append(1)):
        pass
    assert undone == []
    with pytest.raises(ValueError), stop.undoing(lambda: undone.append(2)):
        raise ValueError
    assert undone == [2]
    with stop.undoing(lambda: undone.append(3)):
        assert stop.take(signal.SIGINT)  # nothing waits: it ends the process
    assert undone == [2, 3]


def test_a_first_signal_waits_where_it_is_awaited_and_a_second_does_not(capfd):
    stop = Stop()
    with stop.waiting():
        assert not stop.take(signal.SIGTERM)
        assert stop and "a second signal stops at once" in capfd.readouterr().err
        with pytest.raises(Interrupted) as raised:
            stop.raise_if_asked()
        assert raised.value.code == 143
        assert stop.take(signal.SIGTERM)


def test_a_callers_handlers_come_back():
    before = [signal.getsignal(s) for s in reliability.SIGNALS]
    with watched() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):  # the second is the caller's own business
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(s) for s in reliability.SIGNALS] == before

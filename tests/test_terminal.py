"""What a run shows: on terminals of several widths, where letters are missing, in a notebook, and where it breaks."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
import time

import pytest

from jqmix.analysis.results import MemberResults
from jqmix.config import load_config
from jqmix.interrupts import say as say_past_everything
from jqmix.runs import terminal
from jqmix.runs.experiment import train
from jqmix.runs.terminal import Terminal, clock, mean_curve, packed, short_count
from jqmix.runs.text_plots import short_number, sparkline, text_bar, text_curve

pytestmark = pytest.mark.usefixtures("shared_programs")
WIDTHS = (60, 80, 120, 200)
SMALL = [
    *("--env.name", "two_step_game", "--agent.hidden", "16", "--replay.capacity", "64", "--replay.batch", "16"),
    *("--eval.every", "64", "--eval.episodes", "4", "--total-steps", "320", "--seeds", "2"),
]


class Screen:
    """What a real terminal of so many columns holds of what is written to its other end."""

    def __init__(self, columns, rows=60):
        pyte = pytest.importorskip("pyte")
        self.columns, self.raw = columns, b""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.file = open(slave, "w", encoding="utf-8")  # noqa: SIM115
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self.raw += data

    def close(self):
        self.file.close()
        self._reader.join()
        os.close(self._master)
        self._stream.feed(self.raw)

    @property
    def lines(self):
        return [line.rstrip() for line in self._screen.display if line.strip()]

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.fixture
def on_screen(monkeypatch):
    """A function of columns: stdout is a terminal of so many while its context lasts."""

    @contextlib.contextmanager
    def shown(columns, **environment):
        for name, value in {"COLUMNS": str(columns), "LINES": "60", "TERM": "xterm", **environment}.items():
            monkeypatch.setenv(name, value)
        screen = Screen(columns)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen.file)
            yield screen
        screen.close()

    return shown


def line(seed, steps, value):
    return {
        "env_steps": steps,
        "member": seed,
        "seed": seed,
        "eval/win_rate": value,
        "eval/return_mean": 2 * value,
        "train/loss": 0.25,
        "train/epsilon": 0.5,
    }


def train_on(display, evaluations=5, total=10_000_000):
    """As a run would: two seeds, of so many evaluations."""
    display.say("run directory: runs/x", to_copy=True)
    display.stage("tracing")
    display.ready()
    display.start("members 1–2 of 4", total, 0, " × 2 seeds", [])
    for k in range(1, evaluations + 1):
        steps = total * k // evaluations
        display.progress(steps, " × 2 seeds")
        display.evaluation({"x": [line(s, steps, (k + s) / (evaluations + 1)) for s in (0, 1)]}, " × 2 seeds")
    display.note("replaying the best")


def finish(display, evaluations=5):
    display.stop()
    lines = [[line(s, 1000 * k, (k + s) / (evaluations + 1)) for k in range(1, evaluations + 1)] for s in (0, 1)]
    fault = {"fault": "the loss is not finite", "fault_env_steps": 512}
    members = [MemberResults(None, s, {}, some) for s, some in enumerate(lines)]
    display.summary([*members, MemberResults(None, 2, {}, lines[0][:1], None, fault)])


# Words and letters


def test_numbers_and_times():
    assert [clock(x) for x in (-1.0, 7.4, 62.0, 3753.0)] == ["0:00", "0:07", "1:02", "1:02:33"]
    assert [short_count(x) for x in (640.0, 16_384.0, 9_437_184.0, 2e9)] == ["640", "16.4k", "9.44M", "2G"]
    assert [short_number(x) for x in (0.5, -12.34, 123.45, 123456.0)] == ["0.500", "-12.34", "123.5", "1.23e+05"]


def test_plots():
    assert sparkline([0.0, 0.5, 1.0, 2.0], 0.0, 1.0) == "▁▅██"
    assert sparkline([0.0, 0.5, 1.0, 2.0], 0.0, 1.0, ascii_only=True) == "_+##"
    assert text_bar(0.25, 8, ascii_only=True) == ("##", "------")
    assert [len(part) for part in text_bar(1.5, 8)] == [8, 0]
    drawn = text_curve([(10.0, 0.0), (30.0, 1.0)], (0.0, 1.0), 34, 4)
    assert [row[:7] for row in drawn[::2]] == ["1.000 ┤", "0.500 ┤", "0.000 ┼"]
    assert drawn[0][7:].count("█") < drawn[3][7:].count("█")
    assert drawn[-1].split() == ["10", "30", "environment", "steps"]
    assert max(map(len, drawn)) == 34
    assert "".join(text_curve([(0.0, 0.0), (1.0, 1.0)], (0.0, 1.0), 34, 4, ascii_only=True)).isascii()


def test_the_mean_is_that_of_those_that_were_evaluated():
    members = [[line(0, 10, 0.2), line(0, 20, 0.4)], [line(1, 12, 0.6)], []]
    assert mean_curve(members, "eval/win_rate") == [(11.0, pytest.approx(0.4)), (20.0, 0.4)]


# On terminals


@pytest.mark.parametrize("columns", WIDTHS)
def test_everything_fits_and_nothing_is_lost(on_screen, columns):
    with on_screen(columns) as screen:
        display = Terminal()
        train_on(display)
        finish(display)
    assert screen.lines[0] == "run directory: runs/x"
    assert max(map(len, screen.lines)) < columns
    for text in ("10,000,000/10,000,000 steps", "steps/s × 2 seeds", "100%", "took 0:00", "members 1–2 of 4"):
        assert screen.text.count(text) == 1, text
    assert screen.text.count("replaying the best") == 1
    assert "win 0.917 ▃▄▅▆▇  best 0.917 at 10M" in screen.text
    assert "win rate of greedy play, mean of 3 seeds" in screen.text
    assert re.search(r"2 +frozen at 512 +0\.167", screen.text)
    assert re.search(r"mean +2 seeds +0\.917", screen.text)
    assert len(re.findall(r"steps  win 0\.\d+  return 1?\d?\.\d+  loss", screen.text)) == 5
    assert b"\x1b[?25l" in screen.raw and screen.raw.rfind(b"\x1b[?25h") > screen.raw.rfind(b"\x1b[?25l")


@pytest.mark.parametrize("columns", WIDTHS)
def test_what_is_left_is_told_on_the_way(on_screen, columns):
    with on_screen(columns) as screen:
        display = Terminal()
        display.start("", 10_000_000, 0, " × 16 seeds", [])
        time.sleep(0.01)
        display.progress(6_291_456, " × 16 seeds")
    display.stop()
    assert "63%" in screen.text and "6,291,456/10,000,000 steps" in screen.text and "0:00 left" in screen.text
    assert max(map(len, screen.lines)) < columns


def test_the_best_so_far_stands_out(on_screen):
    with on_screen(80) as screen:
        display = Terminal()
        display.start("", 100, 0, "", [(10.0, 0.2)])
        for steps, value in ((20, 0.1), (40, 0.3), (60, 0.6), (80, 0.5), (100, 0.6)):
            display.evaluation({"x": [line(0, steps, value)]}, "")
        display.stop()
    assert re.findall(rb"\x1b\[1;32mwin (0\.\d)", screen.raw) == [b"0.3", b"0.6"]


def test_lines_that_stay_are_few(on_screen):
    with on_screen(80) as screen:
        display = Terminal()
        train_on(display, evaluations=500, total=1_000_000)
        display.stop()
    staying = [row for row in screen.lines if " steps  win " in row]
    assert terminal.LINES <= len(staying) <= terminal.LINES + 2
    assert staying[-1].startswith("1,000,000 steps")


def test_what_is_under_way_moves_by_itself(on_screen):
    with on_screen(80) as screen:
        display = Terminal()
        display.stage("compiling")
        time.sleep(0.7)
        display.stop()
    drawn = re.findall("([⠀-⣿]).*?compiling …", screen.raw.decode())
    assert len(set(drawn)) >= 3
    assert screen.lines == []
    assert not any(thread.name == "display" for thread in threading.enumerate())


def test_warnings_and_other_lines_are_not_drawn_over(on_screen, monkeypatch):
    with on_screen(80) as screen:
        monkeypatch.setattr(sys, "stderr", screen.file)
        monkeypatch.setattr(os, "write", lambda fd, data: screen.file.buffer.write(data))
        display = Terminal()
        train_on(display, evaluations=2)
        display.warn("seed 1: the loss is not finite")
        say_past_everything("finishing this part")
        display.progress(10_000_000, " × 2 seeds")
        display.stop()
    assert screen.text.count("jqmix: seed 1: the loss is not finite") == 1
    assert screen.text.count("jqmix: finishing this part") == 1


def test_what_is_told_is_not_changed_while_it_is_drawn(on_screen):
    """Else the thread would look for a stage that is over."""
    drawing, draw_stages = threading.Event(), Terminal._stage_lines

    def slowly(display):
        if threading.current_thread().name == "display":
            drawing.set()
            time.sleep(0.2)
        return draw_stages(display)

    with on_screen(80), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Terminal, "_stage_lines", slowly)
        display = Terminal()
        display.stage("compiling")
        assert drawing.wait(10)
        display.ready()
        display.stop()  # what a thread raises is a warning, and so an error


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_terminals_of_few_talents(on_screen, environment):
    with on_screen(80, **environment) as screen:
        display = Terminal()
        train_on(display)
        finish(display)
    assert not re.search(rb"\x1b\[3\d", screen.raw)  # a colour
    assert (b"\x1b" in screen.raw) == ("NO_COLOR" in environment)
    assert "win 0.917" in screen.text


# Elsewhere


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_letters_that_a_stream_does_not_have(monkeypatch, encoding, capsys):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        display = Terminal()
        train_on(display)
        display.say("a name: \udcff, 名")
        finish(display)
    assert capsys.readouterr().err == ""
    text = stream.buffer.getvalue().decode(encoding)
    assert ("█" in text) == (encoding == "utf-8")
    assert ("ε 0.500" if encoding == "utf-8" else "eps 0.500") in text
    assert text.count("?") >= (1 if encoding == "utf-8" else 2)


def test_lines_elsewhere_are_whole_and_few(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    display = Terminal()
    train_on(display, evaluations=100)
    display.stop()
    told = stream.getvalue()
    assert "\x1b" not in told and "\r" not in told
    lines = told.splitlines()
    assert lines[:2] == ["run directory: runs/x", "tracing …"] and lines[2].startswith("ready after 0.0 s: tracing 0.0")
    assert terminal.LINES <= len(lines) - 3 <= terminal.LINES + 2
    assert all("steps/s × 2 seeds" in row for row in lines[3:])


def test_a_long_silence_is_broken(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    display = Terminal()
    display.start("", 1000, 0, "", [])
    display.progress(100, "")
    assert stream.getvalue() == ""
    monkeypatch.setattr(terminal, "SILENCE_S", 0.0)
    display.progress(200, "")
    assert stream.getvalue().startswith("20%  200/1,000 steps")


def test_a_display_that_breaks_is_noted_once(on_screen, capsys):
    """Also where it is the thread that draws."""

    class Breaks(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

        def isatty(self):
            return True

    with on_screen(80), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Breaks())
        display = Terminal()
        display.stage("compiling")
        time.sleep(0.6)
        train_on(display)
        finish(display)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the display is broken ([Errno 28] No space left on device)" in err


def test_quiet_is_quiet(capsys):
    display = Terminal(quiet=True)
    train_on(display)
    finish(display)
    display.warn("this is to be known")
    assert capsys.readouterr() == ("", "jqmix: this is to be known\n")


def test_fields_are_packed_whole():
    from rich.text import Text

    lines = packed([Text("a" * 5), Text("b" * 5), Text("c" * 30), Text("d")], 12, indent=1)
    assert [row.plain for row in lines] == ["aaaaa  bbbbb", " " + "c" * 30, " d"]


# A whole run


class FailingLogger:
    def begin(self, run):
        raise OSError("no tracker")

    log = end = begin


def test_a_run_on_a_terminal(on_screen, tmp_path, monkeypatch):
    """What a callback prints and what becomes of a logger stay on it."""
    values = dict(zip((flag.removeprefix("--").replace("-", "_") for flag in SMALL[::2]), SMALL[1::2], strict=True))
    callback = lambda lines: print("at", lines[0]["env_steps"])  # noqa: E731
    with on_screen(80) as screen:
        monkeypatch.setattr(sys, "stderr", screen.file)
        cfg = load_config(None, run_dir=str(tmp_path / "r"), **values)
        train(cfg, loggers=[FailingLogger()], callbacks=[callback])
    assert screen.text.count("jqmix: FailingLogger: OSError: no tracker") == 1
    assert [row for row in screen.lines if row.startswith("at ")] == [f"at {64 * k}" for k in (1, 2, 3, 4, 5, 5)]
    assert screen.lines[0].startswith("run directory: ")
    drawn = screen.raw.decode()
    for stage in ("building the environment", "initialising", "tracing", "compiling"):
        assert f" {stage} … " in drawn
    ready = re.search(
        r"ready after (.+) s: building (.+), initialising (.+), tracing (.+), compiling (\d+\.\d)",
        " ".join(screen.text.split()),  # the line is wrapped where a machine is slow
    )
    assert ready
    whole, *parts = map(float, ready.groups())
    assert whole == pytest.approx(sum(parts), abs=0.3)
    assert "320/320 steps" in screen.text and " steps/s × 2 seeds" in screen.text
    assert "return of greedy play, mean of 2 seeds" in screen.text
    assert screen.text.count("best ") >= 1 and "640 environment steps over 2 seeds" in screen.text
    assert screen.lines[-1].endswith("# train on")


@pytest.mark.slow
def test_a_notebooks_cell_is_not_flooded(tmp_path):
    """One output that is drawn anew, whatever was shown on the way."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    values = dict(zip((flag.removeprefix("--").replace("-", "_") for flag in SMALL[::2]), SMALL[1::2], strict=True))
    code = f"import jqmix\ncfg = jqmix.load_config(None, run_dir={str(tmp_path / 'run')!r}, **{values!r})\n"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code + "result = jqmix.train(cfg)")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [out for out in notebook.cells[0].outputs if out.get("name") != "stderr"]
    assert [out.output_type for out in outputs] == ["display_data"]
    shown = outputs[0].data
    assert len(shown["text/html"]) < 20_000
    assert shown["text/plain"].startswith("run directory: ")
    for text in ("320/320 steps", "return of greedy play, mean of 2 seeds", "next:", "compiling"):
        assert shown["text/plain"].count(text) == 1, text

"""Draws terminal.svg beside it: what a short real run shows on a terminal of 80 columns.

python docs/images/make_terminal.py [COMMAND …]
"""

import contextlib
import fcntl
import io
import itertools
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, ROWS = 80, 70
COMMAND = "jqmix train smax_3m --seeds 2 --total-steps 60000 --eval.every 6000 --run-dir runs/3m"


def shown(command: list[str]) -> pyte.Screen:
    """The screen of a terminal in which a command has run, in a folder of its own."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    with tempfile.TemporaryDirectory() as folder:
        child, terminal = pty.fork()
        if child == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            os.chdir(folder)
            os.execvp(command[0], command)
        with contextlib.suppress(OSError):  # how a terminal says that its other end is closed
            while data := os.read(terminal, 65536):
                stream.feed(data)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise SystemExit("\n".join(line.rstrip() for line in screen.display).rstrip())
    return screen


def line(screen: pyte.Screen, row: int) -> Text:
    """A line of a screen, with its colours."""
    letters = [screen.buffer[row][column] for column in range(COLUMNS)]
    text = Text()
    for (colour, bold), run in itertools.groupby(letters, lambda letter: (letter.fg, letter.bold)):
        style = Style(color=None if colour == "default" else colour.replace("bright", "bright_"), bold=bold)
        text.append("".join(letter.data for letter in run), style)
    text.rstrip()
    return text


def main() -> None:
    command = sys.argv[1:] or COMMAND.split()
    screen = shown([sys.executable, "-m", *command])
    lines = [line(screen, row) for row in range(ROWS)]
    while not lines[-1]:
        lines.pop()
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, color_system="truecolor", force_terminal=True)
    console.print(Text(f"$ {' '.join(command)}", "bold"))
    console.print(Text("\n").join(lines))
    # Without the font that rich would have loaded from elsewhere.
    drawing = re.sub(r"@font-face \{.*?\}\n", "", console.export_svg(title="jqmix"), flags=re.DOTALL)
    Path(__file__).with_name("terminal.svg").write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()

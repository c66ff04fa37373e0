"""Where a run's display is drawn: over and over at the foot of a terminal, in one output of a notebook's cell, or, on
anything else, as lines alone."""

import errno
import io
import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment
from rich.text import Text

from jqmix.interrupts import times_said

NOTEBOOK_WIDTH = 100  # letters
# What letters become that a stream does not have.
LIKE = str.maketrans("×–—…·ελγ→‘’“”", "x--.,elg>''\"\"")
HTML = "<pre style=\"line-height: 1.3; font-family: Menlo, 'DejaVu Sans Mono', Consolas, monospace\">{code}</pre>"


class SpellingConsole(Console):
    """Rich's, that writes what the stream cannot spell as what it can, and ends nothing."""

    @property
    def encoding(self) -> str:
        """Of what is written to now; Rich takes stdout for UTF-8."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment._replace(text=self._spelled(segment.text))

    def _spelled(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return text.translate(LIKE).encode(self.encoding, "replace").decode(self.encoding)
        return text

    def on_broken_pipe(self) -> None:
        """Rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Display:
    """Where things are shown: here as lines, one after another. ``tick_s``: how often what is live is to be drawn anew;
    0 where nothing is."""

    tick_s = 0.0

    def __init__(self, console: Console):
        self.console = console

    @property
    def width(self) -> int:
        """Letters in a line."""
        return 80

    def draw(self, said: RenderableType | None, status: list[Text]) -> None:
        """Shows ``said``, which stays, and below it the lines of ``status``, which replace those of before.

        Raises ``OSError`` or ``ValueError`` where it can't.
        """
        if said is not None:
            self.console.print(said, soft_wrap=True)

    def close(self) -> None:
        """What is shown stays."""


class TerminalDisplay(Display):
    """A terminal, with the status at its foot."""

    tick_s = 0.25

    def __init__(self, console: Console):
        super().__init__(console)
        self._height = 0  # lines of the status as it was drawn last
        self._said = times_said()

    @property
    def width(self) -> int:
        return self.console.width - 1  # some terminals wrap a line that is full

    def draw(self, said: RenderableType | None, status: list[Text]) -> None:
        if self._said != times_said():  # a line was written below the status: that one stays
            self._said, self._height = times_said(), 0
        with self.console:  # written at once, so that nothing flickers
            if self._height:
                clear = (ControlType.ERASE_IN_LINE, 2)
                above = [(ControlType.CURSOR_UP, 1), clear] * (self._height - 1)
                self.console.control(Control((ControlType.CURSOR_MOVE_TO_COLUMN, 0), clear, *above))
            if said is not None:
                self.console.print(said, soft_wrap=isinstance(said, Text) and said.no_wrap)
            if bool(status) != bool(self._height):
                self.console.show_cursor(not status)
            self.console.print(Text("\n").join(status), end="", soft_wrap=True)
        self._height = len(status)

    def close(self) -> None:
        if self._height:
            self.console.print()
            self.console.show_cursor()
        self._height = 0


class NotebookDisplay(Display):
    """A notebook: everything is one output of the cell, drawn anew."""

    tick_s = 1.0

    def __init__(self, console: Console):
        super().__init__(console)
        self._said: list[RenderableType] = []
        self._status: list[Text] = []
        self._handle: Any = None

    @property
    def width(self) -> int:
        return NOTEBOOK_WIDTH

    def draw(self, said: RenderableType | None, status: list[Text]) -> None:
        if said is not None:
            self._said.append(said)
        self._status = status
        page = Console(
            record=True, file=io.StringIO(), width=self.width, force_terminal=True, force_jupyter=False, highlight=False
        )
        for part in (*self._said, *self._status):
            page.print(part)
        html = page.export_html(inline_styles=True, code_format=HTML, clear=False)
        self._put({"text/html": html, "text/plain": page.export_text()})

    def _put(self, bundle: dict[str, str]) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]: there is one, as this is a notebook

        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def close(self) -> None:
        self._said += self._status
        self._status = []


def make_display(quiet: bool = False) -> Display:
    """Of what stdout is."""
    console = SpellingConsole(quiet=quiet, highlight=False)
    if console.is_jupyter and not quiet:
        return NotebookDisplay(console)
    if console.is_terminal and not console.is_dumb_terminal and not quiet:
        return TerminalDisplay(console)
    return Display(console)

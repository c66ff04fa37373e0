"""The documentation is right: what its pages show runs, every command in it is one, every link leads somewhere."""

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from slow import slow

from jqmix.cli import _parse, _run_config, main
from jqmix.envs import registry
from jqmix.networks.cores import CORES
from jqmix.networks.mixers import MIXERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RUNNABLE = [DOCS / "start.md", *sorted((DOCS / "extending").glob("*.md"))]
# Those of docs/ in capitals are the root's own, included there.
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *DOCS.rglob("[a-z]*.md")])
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What stands for something of the reader's own, or is written in a file of the reader's.
STANDS_FOR = re.compile(r"RUN|…|mine|\w:\w|\b[A-Z]$")


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every ``jqmix …``, in blocks and within lines."""
    text = page.read_text(encoding="utf-8")
    shell = [block.text for block in blocks(page) if block.language == "bash"]
    lines = [line.strip() for block in shell for line in block.splitlines()]
    lines += re.findall(r"`(jqmix [^`]+)`", BLOCK.sub("", text))
    lines = [line.removeprefix("exec ").removeprefix("srun ") for line in lines]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("jqmix ")]
    return [argv for argv in found if argv[1:] or argv == ["train"]]  # without arguments, it is a command's name


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, whose modules are found as the command line finds them; all is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*(p for p in sys.path if p), ""])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(registry, "_ENTRIES", registry.entries())
    for choices in (MIXERS, CORES):
        monkeypatch.setattr(choices, "_entries", dict(choices._entries))
    before = set(sys.modules)
    yield tmp_path
    for module in (set(sys.modules) - before) & {path.stem for path in tmp_path.glob("*.py")}:
        del sys.modules[module]


@pytest.mark.parametrize("page", [*slow(RUNNABLE[:-1]), RUNNABLE[-1]], ids=name)
def test_what_a_page_shows_runs(page, elsewhere):
    """Files are written, Python runs from the top to the bottom, and so do the commands on what the page has made."""
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.title:
            (elsewhere / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, f"{name(page)}", "exec"), names)
        elif block.language == "bash" and page.parent.name == "extending":
            for line in block.text.splitlines():
                assert main(shlex.split(line, comments=True)[1:]) == 0, line
    assert names


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_one(page):
    """It parses, has no unknown flag, and, where it stands for itself, describes a configuration."""
    for argv in commands(page):
        if argv[-1] == "--help":
            argv = argv[:-1]
        args, unknown = _parse(argv)
        assert not unknown, argv
        if args.command == "train" and not any(STANDS_FOR.search(word) for word in argv):
            _run_config(args)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    """Files in the repository; the site's own build checks anchors."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


def test_the_commands_are_found():
    assert ["train"] in commands(DOCS / "start.md")
    assert ["envs", "--check", "meet:Meet"] in commands(DOCS / "extending" / "environment.md")

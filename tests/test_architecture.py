"""The package's shape: imports run downwards and never in a circle, functions are short, no name stands twice."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jqmix
from jqmix.learning.train import ALGORITHMS

ROOT = Path(jqmix.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FRONT = {"__init__", "__main__"}  # the package's doors: they name everything, and import when asked

# Each room, from the lowest to the highest, with all that it may import.
BASE = {"types", "inputs", "settings", "plugins", "config", "files"}
MAY_IMPORT = {
    "types": set(),
    "inputs": set(),
    "interrupts": set(),
    "kernels": {"types", "kernels"},
    "settings": {"inputs"},
    "plugins": {"inputs", "settings", "envs"},  # of envs the errors alone
    "envs": {"types", "inputs", "plugins", "kernels", "envs"},
    "files": {"inputs"},
    "chips": {"inputs", "chips"},
    "exported_policy": set(),  # a copy of it runs where nothing of jqmix is
    "trackers": {"inputs", "plugins", "files", "trackers"},
    "networks": {"types", "inputs", "settings", "plugins", "kernels", "networks"},
    # Registries' names and settings, without JAX.
    "config": {"inputs", "settings", "plugins", "envs", "networks", "trackers"},
    "buffers": {"types", "config", "kernels", "envs", "buffers"},
    "learning": {"types", "inputs", "config", "kernels", "envs", "networks", "buffers", "learning"},
    "analysis": {"inputs", "settings", "config", "files", "envs", "analysis"},  # of envs the registry's names alone
    "rendering": {"types", "inputs", "files", "envs", "rendering"},
    "runs": BASE
    | {"interrupts", "kernels", "chips", "exported_policy", "envs", "networks", "buffers"}
    | {"learning", "analysis", "rendering", "trackers", "runs"},
    "cli": BASE | {"interrupts", "chips", "envs", "analysis", "rendering", "runs"},
}
WITHOUT_JAX = {"inputs", "interrupts", "settings", "plugins", "config", "files"}
WITHOUT_JAX |= {"exported_policy", "trackers", "analysis", "cli"}

LONGEST = 60  # lines of a function

# What modules of a kind all have: the functions by which they are used, and what an environment draws for a step.
PROTOCOLS = {"init", "make", "apply", "step", "unroll", "add", "sample", "update", "launch", "width", "main", "Noise"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST, type_checking: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports below a node, those within functions too; with or without those for type checkers alone."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    branches = node.orelse if is_type_checking(node) and not type_checking else ast.iter_child_nodes(node)
    for child in branches:
        yield from import_nodes(child, type_checking)


def imported_modules(path: Path, type_checking: bool = False) -> set[str]:
    """The package's modules that a file imports, by their full names."""
    found = set()
    for node in import_nodes(parse(path), type_checking):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == "jqmix"}


def imported_rooms(path: Path) -> set[str]:
    """The rooms (folders and files right below the package) that a file imports from."""
    return {[*name.split("."), "__init__"][1] for name in imported_modules(path, type_checking=True)}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path):
    if room(path) not in FRONT:
        assert imported_rooms(path) <= MAY_IMPORT[room(path)]


def test_shapes_are_checked_wherever_arrays_have_some(pytestconfig):
    """Of no other room, where checking costs time and finds nothing."""
    annotated = {room(path) for path in FILES if "from jaxtyping import" in path.read_text(encoding="utf-8")}
    *checked, _ = pytestconfig.getoption("jaxtyping_packages").split(",")
    assert set(checked) == {f"jqmix.{name}" for name in annotated}


def test_one_environment_never_reaches_into_learning():
    assert imported_rooms(ROOT / "envs" / "registry.py") <= {"inputs", "plugins", "envs", "types"}


def test_algorithms_know_nothing_of_each_other():
    for name in ALGORITHMS:
        imported = imported_modules(MODULES[f"jqmix.learning.{name}"], type_checking=True)
        assert not imported & {f"jqmix.learning.{other}" for other in ALGORITHMS} - {f"jqmix.learning.{name}"}
        users = {user for user, path in MODULES.items() if f"jqmix.learning.{name}" in imported_modules(path)}
        assert users == {"jqmix.learning.train"}


def test_no_files_import_each_other_in_a_circle():
    graph = {name: imported_modules(path) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


def test_nothing_that_reads_or_plans_imports_jax():
    names = [name for name, path in MODULES.items() if room(path) in WITHOUT_JAX]
    assert "jqmix.analysis.report" in names
    code = f"import importlib, sys; [importlib.import_module(name) for name in {names}]; " + (
        "print(sorted({'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'jaxmarl'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions below a node, without those that lie within one of them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        else:
            yield from functions(child)


def lines(function: ast.AST) -> int:
    return function.end_lineno - function.lineno + 1


def all_lengths(node: ast.AST) -> Iterator[tuple[str, int]]:
    """The length of every function below a node; functions within it are not part of it, but counted by themselves."""
    for function in functions(node):
        yield function.name, lines(function) - sum(map(lines, functions(function)))
        yield from all_lengths(function)


def test_functions_are_short():
    lengths = {(module_name(path), *found) for path in FILES for found in all_lengths(parse(path))}
    assert not {found for found in lengths if found[2] > LONGEST}


def test_no_public_name_is_defined_twice():
    homes = defaultdict(set)
    for path in FILES:
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].add(module_name(path))
    twice = {name: found for name, found in homes.items() if len(found) > 1 and name not in PROTOCOLS}
    assert not twice, twice

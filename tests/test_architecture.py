"""Imports run one way: types, settings → plugins → envs | networks → config → learning → runs → cli."""

import ast
from pathlib import Path

import jqmix

ROOT = Path(jqmix.__file__).parent
MAY_IMPORT = {
    "types": set(),
    "inputs": set(),
    "interrupts": set(),
    "settings": {"inputs"},
    "plugins": {"inputs", "settings"},
    "config": {"inputs", "settings", "plugins", "envs", "networks"},  # the registries' names, which need no JAX
    "envs": {"inputs", "plugins", "types", "envs"},
    "networks": {"inputs", "settings", "plugins", "types", "networks"},
    "learning": {"types", "config", "envs", "networks", "learning"},
    "runs": {"inputs", "interrupts", "types", "config", "envs", "networks", "learning", "runs"},
    "cli": {"inputs", "interrupts", "settings", "plugins", "config", "envs", "runs"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jqmix"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("jqmix.")}
    return found


def test_imports_run_one_way():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in MAY_IMPORT:
            assert imports(path) <= MAY_IMPORT[room], path


def test_one_environment_never_reaches_into_learning():
    assert imports(ROOT / "envs" / "registry.py") <= {"inputs", "plugins", "envs", "types"}

"""What MkDocs does to the pages: tables from the code itself, and formulas as MathML.

Nothing here needs JAX, and nothing of a built page is loaded from elsewhere.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from latex2mathml.converter import convert

from jqmix.config import CHOICES, Config, describe_field, fields_of, load_config, preset_names
from jqmix.envs.registry import entries
from jqmix.settings import describe_type, settings_in

FORMULA = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = TABLE.sub(lambda found: TABLES[found[1]](), markdown)
    return FORMULA.sub(lambda found: convert(found[1], display="block"), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name classes as Sphinx would have it."""
    return ROLE.sub(r"<code>\1</code>", html)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: Any) -> str:
    return f"`{str(value).lower() if value is None or isinstance(value, bool) else value}`"


def _default(path: str) -> Any:
    value: Any = Config()
    for part in path.split("."):
        value = getattr(value, part)
    return value


def all_settings() -> str:
    """Every field of a configuration, and every setting of a mixer or a core."""
    rows = [
        (code(path), f.metadata["about"], describe_field(path, hint), code(_default(path)), "✓" * f.metadata["traced"])
        for path, hint, f in fields_of()
    ]
    for group, registry in CHOICES.items():
        for owner, cls in registry.known_settings().items():
            rows += [
                (
                    code(f"{group}.{name}"),
                    f"{owner}: {f.metadata['about']}",
                    describe_type(hint),
                    code(f.default),
                    "✓" * f.metadata["traced"],
                )
                for name, hint, f in settings_in(cls)
            ]
    return table(("field", "what it is", "takes", "default", "traced"), rows)


def all_environments() -> str:
    rows = [(code(name), *entry.sizes) for name, entry in entries().items() if entry.sizes is not None]
    return table(("name", "agents", "actions", "observation", "state", "time limit"), rows)


def all_presets() -> str:
    configs = {name: load_config(name) for name in preset_names()}
    rows = [
        (code(name), code(cfg.env.name), cfg.algo.name, cfg.algo.mixer, f"{cfg.total_steps:,}")
        for name, cfg in configs.items()
    ]
    return table(("preset", "environment", "algorithm", "mixer", "environment steps"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": all_settings,
    "environments": all_environments,
    "presets": all_presets,
}

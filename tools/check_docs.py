"""Hold the documentation to the code: `python tools/check_docs.py`, part of `make check`.

Checks that relative links lead somewhere, that every setting is explained in docs/operations.md, that every
metric is in docs/metrics.md, and that every `make` target and `powermean` command in the docs exists.
`--write` writes docs/metrics.md anew.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic_settings import BaseSettings
from typer.main import get_command

from powermean.cli.main import app
from powermean.contracts.metrics import METRICS
from server.settings import ServerSettings
from trainer.settings import NodeSettings

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: tuple[type[BaseSettings], ...] = (ServerSettings, NodeSettings)


def main() -> int:
    if "--write" in sys.argv:
        (ROOT / "docs/metrics.md").write_text(metrics_page())
    problems = [*broken_links(), *undocumented_settings(), *stale_metrics(), *unknown_commands()]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"docs: {len(pages())} pages, {len(problems)} problems")
    return 1 if problems else 0


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])


def broken_links() -> Iterator[str]:
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                yield f"{page.relative_to(ROOT)}: link to {target} leads nowhere"


def undocumented_settings() -> Iterator[str]:
    text = (ROOT / "docs/operations.md").read_text()
    for settings in SETTINGS:
        prefix = settings.model_config.get("env_prefix", "")
        for name in settings.model_fields:
            if f"`{prefix}{name}`".upper() not in text.upper():
                yield f"docs/operations.md: no word of {prefix}{name.upper()} ({settings.__module__})"


def stale_metrics() -> Iterator[str]:
    page = ROOT / "docs/metrics.md"
    if not page.exists() or page.read_text() != metrics_page():
        yield "docs/metrics.md is out of step: run `python tools/check_docs.py --write`"


def metrics_page() -> str:
    """The page of all metrics, from the contract."""
    lines = [
        "# Metrics",
        "",
        "Written by `python tools/check_docs.py --write` from `powermean/contracts/metrics.py`.",
        "Names are TRL's where the meaning is the same. *update* metrics have one value for each optimiser step.",
        "",
        "| name | level | unit | meaning |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{n}` | {m.level} | {m.unit} | {m.meaning.replace('|', chr(92) + '|')} |" for n, m in METRICS.items()]
    return "\n".join(lines) + "\n"


def unknown_commands() -> Iterator[str]:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(getattr(get_command(app), "commands", {}))
    for page in pages():
        code = "\n".join(re.findall(r"```(?:sh|bash|console)?\n(.*?)```", page.read_text(), re.DOTALL))
        code += "\n" + "\n".join(re.findall(r"`((?:make|powermean) [^`]*)`", page.read_text()))
        for target in re.findall(r"^\s*(?:\$ )?make ([a-z]+)", code, re.MULTILINE):
            if target not in targets:
                yield f"{page.relative_to(ROOT)}: there is no `make {target}`"
        for command in re.findall(r"^\s*(?:\$ )?(?:\.venv/bin/)?powermean ([a-z]+)", code, re.MULTILINE):
            if command not in commands:
                yield f"{page.relative_to(ROOT)}: there is no `powermean {command}`"


if __name__ == "__main__":
    sys.exit(main())

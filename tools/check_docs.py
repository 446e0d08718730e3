"""Check the documentation against the code: `python tools/check_docs.py`, part of `make check`.

Relative links must lead somewhere, `make` targets and `powermean` commands in the docs must exist, and what
is generated from the code (docs/deprecations.md, docs/health.md, docs/metrics.md, docs/settings.md,
docs/trajectories.md, the tree of errors in docs/architecture.md, the tables of fields in
docs/rewards-and-data.md, the gauges in docs/operations.md, the policy in docs/people.md) must match it.
`--write` generates it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings

from dashboard.columns import columns
from dashboard.fields import spec_sections
from powermean.cli.main import COMMANDS
from powermean.contracts.metrics import METRICS
from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateFacts, UpdateTokens
from powermean.contracts.trajectories import TrajectoryRow, TrajectoryUpdate
from powermean.deprecations import COMMANDS as OLD_COMMANDS
from powermean.deprecations import FIELDS, GONE_IN, METHODS, PATHS
from powermean.health_rules import RECENT, THRESHOLDS, WINDOW
from server.gauges import GAUGES
from server.identity.policy import CLUSTER_VERBS, POLICY, Verb
from server.settings import Settings
from worker.settings import NodeSettings

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, type[BaseSettings]] = {
    "The server (`python -m server`)": Settings,
    "A node (`python -m worker` and what it starts)": NodeSettings,
}

CLIENT = {  # name -> default and meaning
    "POWERMEAN_SERVER": (
        "unset",
        "Name of a server that `powermean login` saved, as in `powermean --server NAME`. Used before "
        "`POWERMEAN_URL`.",
    ),
    "POWERMEAN_URL": (
        "found on this machine",
        "Address of the server; `powermean.Client(url=...)` is used before it. Without one, the service of "
        "`powermean up` in this folder is used, then the server signed in to last, then the only service "
        "that this user runs.",
    ),
    "POWERMEAN_API_KEY": (
        "the one saved for the server",
        "Key to sign requests with; not for a server named by `POWERMEAN_SERVER`, which has its own. "
        "`powermean.Client(key=...)` is used before it.",
    ),
    "POWERMEAN_HOME": (
        "`.powermean`",
        "Folder of the service of `powermean up`: database, keys, artefacts, logs. If set, no other service "
        "is looked for on this machine.",
    ),
    "POWERMEAN_MODEL_ROOTS": (
        "unset",
        "Folders by colons, for `powermean validate` and other commands that look for the model of a spec "
        "(`model.folder`) here; the node's setting.",
    ),
    "XDG_CONFIG_HOME": ("`~/.config`", "`powermean/servers.json` in it has the servers signed in to."),
    "XDG_STATE_HOME": ("`~/.local/state`", "`powermean` in it lists the services that this user runs here."),
    "NO_COLOR": ("unset", "Any value: plain lines, without colours and live displays."),
}

TRAJECTORIES: dict[str, type[BaseModel]] = {
    "A trajectory": TrajectoryRow,
    "What one optimiser step saw of it": TrajectoryUpdate,
    "Its tokens": TrajectoryTokens,
    "What one optimiser step saw of each token": UpdateTokens,
    "What the updates of a step share": StepFacts,
    "One update of the step": UpdateFacts,
}
TRAJECTORIES_INTRODUCTION = """\
Written by `python tools/check_docs.py --write` from `powermean/contracts/trajectories.py` and
`token_records.py`.

The database has the scalars of every trajectory: `GET /v1/jobs/{id}/trajectories?step=N` returns a step's,
`GET /v1/jobs/{id}/trajectories/{step}/{index}` a single one. Texts (`record.texts`) and tokens
(`record.tokens`: `all`, `none`, or a number of trajectories per step, rounded to whole groups; default 64)
are compressed segments in the artefact store, one per step. The tokens of one trajectory are at `GET
/v1/jobs/{id}/trajectories/{step}/{index}/tokens`, and its page,
`/jobs/{id}/steps/{step}/trajectories/{index}`, colours them by W_t or by log-ratio. Undefined numbers are
null; `p_reason` says why p is. The API adds `staleness`, the number of weight versions the trajectory is
behind its step's, and `GET /v1/jobs/{id}/staleness` gives p and ESS by staleness
([pmpo.md](pmpo.md#stale-trajectories)). [deprecations.md](deprecations.md) lists renamed fields.

![A trajectory's tokens, coloured by weight](images/token-view.png)

A token segment is gzipped JSON lines: first the facts of the step, then one line per trajectory. Arrays of
floats are base64 of little-endian float32, and `clipped` is a string of 0 and 1;
`powermean/token_segments.py` reads and writes them. Symbols are those of [notation.md](notation.md).

A token takes about 10 bytes per update: 64 trajectories of 1,000 tokens and 4 updates make 2.6 MB per step
(measured with random numbers, which hardly compress) and take about a second of `time/record`. Segments are
kept as long as the job's texts. Those of an attempt whose steps were repeated are kept too, but no answer
refers to them."""


def main() -> int:
    written = {
        "docs/deprecations.md": deprecations_page(),
        "docs/health.md": health_page(),
        "docs/metrics.md": metrics_page(),
        "docs/settings.md": settings_page(),
        "docs/trajectories.md": trajectories_page(),
        "docs/architecture.md": with_error_tree((ROOT / "docs/architecture.md").read_text()),
        "docs/operations.md": with_gauges((ROOT / "docs/operations.md").read_text()),
        "docs/people.md": with_policy((ROOT / "docs/people.md").read_text()),
        "docs/rewards-and-data.md": with_fields((ROOT / "docs/rewards-and-data.md").read_text()),
    }
    if "--write" in sys.argv:
        for name, text in written.items():
            (ROOT / name).write_text(text)
    problems = [*broken_links(), *stale(written), *unknown_commands()]
    problems += unknown_variables(written["docs/settings.md"])
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


def stale(written: dict[str, str]) -> Iterator[str]:
    for name, text in written.items():
        if not (ROOT / name).exists() or (ROOT / name).read_text() != text:
            yield f"{name} does not match the code: run `python tools/check_docs.py --write`"


def settings_page() -> str:
    """The page of all settings, from the code."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read once at start. For secrets, `NAME_FILE` may name a file",
    ]
    lines += ["with the value instead: `POWERMEAN_REDIS_URL_FILE=/run/secrets/redis_url`."]
    lines += ["Written by `python tools/check_docs.py --write` from the settings' own descriptions."]
    for title, settings in SETTINGS.items():
        prefix = settings.model_config.get("env_prefix", "")
        lines += ["", f"## {title}", "", "| variable | default | meaning |", "|---|---|---|"]
        for name, field in settings.model_fields.items():
            default = "required" if field.is_required() else f"`{shown(field.default)}`"
            lines.append(f"| `{(prefix + name).upper()}` | {default} | {field.description} |")
    title = "The command line and `powermean.Client`"
    lines += ["", f"## {title}", "", "| variable | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {default} | {meaning} |" for name, (default, meaning) in CLIENT.items()]
    return "\n".join(lines) + "\n"


def unknown_variables(page: str) -> Iterator[str]:
    """Environment variables that the code reads by name and the page of settings lacks."""
    for room in ("powermean", "server", "worker", "trainer", "rollout", "dashboard"):
        ours = "" if room == "powermean" else "POWERMEAN_"
        for file in sorted((ROOT / room).rglob("*.py")):
            for name in re.findall(rf'environ\.get\(\s*"({ours}[A-Z_]+)"', file.read_text()):
                if f"| `{name}` |" not in page:
                    yield f"docs/settings.md: {file.relative_to(ROOT)} reads {name}, which is not there"


def shown(default: object) -> str:
    empty = (
        default is None
        or default == ()
        or (isinstance(default, SecretStr) and not default.get_secret_value())
    )
    return "unset" if empty else str(default)


def trajectories_page() -> str:
    """The page of what is recorded per trajectory and per token, from the contracts."""
    lines = ["# Trajectories", "", *TRAJECTORIES_INTRODUCTION.splitlines()]
    for title, contract in TRAJECTORIES.items():
        units = {column.name: f" ({column.unit})" for column in columns(contract) if column.unit}
        lines += ["", f"## {title}", "", "| field | meaning |", "|---|---|"]
        for name, field in contract.model_fields.items():
            meaning = (field.description or "").replace("|", chr(92) + "|")
            lines.append(f"| `{name}`{units.get(name, '')} | {meaning} |")
    return "\n".join(lines) + "\n"


def with_fields(page: str) -> str:
    """The page with a table of fields between marks such as `<!-- fields of data.jsonl -->`."""
    sections = {section.title: section for section in spec_sections()}

    def table(found: re.Match[str]) -> str:
        start, part, kind, end = found.groups()
        lines = [
            f"| `{field.name}` | {'required' if field.required else f'`{field.default}`'} | {field.meaning} |"
            for field in sections[f"{part} · kind: {kind}"].fields
        ]
        return "\n".join([start, "| field | default | meaning |", "|---|---|---|", *lines, end])

    mark = r"(<!-- fields of (\w+)\.(\w+) -->).*?(<!-- end of fields -->)"
    return re.sub(mark, table, page, flags=re.DOTALL)


def deprecations_page() -> str:
    """The page of old names, from the table in the code."""
    lines = [
        "# Old names",
        "",
        "Written by `python tools/check_docs.py --write` from `powermean/deprecations.py`.",
        "",
        f"Renamed things work under their old name until {GONE_IN}; after that the old name is refused.",
        "",
        "- **Fields in a request.** Either name is accepted. If both are given they must be equal. `POST",
        "  /v1/jobs` and `POST /v1/jobs/{id}/replays` answer with `deprecations`: the old names in the",
        "  request and their replacements. `powermean submit`, `validate` and `replay` print them.",
        "- **Fields in an answer.** Both names are present; `openapi.json` marks the old one as deprecated.",
        "- **Paths.** An answer at an old path has a `Deprecation` header (RFC 9745) with the day of the",
        '  change, and a `Link` to the new path, `rel="successor-version"`. The header is about the',
        "  resource, so an old field in the body does not trigger it.",
        "- **Commands and methods.** They still work, with a note on standard error or a",
        "  `DeprecationWarning`.",
        "",
        "| where | old | new |",
        "|---|---|---|",
    ]
    lines += [f"| {r.where} | `{r.old}` | `{r.new}` |" for r in (*FIELDS, *PATHS, *OLD_COMMANDS, *METHODS)]
    return "\n".join(lines) + "\n"


def health_page() -> str:
    """The page of the health line's thresholds, from the code."""
    lines = [
        "# Health",
        "",
        "Written by `python tools/check_docs.py --write` from `powermean/health_rules.py`.",
        "",
        f"The thresholds below are applied to a job's last {WINDOW} steps: `GET /v1/jobs/{{id}}/health`.",
        f"A finding is about the newest {RECENT} steps and contains the numbers and what to change in the",
        "spec. Measures: *mean*, *peak* (the worst) and *floor* (the best) of those steps; *fall*, their",
        f"mean divided by the mean of the window's first {RECENT}; *spike*, the worst divided by the",
        "window's median; *steps*, how many of them have a value above 0. A metric by update counts with",
        "its mean after the first pass over the batch, or for a peak or spike with its largest value. Before",
        f"there are {RECENT} steps, only peaks, floors and steps are checked.",
        "",
        "| finding | metric | measure | watch | bad | why | remedy |",
        "|---|---|---|---|---|---|---|",
    ]
    for rule in THRESHOLDS:
        only = f" ({', '.join(rule.algorithms)})" if rule.algorithms else ""
        sign = "≥" if rule.side == "above" else "≤"
        lines.append(
            f"| `{rule.code}`{only} | `{rule.metric}` | {rule.measure} | {sign} {rule.watch:g} "
            f"| {sign} {rule.bad:g} | {rule.reason} | {rule.remedy} |"
        )
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """The page of all metrics, from the contract."""
    lines = [
        "# Metrics",
        "",
        "Written by `python tools/check_docs.py --write` from `powermean/contracts/metrics.py`.",
        "Names are TRL's where the meaning is the same. *update* metrics have a value per optimiser step.",
        "",
        "| name | level | unit | meaning |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{n}` | {m.level} | {m.unit} | {m.meaning.replace('|', chr(92) + '|')} |"
        for n, m in METRICS.items()
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class ErrorClass:
    """An exception class of the source: its name, the names of its bases, its file."""

    name: str
    bases: tuple[str, ...]
    file: str


def with_policy(page: str) -> str:
    """docs/people.md with server/identity/policy.py's table in it."""
    before, _, rest = page.partition("<!-- policy -->\n")
    after = rest.partition("<!-- end of policy -->")[2]
    in_projects = [verb for verb in POLICY if verb not in CLUSTER_VERBS]
    lines = ["| in a project | viewer | member | maintainer | auditor |", "|---|---|---|---|---|"]
    lines += [f"| `{verb}` | " + " | ".join(_granted(verb)) + " |" for verb in in_projects]
    lines += ["", "| in the cluster | everybody | auditor |", "|---|---|---|"]
    in_cluster = [verb for verb in POLICY if verb in CLUSTER_VERBS]
    lines += [f"| `{verb}` | {_granted(verb)[0]} | {_granted(verb)[3]} |" for verb in in_cluster]
    return f"{before}<!-- policy -->\n" + "\n".join(lines) + f"\n<!-- end of policy -->{after}"


def with_gauges(page: str) -> str:
    """The page with a table of what /metrics says of the cluster, between its two marks."""
    start, end = "<!-- prometheus -->\n", "<!-- end of prometheus -->"
    before, _, rest = page.partition(start)
    lines = ["| gauge | label | meaning |", "|---|---|---|"]
    lines += [f"| `{n}` | {f'`{g.label}`' if g.label else ''} | {g.meaning} |" for n, g in GAUGES.items()]
    return before + start + "\n".join([*lines, end]) + rest.partition(end)[2]


def _granted(verb: Verb) -> list[str]:
    return ["" if one == "no" else one for one in POLICY[verb]]


def with_error_tree(page: str) -> str:
    """The page with the tree of errors as the code has it, between its two marks."""
    start, end = "<!-- errors -->\n", "<!-- end of errors -->"
    before, _, rest = page.partition(start)
    return before + start + error_tree() + end + rest.partition(end)[2]


def error_tree() -> str:
    """The family under PowermeanError, and what stands outside it."""
    found = list(error_classes())
    lines = ["```text", "PowermeanError", *branch("PowermeanError", found, "")]
    lines += ["", "outside: signals within a process, and ValueErrors"]
    outside = [one for one in found if {"Exception", "ValueError"} & set(one.bases)]
    lines += [f"  {one.name:38}{one.file}" for one in outside if one.name != "PowermeanError"]
    return "\n".join(lines) + "\n```\n"


def branch(base: str, found: list[ErrorClass], indent: str) -> Iterator[str]:
    """What derives from `base`, each kind followed by its own kinds."""
    kinds = [one for one in found if base in one.bases]
    for number, one in enumerate(kinds):
        last = number == len(kinds) - 1
        yield f"{indent}{'└─' if last else '├─'} {one.name:{37 - len(indent)}}{one.file}"
        yield from branch(one.name, found, indent + ("   " if last else "│  "))


def error_classes() -> Iterator[ErrorClass]:
    """Public exception classes of all rooms, in the order of their files."""
    for room in ("powermean", "server", "dashboard", "worker", "trainer", "rollout"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef) and re.fullmatch(r"[A-Z]\w*Error", node.name):
                    bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
                    yield ErrorClass(node.name, bases, str(file.relative_to(ROOT)))


def unknown_commands() -> Iterator[str]:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(COMMANDS)
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

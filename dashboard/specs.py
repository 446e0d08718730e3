"""Job specs as people write them: YAML or JSON text, in and out."""

from typing import Any

import yaml

from powermean.contracts.job import JobSpec
from powermean.errors import PowermeanError
from powermean.spec_yaml import SpecLoader

MAX_CHARACTERS = 500_000


class UnreadableSpecError(PowermeanError):
    """The text is not a spec; the message says where and why."""

    code = "unreadable_spec"
    remedy = "Mend the text and submit again."


class _Loader(SpecLoader):
    """YAML that drops nothing in silence: a repeated key is an error."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise UnreadableSpecError(
                f"line {mark.line + 1}: anchors and aliases (& and *) are not taken: write it out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UnreadableSpecError(f"line {key.start_mark.line + 1}: a field's name is a word")
            if key.value in seen:
                raise UnreadableSpecError(f"line {key.start_mark.line + 1}: '{key.value}' is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str) -> dict[str, Any]:
    """The mapping that the text stands for (JSON is YAML). Raises UnreadableSpecError."""
    if len(text) > MAX_CHARACTERS:
        raise UnreadableSpecError(
            f"the text has {len(text):,} characters; a spec may have {MAX_CHARACTERS:,}"
        )
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (derived from SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UnreadableSpecError(f"{where}{error.problem or error.context or 'not YAML'}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UnreadableSpecError(f"not YAML or JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnreadableSpecError("a spec is a mapping of fields to values, starting with `name: ...`")
    return value


def line_of(text: str, path: str) -> int | None:
    """The line of the field at a dotted path, or of its nearest parent. `text` must parse."""
    node = yaml.compose(text, Loader=_Loader)
    line = None
    for part in path.split("."):
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            break
    return line


def to_yaml(spec: JobSpec, changed_only: bool = False) -> str:
    """The spec as YAML; `changed_only` leaves out what equals its default."""
    data = spec.model_dump(mode="json", exclude_defaults=changed_only)
    if changed_only:  # what tells variants apart equals its default, and is needed all the same
        data.setdefault("algorithm", {})["name"] = spec.algorithm.name
        data["data"]["kind"] = spec.data.kind
        data.setdefault("reward", {})["kind"] = spec.reward.kind
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)

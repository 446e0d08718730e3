"""The administrator's list of models that may be loaded: names or patterns, pinned to a commit where given.

`HuggingFaceTB/*,meta-llama/Llama-3.1-8B@0e9e39f249a16976918f6564b8830bc894c89659`; an empty list allows all.
Folders need no list: they are under the model roots that the administrator declared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

_ENTRY = re.compile(r"(?P<pattern>[\w.*-]+(/[\w.*-]+)?)(@(?P<commit>[0-9a-f]{40}))?", re.ASCII)


@dataclass(frozen=True)
class AllowedModel:
    """One entry. With a `commit`, no other revision of the model is fetched or used."""

    pattern: str
    commit: str | None = None

    def __str__(self) -> str:
        return self.pattern + (f"@{self.commit}" if self.commit else "")


AllowedModels = Sequence[AllowedModel]
ANY_MODEL = AllowedModel("*")


def read_allowed_models(text: str) -> tuple[AllowedModel, ...]:
    """The entries of a list with commas. Raises ValueError naming the wrong one."""
    found = []
    for entry in filter(None, map(str.strip, text.split(","))):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"{entry!r} is neither NAME nor NAME@COMMIT with a commit of 40 hex digits")
        found.append(AllowedModel(match["pattern"], match["commit"]))
    return tuple(found)


def allowed_model(name: str, allowed: AllowedModels) -> AllowedModel | None:
    """The first entry that the model's name matches; None where the list does not have it."""
    if not allowed:
        return ANY_MODEL
    return next((entry for entry in allowed if fnmatchcase(name, entry.pattern)), None)


def refusal(allowed: AllowedModels) -> tuple[str, str]:
    """Why a model that is not on the list is refused, and what to do, for people."""
    names = ", ".join(map(str, allowed[:20])) + (", ..." if len(allowed) > 20 else "")
    return "the administrator has not allowed this model", f"Allowed: {names} (POWERMEAN_ALLOWED_MODELS)."

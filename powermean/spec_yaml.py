"""Reads job specs as YAML: safely, and with on, off, yes and no as plain words."""

import yaml

_BOOL = "tag:yaml.org,2002:bool"


class SpecLoader(yaml.SafeLoader):
    """Safe YAML in which only true and false are booleans, so that `off` in a spec stays a word."""


SpecLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

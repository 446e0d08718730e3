"""How job specs are read as YAML: safely, and with on, off, yes and no as the words that they are."""

import yaml

_BOOL = "tag:yaml.org,2002:bool"


class SpecLoader(yaml.SafeLoader):
    """Safe YAML in which only true and false are booleans: the `off` of a spec is a word."""


SpecLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

"""In front of the real package on a node's path: `python -m rollout` runs what is here."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

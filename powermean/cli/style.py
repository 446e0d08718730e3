"""The one look of every command's help: plain text, as wide as the terminal."""

from typing import Any

PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}

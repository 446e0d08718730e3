"""Keys and tokens as people set them: stripped of what copying adds, and never quoted in an error.

A key from a file ends in a newline; one from `docker run --env-file` may keep its quotes. Keys are compared
by their hash, so either would be refused for ever, and HTTP libraries quote a header that they refuse.
"""

import re

from pydantic import SecretStr

from powermean.errors import PowermeanError

_QUOTES = ('"', "'")
_LOGIN = re.compile(r"(?<=://)[^/\s]*@")


class MalformedKeyError(PowermeanError):
    """A key holds a character that no key has. The message never holds the key."""

    code = "malformed_key"


def clean_key(given: str, name: str) -> str:
    """The key without surrounding white space and quotes; `name` says where it comes from.

    Raises:
        MalformedKeyError: inside it is a character that no HTTP header may hold.
    """
    key = given.strip()
    if len(key) > 1 and key[0] in _QUOTES and key[-1] == key[0]:
        key = key[1:-1].strip()
    if not all("!" <= character <= "~" for character in key):
        raise MalformedKeyError(
            f"{name} holds a character that no key has (white space, or not ASCII): copy the key again"
        )
    return key


def clean_secret(given: SecretStr, name: str) -> SecretStr:
    """As `clean_key`, for settings: a ValueError, which is what a setting's validator raises."""
    try:
        return SecretStr(clean_key(given.get_secret_value(), name))
    except MalformedKeyError as error:
        raise ValueError(str(error)) from None


def without_logins(text: str) -> str:
    """The text with *** in place of user and password of the addresses in it: sftp://***@host/store."""
    return _LOGIN.sub("***@", text)

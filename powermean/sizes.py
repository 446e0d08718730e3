"""Sizes in bytes as people read and write them, in decimal units."""

import re

_UNITS = ("B", "kB", "MB", "GB", "TB")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) ?([kmgt]?b)", re.IGNORECASE | re.ASCII)


def size(count: int) -> str:
    """Such as `537.0 MB`."""
    amount = float(count)
    for unit in _UNITS[:-1]:
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} {_UNITS[-1]}"


def exact_size(count: int) -> str:
    """As short as it can be for `bytes_of` to give the same count."""
    power = next(power for power in range(len(_UNITS) - 1, -1, -1) if count * 1000 % 1000**power == 0)
    while power and count < 1000**power:
        power -= 1
    whole, thousandths = divmod(count * 1000 // 1000**power, 1000)
    part = f".{thousandths:03}".rstrip("0") if thousandths else ""
    return f"{whole}{part} {_UNITS[power]}"


def bytes_of(text: str) -> int:
    """The bytes of a size such as `200 GB` or `1.5tb`. Raises ValueError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a size, such as 500 GB")
    power = [unit.lower() for unit in _UNITS].index(found[2].lower())
    return round(float(found[1]) * 1000.0**power)

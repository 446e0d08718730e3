"""Hypothesis settings of laws whose examples are dear."""

from hypothesis import settings


def at_most(examples: int) -> settings:
    """So many examples, or a fifth of them where the profile is that of `make fast`."""
    few = settings.get_profile("fast").max_examples
    return settings(max_examples=max(2, examples // 5) if settings().max_examples == few else examples)

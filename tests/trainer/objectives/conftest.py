"""Settings of the property tests: no deadline (machines are busy), the same examples in every run."""

from hypothesis import settings

settings.register_profile("laws", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("laws")

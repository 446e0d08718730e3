"""Why tests of an extra are skipped."""

WITHOUT_TORCHAO = "torchao is not installed (the extra of that name)"

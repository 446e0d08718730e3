"""See trainer/preflight/validate.py."""

import sys

from powermean.importing import uncollected

with uncollected():
    from trainer.preflight.validate import main

if __name__ == "__main__":
    sys.exit(main())

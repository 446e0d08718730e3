"""See trainer/preflight/validate.py."""

import sys

from trainer.preflight.validate import main

if __name__ == "__main__":
    sys.exit(main())

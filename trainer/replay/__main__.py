"""See trainer/replay/run.py."""

import sys

from powermean.importing import uncollected

with uncollected():
    from trainer.replay.run import main

if __name__ == "__main__":
    sys.exit(main())

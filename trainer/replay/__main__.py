"""See trainer/replay/run.py."""

import sys

from trainer.replay.run import main

if __name__ == "__main__":
    sys.exit(main())

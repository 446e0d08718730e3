"""Stands in for the rollout service: says that it is ready, and waits for its end."""

import json
import sys
import time
from pathlib import Path

time.sleep(0.3)
ready = Path(sys.argv[sys.argv.index("--ready-file") + 1])
part = ready.with_suffix(".part")
part.write_text(json.dumps({"url": "http://127.0.0.1:1"}))
part.rename(ready)
time.sleep(3600)

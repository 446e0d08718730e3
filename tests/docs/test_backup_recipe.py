"""The backup of Postgres in containers, as docs/backup.md has it: the hold lasts as long as its copies."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
# In place of the containers: the server's program runs here, on SQLite, and the copies count valid holds.
COUNT = """
import sqlite3, sys
[[holds]] = sqlite3.connect(sys.argv[1]).execute("select count(*) from leaders where name like 'hold:%'")
print(sys.argv[2], holds, file=sys.stderr)
"""
STAND_INS = """
held() { "$PYTHON" -c "$COUNT" "$FILE" "$1"; }
docker() {
  shift 4
  case "$*" in python*) shift; exec "$PYTHON" "$@" ;; *) held "$1" ;; esac
}
rclone() { held rclone; }
"""


@pytest.mark.slow
def test_both_copies_are_made_within_the_hold(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```bash\n(.*?)```", (DOCS / "backup.md").read_text(), re.DOTALL)
    environment = dict(os.environ) | {
        "PYTHON": sys.executable,
        "COUNT": COUNT,
        "FILE": str(tmp_path / "server.db"),
        "POWERMEAN_DATABASE_URL": f"sqlite:///{tmp_path / 'server.db'}",
        "POWERMEAN_ARTEFACTS_URL": f"file://{tmp_path / 'artefacts'}",
        "POWERMEAN_SECRETS_DIR": str(tmp_path / "secrets"),
    }
    subprocess.run([sys.executable, "-m", "server", "migrate"], env=environment, check=True)
    script = STAND_INS + recipe.replace("/backups/", f"{tmp_path}/") + "\nheld after\n"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr.splitlines()) == (0, ["pg_dump 1", "rclone 1", "after 0"])
    environment["POWERMEAN_DATABASE_URL"] = f"sqlite:///{tmp_path}/none/server.db"  # no hold, no copies
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "pg_dump" not in done.stderr

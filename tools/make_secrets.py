"""Write the secrets of a new installation as files: `python3 tools/make_secrets.py`.

Standard library only. What is there already stays: a second call only adds what is missing. Containers read
the files as users of their own, so the files are readable and the folder is its owner's alone.
"""

import argparse
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "secrets"


def main(arguments: list[str]) -> int:
    """Write the missing files; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="make_secrets.py", description="Write the secrets of an installation."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: deploy/secrets")
    parser.add_argument("--postgres", default="postgres", help="its host, with port if it is not 5432")
    parser.add_argument("--redis", default="redis", help="its host, with port if it is not 6379")
    given = parser.parse_args(arguments)
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pairs = [("postgres_password", "database_url"), ("redis.conf", "redis_url")]
    if half := [pair for pair in pairs if sum((folder / name).exists() for name in pair) == 1]:
        names = " and ".join(half[0])
        print(f"{names} hold the same password, and only one is in {folder}: restore the other")
        return 1
    postgres, redis = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    texts = {
        "postgres_password": postgres,
        "database_url": f"postgresql+psycopg://powermean:{postgres}@{given.postgres}/powermean",
        "redis.conf": f'requirepass {redis}\nsave ""\n',
        "redis_url": f"redis://:{redis}@{given.redis}/0",
        "admin_key": f"pm_{secrets.token_urlsafe(32)}",
        "node_token": f"pmn_{secrets.token_urlsafe(32)}",
        "oidc_client_secret": "",
    }
    for name, text in texts.items():
        if not (folder / name).exists():
            (folder / name).write_text(text)
            (folder / name).chmod(0o444)
            print(f"wrote {folder / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

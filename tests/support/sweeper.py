"""Removes rows of deleted jobs, as a process to be killed: `python -m tests.support.sweeper URL`."""

import sys
import time

from server.db.session import Database
from server.storage import rows


def main(url: str) -> None:
    database = Database(url)
    rows.BATCH = 5
    while True:
        with database.write() as session:
            job_id = rows.deleted_job(session)
            if job_id is None:
                return
            removed = rows.remove_some(session, job_id)
        print(removed, flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1])

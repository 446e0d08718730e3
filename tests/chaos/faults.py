"""The faults: each does one bad thing to the cluster and has it undone later.

A fault returns what it hit and the jobs that it touched, or None where there is nothing to hit at the moment.
"""

from powermean.contracts.phases import (
    ACTIVITIES,
    AFTER_LAST_STEP,
    LOADING_MODEL,
    PREPARING_MODEL,
    WAITING_FOR_ENGINE,
)
from tests.chaos import job_faults, node_faults, service_faults
from tests.chaos.hits import Fault

FAULTS: dict[str, Fault] = {**service_faults.FAULTS, **node_faults.FAULTS, **job_faults.FAULTS}
# The moments of an attempt that faults wait for: what it does takes seconds at the start, then moments.
MOMENTS = (PREPARING_MODEL, LOADING_MODEL, WAITING_FOR_ENGINE, *ACTIVITIES, *AFTER_LAST_STEP)

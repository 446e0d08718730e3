"""The tables. Alembic alone creates them; a test checks that the migrations and these classes agree."""

from server.db.models.audit import AuditEntry, AuditHead, AuditPending
from server.db.models.base import MAX_BIG_INTEGER, MAX_INTEGER, Base, OwnedByProject, UtcDateTime
from server.db.models.cluster import (
    DRAINING,
    EngineService,
    Leader,
    Node,
    NodeSample,
    Outbox,
    ServerProcess,
)
from server.db.models.jobs import (
    Allocation,
    Attempt,
    AttemptMember,
    Checkpoint,
    ForkedFiles,
    Job,
    JobEvent,
    PriorityClass,
    Replay,
    UsageRecord,
)
from server.db.models.metrics import Metric, MetricBlock, MetricReport, TrajectoryStep
from server.db.models.people import ApiKey, BrowserSession, DeviceSignIn, Membership, Person, Project
from server.db.models.pools import Pilot, PoolStatus
from server.db.models.secrets import PersonSecret, ProjectSecret, SealedValue
from server.db.models.storage import Dataset, Garbage, LogChunk, RemovedPart

__all__ = [
    "DRAINING",
    "MAX_BIG_INTEGER",
    "MAX_INTEGER",
    "Allocation",
    "ApiKey",
    "Attempt",
    "AttemptMember",
    "AuditEntry",
    "AuditHead",
    "AuditPending",
    "Base",
    "BrowserSession",
    "Checkpoint",
    "Dataset",
    "DeviceSignIn",
    "EngineService",
    "ForkedFiles",
    "Garbage",
    "Job",
    "JobEvent",
    "Leader",
    "LogChunk",
    "Membership",
    "Metric",
    "MetricBlock",
    "MetricReport",
    "Node",
    "NodeSample",
    "Outbox",
    "OwnedByProject",
    "Person",
    "PersonSecret",
    "Pilot",
    "PoolStatus",
    "PriorityClass",
    "Project",
    "ProjectSecret",
    "RemovedPart",
    "Replay",
    "SealedValue",
    "ServerProcess",
    "TrajectoryStep",
    "UsageRecord",
    "UtcDateTime",
]

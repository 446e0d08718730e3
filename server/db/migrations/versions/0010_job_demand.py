"""what a job demands of the cluster is found out once, when it is submitted

Revision ID: 0010
Revises: 0006
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0006"
branch_labels = None
depends_on = None

_ENDED = ("finished", "failed", "cancelled")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("demand", sa.Text(), nullable=False, server_default=""))
    jobs = sa.table(
        "jobs",
        sa.column("id", sa.String),
        sa.column("state", sa.String),
        sa.column("spec", sa.JSON),
        sa.column("demand", sa.Text),
    )
    connection = op.get_bind()
    living = connection.execute(sa.select(jobs.c.id, jobs.c.spec).where(jobs.c.state.not_in(_ENDED))).all()
    for job_id, spec in living:
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(demand=_demand(spec)))


def downgrade() -> None:
    op.drop_column("jobs", "demand")


def _demand(spec: dict[str, Any]) -> str:
    """As server.jobs.demand had it when this was written."""
    resources, rollout = spec["resources"], spec["rollout"]
    split = resources.get("placement") == "split"
    vllm = rollout.get("engine") == "vllm" or rollout.get("publish") in ("gloo", "nccl", "ipc")
    demand = {
        "gpus": resources.get("gpus", 0),
        "rollout_gpus": 1 if split else 0,
        "vllm": vllm,
        "adapter": _adapter(spec),
    }
    return json.dumps(demand, separators=(",", ":"))


def _adapter(spec: dict[str, Any]) -> dict[str, Any] | None:
    model, rollout = spec["model"], spec["rollout"]
    if (
        model.get("lora") is None
        or rollout.get("sharing") == "own"
        or rollout.get("engine") == "transformers"
    ):
        return None
    dtype = model.get("dtype", "auto")
    auto = "bfloat16" if spec["resources"].get("gpus") else "float32"
    return {
        "model": model.get("name") or f"folder {model.get('folder')}",
        "dtype": auto if dtype == "auto" else dtype,
        "rank": model["lora"]["rank"],
        "tokens": rollout["max_new_tokens"] + 1,
        "required": rollout.get("sharing") == "shared",
        "same_host": rollout.get("publish") == "shm",
    }

"""numbers take less room and are found sooner

Jobs know their newest results. Metrics lie in order of step, with the steps of each report and summaries over
16 and 256 steps beside them; a step's trajectories are one packed value in place of a row of JSON each.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

from server.db.packing import pack, unpack_rows

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_RESULTS = {  # column -> metric, and which of its rows
    "last_p": ("p/mean", "TRUE"),
    "held_out_before": ("eval/reward", "step = 0"),
    "held_out": ("eval/reward", "TRUE"),
}
_NEWEST = """
    UPDATE jobs SET COLUMN = (
        SELECT value FROM metrics WHERE job_id = jobs.id AND name = 'METRIC' AND CONDITION
        ORDER BY step DESC, attempt DESC, "update" DESC LIMIT 1
    )
"""
_METRIC = ("job_id", "step", "attempt", "update", "name", "value", "seq")
_BLOCKS = """
    INSERT INTO metric_blocks
        (job_id, width, start, attempt, "update", name, last_step, count, finite, total, low, high)
    SELECT m.job_id, WIDTH, m.step / WIDTH * WIDTH, m.attempt, m."update", m.name,
        max(m.step), count(*), count(m.value), sum(m.value * SCALE), min(m.value), max(m.value)
    FROM metrics m JOIN attempts a ON a.job_id = m.job_id AND a.number = m.attempt
    WHERE m.step < a.summarised / WIDTH * WIDTH
    GROUP BY m.job_id, m.step / WIDTH * WIDTH, m.attempt, m."update", m.name
"""


def upgrade() -> None:
    _add_results()
    _reorder_metrics("step", "attempt")
    _add_reports()
    _add_blocks()
    _pack_trajectories()


def downgrade() -> None:
    _unpack_trajectories()
    op.drop_table("metric_blocks")
    op.drop_column("attempts", "summarised")
    op.drop_table("metric_reports")
    _reorder_metrics("attempt", "step")
    for name in _RESULTS:
        op.drop_column("jobs", name)
    op.create_index("ix_metrics_series", "metrics", ["job_id", "name", "step"])
    op.create_index("ix_metrics_job_id_seq", "metrics", ["job_id", "seq"])


def _add_results() -> None:
    """The list of jobs shows these; until here they were read from each job's metrics."""
    for name, (metric, condition) in _RESULTS.items():
        op.add_column("jobs", sa.Column(name, sa.Float(), nullable=True))
        op.execute(_NEWEST.replace("COLUMN", name).replace("METRIC", metric).replace("CONDITION", condition))


def _reorder_metrics(*order: str) -> None:
    """A new table with the key (job_id, *order, update, name); if by step, SQLite stores it sorted by it."""
    columns = {"attempt": sa.Column("attempt", sa.Integer(), nullable=False)}
    columns["step"] = sa.Column("step", sa.Integer(), nullable=False)
    op.rename_table("metrics", "metrics_before")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE metrics_before RENAME CONSTRAINT pk_metrics TO pk_metrics_before")
        op.execute(
            "ALTER TABLE metrics_before RENAME CONSTRAINT fk_metrics_job_id TO fk_metrics_before_job_id"
        )
    op.create_table(
        "metrics",
        sa.Column("job_id", sa.String(32), nullable=False),
        *(columns[name] for name in order),
        sa.Column("update", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_metrics_job_id"),
        sa.PrimaryKeyConstraint("job_id", *order, "update", "name", name="pk_metrics"),
        sqlite_with_rowid=order[0] != "step",
    )
    before, after = (sa.table(name, *map(sa.column, _METRIC)) for name in ("metrics_before", "metrics"))
    key = [before.c[name] for name in ("job_id", *order, "update", "name")]
    op.execute(after.insert().from_select(_METRIC, sa.select(*before.c).order_by(*key)))
    op.drop_table("metrics_before")


def _add_reports() -> None:
    op.create_table(
        "metric_reports",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("first_step", sa.Integer(), nullable=False),
        sa.Column("last_step", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_metric_reports_job_id"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_metric_reports"),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO metric_reports "
        "SELECT job_id, seq, min(step), max(step) FROM metrics GROUP BY job_id, seq"
    )


def _add_blocks() -> None:
    op.create_table(
        "metric_blocks",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("update", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("last_step", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("finite", sa.Integer(), nullable=False),
        sa.Column("total", sa.Float(), nullable=True),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_metric_blocks_job_id"),
        sa.PrimaryKeyConstraint(
            "job_id", "width", "start", "attempt", "update", "name", name="pk_metric_blocks"
        ),
        sqlite_with_rowid=False,
    )
    op.add_column("attempts", sa.Column("summarised", sa.Integer(), server_default="0", nullable=False))
    op.execute(
        "UPDATE attempts SET summarised = coalesce((SELECT max(step) / 16 * 16 FROM metrics "
        "WHERE metrics.job_id = attempts.job_id AND metrics.attempt = attempts.number), 0)"
    )
    for width in (16, 256):
        op.execute(_BLOCKS.replace("WIDTH", str(width)).replace("SCALE", repr(2.0**-32)))


_STEPS = sa.table("trajectory_steps", *map(sa.column, ("job_id", "step", "attempt", "rows")))
_TRAJECTORIES = sa.table(
    "trajectories",
    *map(sa.column, ("job_id", "step", "attempt", "index", "reward", "advantage")),
    sa.column("row", sa.JSON()),
)
_PLACE = ("job_id", "step", "attempt")


def _pack_trajectories() -> None:
    empty = sa.text("''")  # replaced below
    op.add_column(
        "trajectory_steps", sa.Column("rows", sa.LargeBinary(), server_default=empty, nullable=False)
    )
    bind = op.get_bind()
    for place in bind.execute(sa.select(*(_STEPS.c[name] for name in _PLACE))).all():
        rows = bind.execute(
            sa.select(_TRAJECTORIES.c.row)
            .where(*(_TRAJECTORIES.c[name] == getattr(place, name) for name in _PLACE))
            .order_by(_TRAJECTORIES.c.index)
        ).scalars()
        bind.execute(
            sa.update(_STEPS)
            .where(*(_STEPS.c[name] == getattr(place, name) for name in _PLACE))
            .values(rows=pack(rows.all()))
        )
    op.drop_table("trajectories")


def _unpack_trajectories() -> None:
    op.create_table(
        "trajectories",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("reward", sa.Float(), nullable=False),
        sa.Column("advantage", sa.Float(), nullable=False),
        sa.Column("row", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_trajectories_job_id"),
        sa.PrimaryKeyConstraint("job_id", "step", "attempt", "index", name="pk_trajectories"),
    )
    bind = op.get_bind()
    places = bind.execute(sa.select(*(_STEPS.c[name] for name in _PLACE))).all()
    for place in places:
        packed = bind.execute(
            sa.select(_STEPS.c.rows).where(*(_STEPS.c[name] == getattr(place, name) for name in _PLACE))
        ).scalar_one()
        rows = [
            place._asdict() | {name: row[name] for name in ("index", "reward", "advantage")} | {"row": row}
            for row in unpack_rows(packed)
        ]
        if rows:
            bind.execute(sa.insert(_TRAJECTORIES), rows)
    op.drop_column("trajectory_steps", "rows")

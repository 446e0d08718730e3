"""The tables' history: Alembic's environment and revisions."""

"""Backups of a service on SQLite: made while it runs, checked, and restored into a new folder."""

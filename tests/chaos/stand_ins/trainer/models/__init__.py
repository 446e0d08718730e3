"""Prepares nothing."""

"""Prepared problems, the local solver and the global search."""

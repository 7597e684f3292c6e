"""Processes of a run: ranks, the fork server, signals."""

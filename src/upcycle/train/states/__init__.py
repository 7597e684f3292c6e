"""States of a run on disk: checkpoints, rolling and sharded states, leases."""

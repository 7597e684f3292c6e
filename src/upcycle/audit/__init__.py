"""Every number of the paper, recomputed, with a verdict."""

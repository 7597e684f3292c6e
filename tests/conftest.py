"""For all tests: one thread of linear algebra, and one of torch, as the jobs have."""

import os

# Before anything imports numpy or torch.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

"""What a node of a cluster offers, as a profile's nodes.yaml states it beside the study and the settings of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upcycle.errors import UserError
from upcycle.study.shape import Frozen
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.study import describe_error
from upcycle.study.values import Count, Name, Positive, Whole

NODES = "nodes.yaml"
"""File of a profile that Snakemake reads as its `configfile`."""
START_UP_HOURS = 0.25
"""Of a job's wall time: start of its processes, reading the checkpoint, held-out evaluation, writing the result."""
TIME_SAFETY = 1.5
"""Wall time that is asked for, over the expected time of training."""


class Node(Frozen):
    """What one node offers to jobs of the partition."""

    gpus: Whole = 0
    """GPUs; 0 for nodes without."""
    gpu_type: Name | None = None
    """Their name in the scheduler, as in `gres/gpu:h100`; None: whichever there are."""
    cpus: Count
    """CPUs that jobs may take."""
    memory_gb: Positive
    """Memory that jobs may take, 10^9 bytes."""
    max_hours: Positive
    """Longest wall time of a job in the partition."""

    @property
    def segment_hours(self) -> float:
        """Hours of training that fit the longest job."""
        return max((self.max_hours - START_UP_HOURS) / TIME_SAFETY, self.max_hours / 4)


def split_config(config: dict[str, Any]) -> tuple[str | None, Node | None, dict[str, Any]]:
    """The study's name, the node and the settings of execution in Snakemake's `config`.

    Raises UserError naming the key of the node.
    """
    settings = dict(config)
    name = str(settings.pop("study")) if "study" in settings else None  # Snakemake reads `study=1` as a number
    node = settings.pop("node", None)
    try:
        return name, None if node is None else Node.model_validate(node), settings
    except ValidationError as error:
        raise UserError(f"`node` of the profile's {NODES}: {describe_error(error, Node)}") from None


def read_profile(folder: Path) -> dict[str, Any]:
    """What the nodes.yaml of a profile adds to Snakemake's `config`.

    Raises UserError if there is none.
    """
    if not (folder / NODES).is_file():
        raise UserError(f"--profile {folder}: it has no {NODES}; name a folder like profiles/slurm")
    return read_yaml(folder / NODES)

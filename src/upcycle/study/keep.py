"""What a study keeps of its finished runs."""

from __future__ import annotations

from typing import Literal

from upcycle.study.shape import Frozen


class KeepConfig(Frozen):
    """What stays of finished runs once all planned work that reads it is finished. Not identity: removing retrains
    nothing. A later study that needs a removed file must train its run again; `upcycle plan` says which."""

    state: Literal["all", "last", "none"] = "all"
    """Trunk points that a longer budget can continue from, by their weights and AdamW's moments: all, each trunk's
    last, or none."""
    weights: Literal["all", "finished", "none"] = "all"
    """Weights of all other runs: all, those of finished models alone, none. A mixture is upcycled from a finished
    model's weights, and an evaluation on another text reads them."""

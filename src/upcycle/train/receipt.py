"""The receipt of an upcycled start, measured by however many processes hold the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from upcycle.model import upcycling
from upcycle.model.transformer import Transformer
from upcycle.train.trainee import Trainee, run_batch


def measure_upcycling(
    trainee: Trainee, dense_state: Mapping[str, Tensor] | None, moe_state: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """What upcycling did (`upcycling.receipt`), on the run's first batch; states are whole, of the first process."""
    run = trainee.run
    ids = torch.from_numpy(run_batch(run, trainee.tokens, step=0)).to(trainee.device)
    assert dense_state is not None
    dense = Transformer(run.model, kernels=trainee.model.kernels).to(trainee.device)
    dense.load_state_dict(dense_state)
    return upcycling.receipt(
        dense,
        trainee.model,
        ids[:, :-1],
        ids[:, 1:],
        method=run.origin.partition(":")[2],
        lr=run.optim.lr,
        betas=(run.optim.beta1, run.optim.beta2),
        weight_decay=run.optim.weight_decay,
    )

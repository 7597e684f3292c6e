"""A run in training: its model, wherever it is held, and the batches that it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upcycle.data.batches import batch
from upcycle.data.tokens import TokenSet
from upcycle.model.kernels import Kernels
from upcycle.model.rope import rope_tables
from upcycle.model.transformer import Transformer
from upcycle.study.execution import Execution
from upcycle.study.shape import MoESpec
from upcycle.study.spec import RunSpec
from upcycle.train.processes.distributed import Group
from upcycle.train.record import Clock
from upcycle.train.spikes import Spikes
from upcycle.train.states.saving import Saver


@dataclass
class Trainee:
    """A run in training: everything that it needs to go on."""

    run: RunSpec
    run_dir: Path
    execution: Execution
    tokens: TokenSet
    model: Transformer
    optimizer: torch.optim.AdamW
    clock: Clock
    step: int = 0
    """Updates done since scratch or upcycling."""
    spikes: Spikes = field(default_factory=Spikes)
    saver: Saver = field(default_factory=Saver)
    group: Group = field(default_factory=Group)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embed.weight.device

    @property
    def updates(self) -> int:
        """Steps of AdamW: the updates done, without those that were skipped."""
        return self.step - self.spikes.skipped

    @property
    def eval_batch(self) -> int:
        """Sequences that the data ranks evaluate at a time: `execution.eval_batch` each."""
        return self.execution.eval_batch * self.group.data_size

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the model or the optimizer as files of finished runs hold them, for the first process to write.

        All processes call it; the others get nothing. Several processes: on the CPU, gathered one by one.
        """
        if self.group.size == 1:
            return tensors
        from upcycle.model.parallel import full_state

        return full_state(tensors, keep=self.group.is_first)


def build_model(
    run: RunSpec,
    moe: MoESpec | None,
    kernels: Kernels,
    device: torch.device,
    group: Group,
    *,
    mixed: bool,
    whole: bool = False,
) -> Transformer:
    """A model without values; spread over the processes of the group (`parallelize` has `mixed` and `whole`)."""
    if group.mesh is None:
        return Transformer(run.model, moe, kernels).to(device)
    from upcycle.model.parallel import parallelize  # a second of imports that one process does not need

    with torch.device("meta"):
        model = Transformer(run.model, moe, kernels)
    parallelize(model, group.mesh, mixed=mixed, whole=whole)
    return model.to_empty(device=device)


def use_execution(model: Transformer, execution: Execution) -> None:
    """Recompute or compile blocks, as asked for; changes rounding and speed only."""
    model.recompute = execution.activation_checkpointing == "block"
    if execution.compile:
        # Else a compiled block computes the angles of every token and head again. (A decorator would import the
        # compiler into every process.)
        torch.compiler.assume_constant_result(rope_tables)
        for block in model.blocks:
            _compile(block)


def _compile(block: nn.Module) -> None:
    """Compile the inside of a block, for training: all blocks share one graph, hooks around them stay as they are.

    Evaluating stays eager: its batch sizes and lack of gradients would each be a graph more, for a few passes.
    """
    eager, compiled = block.forward, torch.compile(block.forward, dynamic=False)

    def forward(*inputs: Tensor) -> Any:
        return (compiled if block.training else eager)(*inputs)

    block.forward = forward


def run_batch(run: RunSpec, tokens: TokenSet, step: int) -> np.ndarray:
    """Token ids (batch, context + 1) of the update with index `step`: a pure function of the run's recipe."""
    recipe = run.data
    return batch(
        tokens.train,
        context=run.model.context,
        batch=run.optim.batch,
        step=step,
        seed=recipe.seed,
        start=recipe.start,
        stop=recipe.stop,
        repeat=recipe.repeat,
    )

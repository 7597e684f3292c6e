"""torch.compile, block by block: one graph serves all blocks of a model, and hooks around them stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch

from upcycle.model.moe import MoE
from upcycle.model.transformer import Transformer


def compile_blocks(model: Transformer, dtype: str) -> None:
    """Compile the inside of every block, in place; parameters keep their names.

    In float32 the experts stay outside the graph: the compiler traces grouped products of bfloat16 only.
    """
    if dtype != "bfloat16":
        for module in model.modules():
            if isinstance(module, MoE):
                module.kernels = replace(module.kernels, experts=torch.compiler.disable(module.kernels.experts))
    for block in model.blocks:
        block.forward = torch.compile(block.forward, dynamic=False)

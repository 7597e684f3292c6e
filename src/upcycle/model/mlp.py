"""The SwiGLU MLP of a dense layer, and of a mixture's shared experts.

Shapes: B sequences, S positions, D d_model, M width of the hidden layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.model.stacks import own
from upcycle.model.torch_kernels import swiglu


class MLP(nn.Module):
    """SwiGLU MLP without biases; `w_in` (2M, D) stacks the gate's rows over the up projection's, `w_out` is (D, M)."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(2 * width, d_model))
        self.w_out = nn.Parameter(torch.empty(d_model, width))

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return F.linear(swiglu(F.linear(x_BSD, own(self.w_in).flatten(0, -2))), own(self.w_out))

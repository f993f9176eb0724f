"""Mixed precision as a part of the network, so that whoever trains the task trains it so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class InBfloat16(nn.Module):
    """Computes a network in bfloat16 where autocast does so; weights and loss stay in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network makes of its inputs, in float32."""
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return torch.as_tensor(self.net(*inputs)).float()


def mixed(net: Callable[[], nn.Module]) -> nn.Module:
    """A network with fresh weights, computed in bfloat16."""
    return InBfloat16(net())

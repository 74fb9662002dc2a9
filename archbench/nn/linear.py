from __future__ import annotations

from torch import Tensor, nn
import torch.nn.functional as F


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

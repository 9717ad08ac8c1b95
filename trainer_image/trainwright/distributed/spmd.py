"""PyTorch/XLA: one process drives all devices of its host, and the compiler partitions the program over them.

For the loop that is one process: the sums over gradients are the compiler's, and a batch is split when it is placed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainwright.devices import xla
from trainwright.distributed.native import OneProcess


class Spmd(OneProcess):
    """The devices of one host under torch_xla; see :mod:`trainwright.devices.xla`."""

    def place(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return xla.Feed(self.device)

"""PyTorch/XLA: one process drives all devices of its host, and the compiler partitions the program over them.

For the loop this is one process: the compiler sums the gradients, and a batch is split when it moves to the devices.
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

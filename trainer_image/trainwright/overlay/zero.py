"""What transformers needs to make a model for ZeRO 3, which it partitions before our Trainer has made the engine.

``from_pretrained`` partitions each parameter with the configuration in transformers' arguments. So that one has to be
complete by then, with what our Trainer takes from the arguments otherwise.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

_OF_ARGUMENTS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""Keys that DeepSpeed asks for, and that follow the arguments where they are absent."""


def complete_configurations() -> None:
    """Fill configurations of transformers' arguments as our Trainer does, and prepare DeepSpeed for ZeRO 3."""
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    config: Any = HfTrainerDeepSpeedConfig
    process = config.trainer_config_process

    @wraps(process)
    def completed(self: Any, *args: Any, **kwargs: Any) -> None:
        for key in _OF_ARGUMENTS:
            self.config.setdefault(key, "auto")
        process(self, *args, **kwargs)
        if self.is_zero3():
            import torch.distributed

            from trainwright.distributed.deepspeed import imported

            deepspeed = imported()
            if torch.distributed.is_initialized():
                deepspeed.init_distributed()  # else it would count one process

    config.trainer_config_process = completed

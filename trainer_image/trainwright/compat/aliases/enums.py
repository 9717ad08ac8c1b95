"""The enums where the ``training_args.bin`` of earlier checkpoints names them."""

from trainwright.arguments.enums import *  # noqa: F403

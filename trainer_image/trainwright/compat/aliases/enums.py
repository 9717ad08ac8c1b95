"""The enums under the name in ``training_args.bin`` of earlier checkpoints."""

from trainwright.arguments.enums import *  # noqa: F403

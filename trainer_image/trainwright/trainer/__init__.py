"""The Trainer as its users know it: the class that they call and override, and checks of what it is given."""

from trainwright.trainer.trainer import DEFAULT_CALLBACKS as DEFAULT_CALLBACKS
from trainwright.trainer.trainer import DEFAULT_PROGRESS_CALLBACK as DEFAULT_PROGRESS_CALLBACK
from trainwright.trainer.trainer import OPTIMIZER_NAME as OPTIMIZER_NAME
from trainwright.trainer.trainer import SCALER_NAME as SCALER_NAME
from trainwright.trainer.trainer import SCHEDULER_NAME as SCHEDULER_NAME
from trainwright.trainer.trainer import TRAINER_STATE_NAME as TRAINER_STATE_NAME
from trainwright.trainer.trainer import TRAINING_ARGS_NAME as TRAINING_ARGS_NAME
from trainwright.trainer.trainer import Trainer as Trainer

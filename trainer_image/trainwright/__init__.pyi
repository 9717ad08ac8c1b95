"""What ``from trainwright import ...`` gives, for type checkers and editors; a test holds it to the table."""

from transformers import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
from transformers import DataCollatorForSeq2Seq as DataCollatorForSeq2Seq
from transformers import DataCollatorForTokenClassification as DataCollatorForTokenClassification
from transformers import DataCollatorWithFlattening as DataCollatorWithFlattening
from transformers import HfArgumentParser as HfArgumentParser

from trainwright.arguments import AcceleratorConfig as AcceleratorConfig
from trainwright.arguments import Seq2SeqTrainingArguments as Seq2SeqTrainingArguments
from trainwright.arguments import TrainingArguments as TrainingArguments
from trainwright.arguments.enums import HPSearchBackend as HPSearchBackend
from trainwright.arguments.enums import HubStrategy as HubStrategy
from trainwright.arguments.enums import IntervalStrategy as IntervalStrategy
from trainwright.arguments.enums import OptimizerNames as OptimizerNames
from trainwright.arguments.enums import ParallelMode as ParallelMode
from trainwright.arguments.enums import SaveStrategy as SaveStrategy
from trainwright.arguments.enums import SchedulerType as SchedulerType
from trainwright.callbacks.callback import CallbackHandler as CallbackHandler
from trainwright.callbacks.callback import TrainerCallback as TrainerCallback
from trainwright.callbacks.flow import DefaultFlowCallback as DefaultFlowCallback
from trainwright.callbacks.flow import EarlyStoppingCallback as EarlyStoppingCallback
from trainwright.callbacks.state import ExportableState as ExportableState
from trainwright.callbacks.state import TrainerControl as TrainerControl
from trainwright.callbacks.state import TrainerState as TrainerState
from trainwright.checkpoint.deferred import deferred_weights as deferred_weights
from trainwright.checkpoint.store import get_last_checkpoint as get_last_checkpoint
from trainwright.compat.helpers import denumpify_detensorize as denumpify_detensorize
from trainwright.compat.helpers import find_executable_batch_size as find_executable_batch_size
from trainwright.compat.helpers import get_dataloader_sampler as get_dataloader_sampler
from trainwright.compat.helpers import get_model_param_count as get_model_param_count
from trainwright.compat.helpers import get_parameter_names as get_parameter_names
from trainwright.compat.helpers import has_length as has_length
from trainwright.compat.helpers import is_main_process as is_main_process
from trainwright.compat.helpers import number_of_arguments as number_of_arguments
from trainwright.compat.helpers import torch_distributed_zero_first as torch_distributed_zero_first
from trainwright.compat.helpers import total_processes_number as total_processes_number
from trainwright.compat.nested import EvalLoopContainer as EvalLoopContainer
from trainwright.compat.nested import atleast_1d as atleast_1d
from trainwright.compat.nested import distributed_broadcast_scalars as distributed_broadcast_scalars
from trainwright.compat.nested import distributed_concat as distributed_concat
from trainwright.compat.nested import expand_like as expand_like
from trainwright.compat.nested import find_batch_size as find_batch_size
from trainwright.compat.nested import nested_concat as nested_concat
from trainwright.compat.nested import nested_detach as nested_detach
from trainwright.compat.nested import nested_gather as nested_gather
from trainwright.compat.nested import nested_new_like as nested_new_like
from trainwright.compat.nested import nested_numpify as nested_numpify
from trainwright.compat.nested import nested_truncate as nested_truncate
from trainwright.compat.nested import numpy_pad_and_concatenate as numpy_pad_and_concatenate
from trainwright.compat.nested import torch_pad_and_concatenate as torch_pad_and_concatenate
from trainwright.contract import DataError as DataError
from trainwright.contract import UserError as UserError
from trainwright.data.collators import DataCollatorWithPadding as DataCollatorWithPadding
from trainwright.data.collators import DefaultDataCollator as DefaultDataCollator
from trainwright.data.collators import default_data_collator as default_data_collator
from trainwright.data.samplers import LengthGroupedSampler as LengthGroupedSampler
from trainwright.devices.seeding import enable_full_determinism as enable_full_determinism
from trainwright.devices.seeding import set_seed as set_seed
from trainwright.integrations.progress import PrinterCallback as PrinterCallback
from trainwright.integrations.progress import ProgressCallback as ProgressCallback
from trainwright.outputs import BestRun as BestRun
from trainwright.outputs import EvalLoopOutput as EvalLoopOutput
from trainwright.outputs import EvalPrediction as EvalPrediction
from trainwright.outputs import PredictionOutput as PredictionOutput
from trainwright.outputs import TrainOutput as TrainOutput
from trainwright.search.spaces import default_compute_objective as default_compute_objective
from trainwright.search.spaces import default_hp_space_optuna as default_hp_space_optuna
from trainwright.search.spaces import default_hp_space_ray as default_hp_space_ray
from trainwright.search.spaces import default_hp_space_wandb as default_hp_space_wandb
from trainwright.trainer.seq2seq import Seq2SeqTrainer as Seq2SeqTrainer
from trainwright.trainer.trainer import Trainer as Trainer
from trainwright.training.losses import LabelSmoother as LabelSmoother
from trainwright.training.memory import TrainerMemoryTracker as TrainerMemoryTracker
from trainwright.training.metrics import speed_metrics as speed_metrics
from trainwright.training.optimizers.factory import Adafactor as Adafactor
from trainwright.training.schedulers import GreedyLR as GreedyLR
from trainwright.training.schedulers import get_constant_schedule as get_constant_schedule
from trainwright.training.schedulers import get_constant_schedule_with_warmup as get_constant_schedule_with_warmup
from trainwright.training.schedulers import get_cosine_schedule_with_warmup as get_cosine_schedule_with_warmup
from trainwright.training.schedulers import (
    get_cosine_with_hard_restarts_schedule_with_warmup as get_cosine_with_hard_restarts_schedule_with_warmup,
)
from trainwright.training.schedulers import (
    get_cosine_with_min_lr_schedule_with_warmup as get_cosine_with_min_lr_schedule_with_warmup,
)
from trainwright.training.schedulers import (
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate as get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
)
from trainwright.training.schedulers import get_inverse_sqrt_schedule as get_inverse_sqrt_schedule
from trainwright.training.schedulers import get_linear_schedule_with_warmup as get_linear_schedule_with_warmup
from trainwright.training.schedulers import (
    get_polynomial_decay_schedule_with_warmup as get_polynomial_decay_schedule_with_warmup,
)
from trainwright.training.schedulers import get_reduce_on_plateau_schedule as get_reduce_on_plateau_schedule
from trainwright.training.schedulers import get_scheduler as get_scheduler
from trainwright.training.schedulers import get_wsd_schedule as get_wsd_schedule

__version__: str

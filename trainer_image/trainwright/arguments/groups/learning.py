"""How long to train, how fast, with which optimizer."""

from trainwright.arguments.shapes import (
    Count,
    Decay,
    Flag,
    KeyValues,
    MaybePath,
    NonNegative,
    Object,
    Optimizer,
    Scheduler,
    Share,
    TextOrTexts,
    UnsetOrCount,
    argument,
    group,
)


@group("Output and duration")
class Duration:
    output_dir: MaybePath = argument(
        None,
        "Folder for checkpoints, the final model and the trainer's state; made when missing. Left out, it is "
        "trainer_output in the working directory.",
    )
    per_device_train_batch_size: Count = argument(
        8,
        "Samples that one device takes in one forward and backward pass while training. Times the number of processes "
        "and gradient_accumulation_steps it gives the samples of one optimizer step. Lower it when memory runs out.",
    )
    num_train_epochs: NonNegative = argument(
        3.0,
        "Passes over the training data; a fraction ends within a pass. Not looked at when max_steps is above 0.",
    )
    max_steps: UnsetOrCount = argument(
        -1,
        "Optimizer steps to train for, starting over on the data as often as needed; above 0 it overrides "
        "num_train_epochs, -1 and 0 leave the length to the epochs. Needed for data whose length is not known, such "
        "as a stream.",
    )


@group("Learning rate")
class LearningRate:
    learning_rate: NonNegative = argument(
        5e-5,
        "Step size of the optimizer at its highest: after the warmup, before the decay. The argument most worth "
        "tuning: about 5e-5 suits fine-tuning, 1e-4 to 1e-3 the training of small models from scratch.",
    )
    lr_scheduler_type: Scheduler = argument(
        "linear",
        "Curve that the learning rate follows over the steps. linear and cosine fall to 0, constant stays, "
        "warmup_stable_decay holds and then falls, reduce_lr_on_plateau and greedy follow the evaluation.",
    )
    lr_scheduler_kwargs: Object = argument(
        None,
        "Further settings of the curve by name, for instance num_cycles, min_lr, num_decay_steps or power; each "
        "lr_scheduler_type has its own.",
    )
    warmup_steps: NonNegative = argument(
        0,
        "Steps in which the learning rate rises from 0 to learning_rate. A value below 1 is a share of all steps. "
        "Raise it when the loss jumps at the start.",
    )


@group("Optimizer")
class Optimization:
    optim: Optimizer = argument(
        "adamw_torch_fused",
        "The optimizer. adamw_torch_fused updates all parameters in one kernel; sgd and adafactor keep less state in "
        "memory. Those of packages (bitsandbytes, galore-torch, apollo-torch, schedulefree and others) need the "
        "package in the image. Those free of a schedule want a constant learning rate.",
    )
    optim_args: KeyValues = argument(
        None,
        "Further settings of the optimizer as one text, key=value with commas between, for instance momentum=0.9, or "
        "rank=128 of the low-rank ones. A setting that it does not have is an error.",
    )
    weight_decay: NonNegative = argument(
        0.0,
        "Share of each weight, times the learning rate, that the optimizer takes off in every step; biases and "
        "normalization layers are spared. 0.01 to 0.1 is usual.",
    )
    adam_beta1: Decay = argument(
        0.9, "How slowly Adam's running mean of the gradients forgets: the share kept in each step."
    )
    adam_beta2: Decay = argument(
        0.999,
        "How slowly Adam's running mean of the squared gradients forgets: the share kept in each step. 0.95 is usual "
        "for language models with large batches.",
    )
    adam_epsilon: NonNegative = argument(
        1e-8, "Added to the divisor of Adam's update so that it never divides by 0. Raise it when updates explode."
    )
    optim_target_modules: TextOrTexts = argument(
        None,
        "Linear layers that a low-rank optimizer (GaLore, APOLLO) projects: parts of their names, a regular expression "
        "for the whole name, or all-linear.",
    )


@group("Batches and stability")
class Stability:
    gradient_accumulation_steps: Count = argument(
        1,
        "Batches whose gradients are summed before the optimizer steps: a larger batch without its memory. Logging, "
        "evaluation and saving count optimizer steps, not batches.",
    )
    average_tokens_across_devices: Flag = argument(
        True,
        "Divide the loss by the tokens of all processes together instead of each by its own, so that uneven batches "
        "weigh every token alike. Costs one small sum over the processes in each step.",
    )
    max_grad_norm: NonNegative = argument(
        1.0,
        "Longest gradient, as a norm over all parameters, that the optimizer may see; a longer one is scaled down. 0 "
        "switches clipping off.",
    )
    label_smoothing_factor: Share = argument(
        0.0,
        "Share of each target's probability that is spread evenly over all classes, which keeps a model from "
        "overconfidence. 0 is off, 0.1 is usual.",
    )

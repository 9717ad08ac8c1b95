"""What a run reports: logs, trackers, evaluation."""

from trainwright.arguments.shapes import (
    Choice,
    Count,
    Flag,
    Interval,
    MaybeCount,
    MaybeFlag,
    MaybeNonNegative,
    MaybeText,
    NonNegative,
    Text,
    TextOrFlag,
    Texts,
    TokenCounting,
    Trackers,
    argument,
    group,
)

LOG_LEVELS = ["detail", "debug", "info", "warning", "error", "critical", "passive"]


@group("Logging")
class Logging:
    logging_strategy: Interval = argument(
        "steps", "When loss and learning rate are logged: never (no), every logging_steps, or at the end of each epoch."
    )
    logging_steps: NonNegative = argument(
        500,
        "Optimizer steps between two logs; a value below 1 is a share of all steps. Also the step of the evaluation "
        "when eval_steps is left out. Every log waits for the device, so very small values slow training.",
    )
    logging_first_step: Flag = argument(False, "Log the first step too, besides what logging_strategy says.")
    log_on_each_node: Flag = argument(
        True, "With several nodes, log at log_level on the first process of each; otherwise on rank 0 alone."
    )
    logging_nan_inf_filter: Flag = argument(
        True,
        "Leave steps whose loss is NaN or infinite out of the logged mean. Only the log changes, never the training.",
    )
    include_num_input_tokens_seen: TokenCounting = argument(
        "no",
        "Count the input tokens trained on and log them: all, non_padding (without padding), or no. True means all, "
        "false means no.",
    )
    log_level: Choice = argument(
        "passive",
        "Lowest level of messages that the main process prints; passive leaves the program's own setting.",
        choices=LOG_LEVELS,
    )
    log_level_replica: Choice = argument(
        "warning",
        "Lowest level of messages that the other processes print; passive leaves the program's own setting.",
        choices=LOG_LEVELS,
    )
    disable_tqdm: MaybeFlag = argument(
        None, "Show no progress bar. Left out, it is shown unless the log level is above warning."
    )
    report_to: Trackers = argument(
        "none",
        "Experiment trackers that get the logs, by name; none for no tracker, all for every installed one.",
    )
    run_name: MaybeText = argument(None, "A name for the run, for people and trackers.")
    project: Text = argument("huggingface", "Project that Trackio files the run under.")
    trackio_space_id: MaybeText = argument(
        None, "Hugging Face Space that shows the run live through Trackio. Left out, Trackio logs locally."
    )
    trackio_bucket_id: MaybeText = argument(
        None, "Hugging Face bucket that the Trackio Space stores in. Left out, Trackio chooses one."
    )
    trackio_static_space_id: TextOrFlag = argument(
        None, "Static Hugging Face Space that keeps the Trackio dashboard after the run; false for none."
    )


@group("Evaluation")
class Evaluation:
    eval_strategy: Interval = argument(
        "no", "When the model is evaluated while training: never (no), every eval_steps, or at the end of each epoch."
    )
    eval_steps: MaybeNonNegative = argument(
        None,
        "Optimizer steps between two evaluations; a value below 1 is a share of all steps. Left out, it is "
        "logging_steps.",
    )
    eval_delay: NonNegative = argument(
        0,
        "Do not evaluate before so many epochs (eval_strategy epoch) or steps (eval_strategy steps).",
    )
    per_device_eval_batch_size: Count = argument(
        8,
        "Samples that one device takes in one forward pass of evaluation and prediction. Without a backward pass it "
        "may be larger than in training.",
    )
    prediction_loss_only: Flag = argument(
        False, "Evaluate the loss alone: predictions are dropped, metrics are not computed, memory is saved."
    )
    eval_on_start: Flag = argument(
        False, "Evaluate once before the first step: a baseline, and an early sign of a broken evaluation."
    )
    eval_do_concat_batches: Flag = argument(
        True,
        "Join the predictions of all batches into one array for the metrics. When false they stay a list of batches, "
        "for outputs that cannot be joined.",
    )
    eval_use_gather_object: Flag = argument(
        False, "Gather nested Python objects instead of tensors from all processes; slow, for unusual labels."
    )
    eval_accumulation_steps: MaybeCount = argument(
        None,
        "Batches of predictions to keep on the device before they move to the CPU. Left out, all stay until the end, "
        "which is fastest and takes the most memory.",
    )
    include_for_metrics: Texts = argument(
        list,
        "What compute_metrics gets besides predictions and labels: inputs, and loss (one value a sample).",
        choices=["inputs", "loss"],
    )
    batch_eval_metrics: Flag = argument(
        False, "Call compute_metrics after every batch instead of once with all predictions, to save memory."
    )

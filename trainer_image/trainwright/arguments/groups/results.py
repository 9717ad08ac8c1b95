"""The results of a run: checkpoints, the best model, a copy on the Hub."""

from trainwright.arguments.shapes import (
    Flag,
    HubPush,
    Limit,
    MaybeFlag,
    MaybeText,
    NonNegative,
    SaveInterval,
    argument,
    group,
)


@group("Checkpoints")
class Checkpoints:
    save_only_model: Flag = argument(
        False,
        "Write the weights alone, without optimizer, scheduler and random state: much smaller checkpoints that "
        "training cannot resume from.",
    )
    save_strategy: SaveInterval = argument(
        "steps",
        "When a checkpoint is written: never (no), every save_steps, at the end of each epoch, or whenever "
        "metric_for_best_model improves (best).",
    )
    save_steps: NonNegative = argument(
        500,
        "Optimizer steps between two checkpoints; a value below 1 is a share of all steps. What a crash can cost is "
        "the work since the last one.",
    )
    save_on_each_node: Flag = argument(
        False,
        "Write checkpoints on every node instead of the first alone. For nodes that share no storage; never on shared "
        "storage, where they would write the same files.",
    )
    save_total_limit: Limit = argument(
        None,
        "Checkpoints to keep; older ones are deleted, the best one never when load_best_model_at_end is set. Left "
        "out or 0, all are kept.",
    )
    enable_jit_checkpoint: Flag = argument(
        False,
        "Write a checkpoint when the process is told to end (SIGTERM), and end as preempted. A TrainingJob always "
        "does; this is for scripts that python or torchrun starts.",
    )


@group("Hub")
class Hub:
    push_to_hub: Flag = argument(False, "Upload the model to the Hugging Face Hub whenever it is saved.")
    hub_token: MaybeText = argument(
        None, "Token for the upload. Left out, the one that hf auth login stored. It is never written to a file."
    )
    hub_private_repo: MaybeFlag = argument(
        None, "Make the repository private when it is created. Left out, the organization's default holds."
    )
    hub_model_id: MaybeText = argument(
        None, "Repository to upload to, name or organization/name. Left out, it is named after output_dir."
    )
    hub_strategy: HubPush = argument(
        "every_save",
        "What is uploaded and when: the final model (end), the model at each save (every_save), also the latest "
        "checkpoint (checkpoint), or every checkpoint (all_checkpoints).",
    )
    hub_always_push: Flag = argument(
        False, "Upload even while the previous upload is still under way, instead of skipping."
    )
    hub_revision: MaybeText = argument(None, "Branch, tag or commit of the repository to upload to.")


@group("Best model and resuming")
class BestModel:
    load_best_model_at_end: Flag = argument(
        False,
        "At the end of training load the checkpoint with the best metric, and never delete it. Evaluation and saving "
        "must go hand in hand for this.",
    )
    metric_for_best_model: MaybeText = argument(
        None,
        "Metric that tells which model is best: a name that evaluation returns, with or without eval_. Left out, it "
        "is loss where one is needed.",
    )
    greater_is_better: MaybeFlag = argument(
        None,
        "Whether a higher metric is better. Left out, it is true unless the metric's name ends in loss.",
    )
    ignore_data_skip: Flag = argument(
        False,
        "On resuming start at the beginning of the epoch's data instead of where the run had stopped: a faster start, "
        "but not the same result.",
    )
    restore_callback_states_from_checkpoint: Flag = argument(
        False, "On resuming take the state of callbacks from the checkpoint instead of those given to the Trainer."
    )

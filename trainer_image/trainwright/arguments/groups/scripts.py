"""Arguments for debugging, for scripts around the Trainer, and for sequence-to-sequence models."""

from trainwright.arguments.shapes import DebugOptions, Flag, MaybeCount, MaybeText, UnsetOrCount, argument, group
from trainwright.arguments.shapes import Generation as GenerationSettings


@group("Diagnosis and script flags")
class Diagnosis:
    debug: DebugOptions = argument(
        "",
        "Checks to switch on, with spaces between: underflow_overflow (stop at the first module that takes or gives a "
        "value that is not finite, and log what came before; slow), tpu_metrics_debug (print TPU counters after each "
        "evaluation).",
    )
    skip_memory_metrics: Flag = argument(True, "Leave the memory used out of the metrics. Measuring it slows training.")
    do_train: Flag = argument(False, "For scripts: whether to train. The Trainer itself does not look at it.")
    do_eval: Flag = argument(
        False,
        "For scripts: whether to evaluate. Set by itself when eval_strategy is not no. The Trainer itself does not "
        "look at it.",
    )
    do_predict: Flag = argument(
        False, "For scripts: whether to predict on test data. The Trainer itself does not look at it."
    )
    resume_from_checkpoint: MaybeText = argument(
        None,
        "For scripts: checkpoint folder to pass to Trainer.train(resume_from_checkpoint=...). The Trainer itself does "
        "not look at it.",
    )
    local_rank: UnsetOrCount = argument(
        -1,
        "For old launchers that pass it: index of the process on its node. What counts is local_process_index, which "
        "comes from the environment.",
    )


@group("Sequence to sequence")
class Generation:
    sortish_sampler: Flag = argument(
        False, "Order training samples roughly by length, with some randomness, to pad less."
    )
    predict_with_generate: Flag = argument(
        False, "Generate text in evaluation and prediction, for metrics such as ROUGE and BLEU."
    )
    generation_max_length: MaybeCount = argument(
        None, "Longest text to generate in evaluation, in tokens. Left out, the model's own setting holds."
    )
    generation_num_beams: MaybeCount = argument(
        None, "Beams of the search when generating in evaluation. Left out, the model's own setting holds."
    )
    generation_config: GenerationSettings = argument(
        None, "Settings for generating in evaluation: a GenerationConfig, its folder, or a model to take it from."
    )

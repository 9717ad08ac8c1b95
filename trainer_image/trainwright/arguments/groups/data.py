"""How samples become batches."""

from trainwright.arguments.shapes import (
    Choice,
    CountOrNone,
    Flag,
    MaybeChoice,
    MaybeCount,
    MaybeTexts,
    Text,
    argument,
    group,
)


@group("Data loading")
class DataLoading:
    dataloader_drop_last: Flag = argument(
        False,
        "Leave out the last batch of a training epoch when it is not full, so that all batches have one shape. "
        "Evaluation and prediction take every sample all the same, where Hugging Face's Trainer leaves some out.",
    )
    dataloader_num_workers: CountOrNone = argument(
        0,
        "Extra processes a rank that load and collate samples; 0 does it in the training process. Raise it when the "
        "device waits for data.",
    )
    dataloader_pin_memory: Flag = argument(
        True, "Load batches into memory that an accelerator copies from faster. Switched off by use_cpu."
    )
    dataloader_persistent_workers: Flag = argument(
        False,
        "Keep the loading processes alive between epochs: no new start, at the price of their memory. Needs "
        "dataloader_num_workers above 0.",
    )
    dataloader_prefetch_factor: MaybeCount = argument(
        None,
        "Batches that each loading process prepares ahead; PyTorch's own choice is 2. Needs dataloader_num_workers "
        "above 0.",
    )
    dataloader_multiprocessing_context: MaybeChoice = argument(
        None,
        "How loading processes start. Left out, they are forked from a small process without threads, so that no lock "
        "of the training can stall them; data that cannot be sent there (an open file, over 64 MiB) is forked with the "
        "training itself, as fork always does. spawn and forkserver import anew.",
        choices=["fork", "spawn", "forkserver"],
    )
    dataloader_in_order: Flag = argument(
        True,
        "Yield batches in the order of the sampler. When false, whichever is ready first comes first, which hides "
        "slow samples and gives up reproducibility.",
    )
    remove_unused_columns: Flag = argument(
        True, "Drop columns of the data that the model's forward does not take. Off for collators that need them."
    )
    label_names: MaybeTexts = argument(
        None,
        "Arguments of the model's forward that are labels. Left out, they are those whose names contain label. None "
        "may be called just label, which collators rename.",
    )
    train_sampling_strategy: Choice = argument(
        "random",
        "Order of the training samples: shuffled (random), as stored (sequential), samples of like length together "
        "(group_by_length), or batches balanced over the processes by their padding (batch_rebalance).",
        choices=["random", "sequential", "group_by_length", "batch_rebalance"],
    )
    length_column_name: Text = argument(
        "length",
        "Column that holds the length of each sample, for the sampling strategies that look at lengths; without such "
        "a column lengths are measured at the start.",
    )

"""How and where a run computes: number formats, memory, reproducibility, processes."""

from trainwright.arguments.shapes import (
    Count,
    Flag,
    MaybeChoice,
    MaybeCount,
    MaybeFlag,
    MaybeNonNegative,
    MaybeSeed,
    MaybeText,
    Object,
    ObjectOrPath,
    Seed,
    Sizes,
    TextOrFlag,
    argument,
    group,
)


@group("Number formats")
class Precision:
    bf16: Flag = argument(
        False,
        "Compute in bfloat16 where it is safe, with the weights in float32. Faster and smaller on hardware that has "
        "it, and more robust than fp16.",
    )
    fp16: Flag = argument(
        False,
        "Compute in float16 where it is safe, with the weights in float32 and the loss scaled so that small "
        "gradients survive. For hardware without bfloat16.",
    )
    bf16_full_eval: Flag = argument(
        False,
        "Convert the whole model to bfloat16 for evaluation: half the memory, with metrics that may differ slightly.",
    )
    fp16_full_eval: Flag = argument(
        False,
        "Convert the whole model to float16 for evaluation: half the memory, with metrics that may differ slightly.",
    )
    tf32: MaybeFlag = argument(
        None,
        "Let float32 matrix products on Ampere and newer NVIDIA GPUs round their inputs to 19 bits, which is several "
        "times faster. Left out, PyTorch's own setting stays.",
    )


@group("Memory and compilation")
class Memory:
    activation_checkpointing: MaybeFlag = argument(
        None,
        "Keep only some activations of the forward pass and compute the others again in the backward pass: much less "
        "memory, steps about a fifth slower.",
        nargs="?",
        const=True,
    )
    activation_checkpointing_kwargs: Object = argument(
        None,
        "Settings of activation checkpointing by name: use_reentrant and what else torch.utils.checkpoint takes, or "
        "what the model's own activation checkpointing understands.",
    )
    gradient_checkpointing: MaybeFlag = argument(
        None,
        "Older name of activation_checkpointing; that one counts when both are given.",
        nargs="?",
        const=True,
    )
    gradient_checkpointing_kwargs: Object = argument(
        None, "Older name of activation_checkpointing_kwargs; that one counts when both are given."
    )
    torch_compile: Flag = argument(
        False,
        "Compile the model with torch.compile: the first steps take minutes, the later ones are faster. Pays off in "
        "long runs with batches of one shape.",
    )
    torch_compile_backend: MaybeText = argument(
        None, "Compiler behind torch.compile, inductor when left out. Naming one switches torch_compile on."
    )
    torch_compile_mode: MaybeText = argument(
        None,
        "What torch.compile optimizes for: default, reduce-overhead, max-autotune or max-autotune-no-cudagraphs. "
        "Naming one switches torch_compile on.",
    )
    use_liger_kernel: Flag = argument(
        False, "Replace parts of a Transformers model by the fused Triton kernels of liger-kernel, which save memory."
    )
    liger_kernel_config: Object = argument(
        None, "Which of the Liger kernels to use, by name, for instance rope, swiglu or fused_linear_cross_entropy."
    )
    use_cache: Flag = argument(
        False,
        "Let the model keep its key and value cache while it trains. Seldom useful: a few adapter methods need it.",
    )
    neftune_noise_alpha: MaybeNonNegative = argument(
        None,
        "Scale of the random noise that NEFTune adds to the embeddings while training; 5 to 15 helps some instruction "
        "tuning. Left out, there is none.",
    )
    torch_empty_cache_steps: MaybeCount = argument(
        None,
        "Give the device's cached memory back every so many steps, which may avoid running out of memory and costs "
        "about a tenth of the speed. Left out, never.",
    )
    auto_find_batch_size: Flag = argument(
        False, "On running out of memory start again with a smaller training batch, until one fits."
    )


@group("Reproducibility and devices")
class Determinism:
    full_determinism: Flag = argument(
        False,
        "Use deterministic kernels only, so that two runs give the same bits; slower, and an operation that has no "
        "such kernel is an error. For debugging and exact comparison.",
    )
    seed: Seed = argument(
        42, "Start of every random generator: weights made at the start, dropout, and the order of the data."
    )
    data_seed: MaybeSeed = argument(None, "Start of the generator that orders the data alone. Left out, it is seed.")
    use_cpu: Flag = argument(False, "Train on the CPU even where an accelerator is present.")
    accelerator_config: ObjectOrPath = argument(
        None,
        "How batches are dealt out to the processes, by name: split_batches, dispatch_batches, even_batches, "
        "use_seedable_sampler, non_blocking, gradient_accumulation_kwargs, use_configured_state.",
    )
    parallelism_config: Sizes = argument(
        None,
        "The sizes of the mesh of fsdp by name: dp_shard_size processes share one copy of the model, and "
        "dp_replicate_size copies are trained together; their product is the number of processes. An accelerate "
        "ParallelismConfig is taken too.",
    )


@group("Distributed data parallel")
class DistributedDataParallel:
    ddp_find_unused_parameters: MaybeFlag = argument(
        None,
        "Look in every step for parameters that got no gradient, which models with unused branches need and which "
        "slows others down. Left out, it is on for Transformers models without activation checkpointing.",
    )
    ddp_bucket_cap_mb: MaybeCount = argument(
        None, "MiB of gradients that are sent together; larger buckets are fewer but overlap less with the compute."
    )
    ddp_broadcast_buffers: MaybeFlag = argument(
        None, "Send buffers, such as the statistics of batch normalization, from rank 0 to all at each forward pass."
    )
    ddp_static_graph: MaybeFlag = argument(
        None,
        "Promise that every step uses the same parameters, which lets unused ones and repeated activation "
        "checkpointing work faster.",
    )
    ddp_backend: MaybeChoice = argument(
        None,
        "Library that processes talk through. Left out, it is the accelerator's own (nccl on GPUs, gloo on CPUs).",
        choices=["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"],
    )
    ddp_timeout: Count = argument(
        1800,
        "Seconds that processes wait for each other before they give up. Raise it when rank 0 prepares data for long "
        "while the others wait.",
    )


@group("Sharding")
class Sharding:
    fsdp: TextOrFlag = argument(
        None,
        "Spread weights, gradients and optimizer state over the processes (fully sharded data parallel, FSDP 2): true "
        "or full_shard; shard_grad_op keeps the weights gathered from forward to backward pass; hybrid_shard shards "
        "within a node and keeps a copy on each; offload keeps the shards in host memory.",
        nargs="?",
        const=True,
    )
    fsdp_config: ObjectOrPath = argument(
        None,
        "Settings of fsdp by name: reshard_after_forward, cpu_offload, auto_wrap_policy, "
        "transformer_layer_cls_to_wrap, min_num_params, activation_checkpointing, cpu_ram_efficient_loading, "
        "sync_module_states, state_dict_type, ignored_modules, forward_prefetch, mixed_precision_policy.",
    )
    deepspeed: ObjectOrPath = argument(
        None,
        "A DeepSpeed configuration: giving one trains by DeepSpeed's engine, with ZeRO of stage 1, 2 or 3. What says "
        '"auto" follows the other arguments. It needs an image with DeepSpeed.',
    )

"""What there is for a word that is no field: the way that such a thing is done here."""

from __future__ import annotations

_ADAPTERS = "adapters are made by a script, with peft in its image: spec.script"
_LIBRARIES = "a script does it with TRL on Trainwright's Trainer: spec.script.overlay"
_TRACKERS = "trackers are not built yet: spec.trainingArguments.reportTo"
_DEVICES = "spec.accelerator.pool says which, .perNode how many in a pod, and .nodes how many pods"
_QUANTIZED = "a script loads quantized weights: spec.script"

_WORDS = {
    _ADAPTERS: "lora qlora dora peft adapter adapters lora_r lora_alpha use_peft",
    _LIBRARIES: "trl sft dpo grpo ppo orpo kto rlhf rl reward",
    _TRACKERS: "wandb mlflow tensorboard comet neptune tracker trackers",
    _DEVICES: "gpu gpus tpu tpus cuda rocm device devices num_gpus",
    _QUANTIZED: "quantization quantize bitsandbytes load_in_4bit load_in_8bit gptq awq",
}
TOPICS = {word: told for told, words in _WORDS.items() for word in words.split()}


def topic(word: str) -> str | None:
    return TOPICS.get(word.lower())

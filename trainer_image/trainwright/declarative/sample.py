"""Generates text with the trained model for the prompts of the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainwright.declarative.manifest import SampleSpec
from trainwright.declarative.models import positions

SAMPLES = "samples.txt"


def write_samples(
    model: Any, tokenizer: Any, spec: SampleSpec, seed: int, output: Path | None, together: bool = False
) -> str:
    """Writes ``samples.txt`` into the output and returns its text: each prompt with its continuation.

    Args:
        output: None on ranks that only help to generate.
        together: All ranks call this, because each holds a part of the model.
    """
    texts = [
        generate(model, tokenizer, prompt, spec, seed + number, together) for number, prompt in enumerate(spec.prompts)
    ]
    pairs = zip(spec.prompts, texts, strict=True)
    text = "\n".join(
        f"--- prompt {number}: {prompt!r}\n{text}\n" for number, (prompt, text) in enumerate(pairs, start=1)
    )
    if output is not None:
        (output / SAMPLES).write_text(text, encoding="utf-8")
    return text


def generate(model: Any, tokenizer: Any, prompt: str, spec: SampleSpec, seed: int, together: bool = False) -> str:
    """The prompt and its continuation; for an encoder-decoder model, only the answer.

    A prompt that is too long for the model's positions is truncated at its start.
    """
    import torch
    from transformers import GenerationConfig

    model.eval()
    ids = _prompt_ids(model, tokenizer, prompt, spec.max_new_tokens).to(model.device)
    sampling = {"do_sample": True, "temperature": spec.temperature} if spec.temperature > 0 else {"do_sample": False}
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    if model.config.is_encoder_decoder:
        special["decoder_start_token_id"] = model.config.decoder_start_token_id
    config = GenerationConfig(max_new_tokens=_room(model, ids, spec.max_new_tokens), **sampling, **special)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        mask = torch.ones_like(ids)
        written = model.generate(ids, attention_mask=mask, generation_config=config, synced_gpus=together)
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


def _prompt_ids(model: Any, tokenizer: Any, prompt: str, new: int) -> Any:
    """Token ids of shape (1, tokens); without an end token for a decoder, which continues the prompt."""
    import torch

    if model.config.is_encoder_decoder:
        return tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if token is not None][:1]
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or start
    longest = positions(model)
    kept = max(1, longest - new) if longest else len(ids)
    return torch.tensor([ids[-kept:]], dtype=torch.long)


def _room(model: Any, ids: Any, new: int) -> int:
    """How many new tokens the model has positions for after the prompt, at most ``new``."""
    longest = positions(model)
    if longest is None or model.config.is_encoder_decoder:
        return new
    return max(1, min(new, longest - int(ids.shape[1])))

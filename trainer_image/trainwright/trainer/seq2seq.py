"""The Trainer for sequence-to-sequence models: evaluation and prediction can use generated tokens.

Names and signatures are those of ``transformers.Seq2SeqTrainer``. Generated tokens are padded with the padding token to
the maximum length of the generation settings; if batches or ranks still differ in length, they are padded with -100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from trainwright.arguments.errors import TrainerError
from trainwright.outputs import PredictionOutput
from trainwright.trainer.trainer import Trainer

LONGEST = 20
"""Default limit of generated tokens, if no setting limits them."""

ARGUED = ("max_length", "num_beams")
"""Generation settings that the arguments can set; None means not set."""


class Seq2SeqTrainer(Trainer):
    """A :class:`~trainwright.Trainer` that generates in evaluations if ``predict_with_generate`` is set.

    It takes ``Seq2SeqTrainingArguments``, and otherwise the arguments of the Trainer. ``compute_metrics`` then gets
    predictions and labels as tokens of shape (samples, longest). Without ``compute_metrics``, evaluation generates
    nothing and reports only the loss.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Any = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
    ) -> None:
        args = args if args is not None else _default_arguments()
        if not hasattr(args, "predict_with_generate"):
            raise TrainerError(f"args: Seq2SeqTrainer takes Seq2SeqTrainingArguments, not {type(args).__name__}")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def _take_model(self, model: nn.Module) -> None:
        super()._take_model(model)
        if self.args.predict_with_generate and not hasattr(model, "generate"):
            name = type(model).__name__
            raise TrainerError(f"predict_with_generate: {name} has no generate(); give it one, or set it to false")
        if self.args.generation_config is not None:
            self.model.generation_config = self.load_generation_config(self._settings())

    def _settings(self) -> Any:
        """Read the settings from the arguments; a mapping updates those of the model and keeps its special tokens."""
        settings, own = self.args.generation_config, getattr(self.model, "generation_config", None)
        if isinstance(settings, Mapping) and own is not None:
            return {**own.to_diff_dict(), **settings}
        return settings

    @staticmethod
    def load_generation_config(gen_config_arg: Any) -> Any:
        """Load the generation settings.

        Args:
            gen_config_arg: A GenerationConfig (which is copied), a mapping, a file or folder, or a model's name.

        Raises:
            UserError: The settings conflict, and could not be saved with the model.
        """
        from transformers import GenerationConfig

        if isinstance(gen_config_arg, GenerationConfig):
            config = deepcopy(gen_config_arg)
        elif isinstance(gen_config_arg, Mapping):
            config = GenerationConfig.from_dict(dict(gen_config_arg))
        else:
            config = _read_config(gen_config_arg)
        try:
            config.validate(strict=True)
        except ValueError as error:
            raise TrainerError(f"generation_config: {' '.join(str(error).split())}") from error
        return config

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """As :meth:`Trainer.evaluate`; ``gen_kwargs`` (``max_length``, ``num_beams``, ...) go to ``generate``."""
        self._gen_kwargs = self._completed(gen_kwargs)
        given = eval_dataset is not None
        chosen = eval_dataset if given else self.eval_dataset
        if isinstance(chosen, dict):
            return self._evaluate_each(chosen, given, ignore_keys, metric_key_prefix, **gen_kwargs)
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> PredictionOutput:
        """As :meth:`Trainer.predict`; ``gen_kwargs`` (``max_length``, ``num_beams``, ...) go to ``generate``."""
        self._gen_kwargs = self._completed(gen_kwargs)
        return super().predict(test_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def _completed(self, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Fill missing generation settings from the arguments."""
        given = {name: value for name, value in gen_kwargs.items() if value is not None or name not in ARGUED}
        if "max_length" not in given and given.get("max_new_tokens") is None:
            given["max_length"] = self.args.generation_max_length or self._longest_unless_said(given)
        given.setdefault("num_beams", self.args.generation_num_beams)
        return {name: value for name, value in given.items() if value is not None or name not in ARGUED}

    def _longest_unless_said(self, given: dict[str, Any]) -> int | None:
        """Return :data:`LONGEST` for an encoder-decoder model if no setting limits its output, else None."""
        settings = given.get("generation_config") or getattr(self.model, "generation_config", None)
        bounds = [getattr(settings, name, None) for name in ("max_length", "max_new_tokens")]
        writes_anew = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        return LONGEST if writes_anew and bounds == [None, None] else None

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """Return loss, generated tokens and labels of one batch; without ``predict_with_generate``, as the Trainer."""
        if not self.args.predict_with_generate or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        inputs = self._prepare_inputs(inputs)
        tokens = self._generate(inputs, gen_kwargs or getattr(self, "_gen_kwargs", None) or self._completed({}))
        labels = inputs.get("labels")
        loss = None if labels is None else self._loss(model, inputs)
        if self.args.prediction_loss_only:
            return loss, None, None
        return loss, self._padded(tokens), None if labels is None else self._padded(labels)

    def _loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """Return the model's mean loss over the batch, unless user code computes the loss."""
        items = self._get_num_items_in_batch([inputs], self.args.device) if self._others_loss() else None
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, inputs, num_items_in_batch=items).detach().mean()
        return loss

    def _generate(self, inputs: Any, gen_kwargs: dict[str, Any]) -> torch.Tensor:
        """Return token ids of shape (sequences, length); inputs made from the labels are not passed to ``generate``."""
        named = {name: value for name, value in inputs.items() if name != "labels"}
        labels, decoded = inputs.get("labels"), inputs.get("decoder_input_ids")
        if labels is not None and decoded is not None and labels.shape == decoded.shape:
            named = {n: v for n, v in named.items() if n not in ("decoder_input_ids", "decoder_attention_mask")}
        wanted = {name: value for name, value in gen_kwargs.items() if value is not None or name not in ARGUED}
        if self._strategy.sharded:
            wanted.setdefault("synced_gpus", True)  # all ranks go on until the longest text is done
        generated = cast(Any, self.model).generate(**named, **wanted)
        tokens: torch.Tensor = getattr(generated, "sequences", generated)
        return tokens

    def _padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pad to the maximum length of the generation settings, so that all batches have one width."""
        config = getattr(self.model, "generation_config", None)
        longest, new = getattr(config, "max_length", None) or LONGEST, getattr(config, "max_new_tokens", None)
        if tokens.shape[-1] < longest:
            return self._pad_tensors_to_max_len(tokens, longest)
        if new is not None and tokens.shape[-1] < new + 1:
            return self._pad_tensors_to_max_len(tokens, new + 1)
        return tokens

    def _pad_tensors_to_max_len(self, tensor: torch.Tensor, max_length: int) -> torch.Tensor:
        return nn.functional.pad(tensor, (0, max_length - tensor.shape[-1]), value=self._padding_token())

    def _padding_token(self) -> int:
        processing, config = self.processing_class, getattr(self.model, "config", None)
        if hasattr(processing, "pad_token_id"):
            token = processing.pad_token_id if processing.pad_token_id is not None else processing.eos_token_id
        else:
            token = getattr(config, "pad_token_id", None)
        if token is None:
            raise TrainerError(
                "predict_with_generate: there is no token to pad the texts with; set pad_token_id in the model's "
                "configuration, or give the tokenizer as processing_class"
            )
        return int(token)


class GenerationConfigError(TrainerError, OSError):
    """The given path or name holds no generation settings."""


def _read_config(place: Any) -> Any:
    from transformers import GenerationConfig

    path = Path(place)
    try:
        if path.is_file():
            return GenerationConfig.from_pretrained(path.parent, path.name)
        return GenerationConfig.from_pretrained(path if path.is_dir() else place)
    except OSError as error:
        raise GenerationConfigError(
            f"generation_config: no file, no folder and no model of the Hub gives one as {str(place)!r}; check the path"
        ) from error


def _default_arguments() -> Any:
    from trainwright.arguments import Seq2SeqTrainingArguments

    return Seq2SeqTrainingArguments(output_dir="tmp_trainer")

"""What a subclass overrides is called, with what the Trainer of Hugging Face would give it; and it has a say."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import trainwright
from trainer import tiny
from trainer.runs import logged, make, trained
from trainer.world import in_world
from trainwright import Trainer
from trainwright.training.hooked_loop import OpenedLoop
from trainwright.training.loop import Loop

# Never called by the base class of Hugging Face either, or only where sharding is: there is nothing to compare.
UNCOMPARED = {"create_optimizer_and_scheduler", "get_tp_size", "get_cp_size", "get_sp_size"}

# How often they are called is Hugging Face's own affair: once an evaluation, say, where ours asks once a run.
AS_OFTEN_AS_NEEDED = {"_wrap_model", "_get_output_dir", "num_examples", "get_num_trainable_parameters"}


def names_of_both() -> list[str]:
    """Methods of Hugging Face's Trainer that ours has too."""
    theirs = (name for name in dir(transformers.Trainer) if not name.startswith("__"))
    methods = [name for name in theirs if callable(getattr(transformers.Trainer, name))]
    return [name for name in methods if hasattr(Trainer, name) and name not in UNCOMPARED]


def watched(library: Any, names: list[str]) -> tuple[type, Counter[str], dict[str, list[str]]]:
    """A subclass that overrides all of ``names``; how often each was called, and what it was given at first."""
    counts: Counter[str] = Counter()
    given: dict[str, list[str]] = {}

    def override(name: str) -> Any:
        base = getattr(library.Trainer, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            given.setdefault(name, sorted(inspect.signature(base).bind(*args, **kwargs).arguments))
            return base(*args, **kwargs)

        is_static = isinstance(inspect.getattr_static(library.Trainer, name), staticmethod)
        return staticmethod(method) if is_static else method

    return type("Watched", (library.Trainer,), {name: override(name) for name in names}), counts, given


def a_whole_life(library: Any, kind: type, folder: Path) -> None:
    """Training with evaluations and checkpoints, a judgement, a prediction, saving, and a resumed run."""

    def fresh(**options: Any) -> Any:
        args = library.TrainingArguments(
            str(folder), use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=2, eval_strategy="steps",
            eval_steps=2, save_steps=2, load_best_model_at_end=True, metric_for_best_model="loss", eval_on_start=True,
            gradient_accumulation_steps=2, per_device_train_batch_size=4, include_num_input_tokens_seen="all",
            save_total_limit=2, **options,
        )  # fmt: skip
        return kind(tiny.gpt2(), args, train_dataset=tiny.texts(), eval_dataset=tiny.texts(10))

    trainer = fresh(max_steps=4)
    trainer.train()
    trainer.evaluate()
    trainer.predict(tiny.texts(9))
    trainer.save_model()
    fresh(max_steps=6).train(resume_from_checkpoint=True)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names, seen = names_of_both(), []
    for library in (transformers, trainwright):
        kind, counts, given = watched(library, names)
        a_whole_life(library, kind, tmp_path_factory.mktemp(library.__name__))
        seen.append((counts, given))
    return seen


@pytest.mark.parametrize("name", names_of_both())
def test_an_override_is_called_as_by_transformers(name: str, lives: Any) -> None:
    (theirs, their_arguments), (ours, our_arguments) = lives
    if name in AS_OFTEN_AS_NEEDED:
        assert ours[name] > 0
        return
    assert ours[name] == theirs[name]
    if name != "_build_accelerator_args":  # keyword arguments of accelerate, whatever they are
        assert our_arguments.get(name) == their_arguments.get(name)


def test_what_is_not_overridden_costs_a_step_nothing(tmp_path: Path) -> None:
    class Plain(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    class Clipping(Trainer):
        def _clip_grad_norm(self, model):
            return super()._clip_grad_norm(model)

    assert type(trained(tmp_path, max_steps=1)._loop) is Loop
    assert type(trained(tmp_path, kind=Plain, max_steps=1)._loop) is Loop
    assert type(trained(tmp_path, kind=Clipping, max_steps=1)._loop) is OpenedLoop


def test_both_loops_train_alike(tmp_path: Path) -> None:
    class Opened(Trainer):
        def _maybe_log_save_evaluate(self, *args, **kwargs):
            super()._maybe_log_save_evaluate(*args, **kwargs)

    options = {"num_train_epochs": 2, "logging_steps": 3, "eval_strategy": "epoch"}
    plain, opened = trained(tmp_path, **options), trained(tmp_path, kind=Opened, **options)
    assert type(opened._loop) is OpenedLoop
    for key in ("loss", "grad_norm", "learning_rate", "eval_loss", "train_loss"):
        assert logged(plain, key) == logged(opened, key), key


class TestTheStep:
    def test_clip_grad_norm_and_get_grad_norm_are_used(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _clip_grad_norm(self, model):
                for parameter in model.parameters():
                    parameter.grad.zero_()
                return torch.tensor(3.0)

            def _get_grad_norm(self, model, grad_norm=None):
                return 2 * grad_norm

        trainer = trained(tmp_path, kind=Own, max_steps=2, optim="sgd")
        assert logged(trainer, "grad_norm") == [6.0, 6.0]
        torch.testing.assert_close(trainer.model.state_dict(), tiny.classifier().state_dict())

    def test_get_learning_rate_gives_the_logged_rate(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _get_learning_rate(self):
                return 0.25

        assert logged(trained(tmp_path, kind=Own, max_steps=2), "learning_rate") == [0.25, 0.25]

    def test_logging_of_ones_own_takes_the_losses_over(self, tmp_path: Path) -> None:
        """The way subclasses write it: take the sum, set it to zero, note the step."""

        class Own(Trainer):
            def _maybe_log_save_evaluate(
                self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None
            ):
                if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
                    taken = tr_loss.item()
                    tr_loss -= tr_loss
                    self._total_loss_scalar += taken
                    steps = self.state.global_step - self._globalstep_last_logged
                    self._globalstep_last_logged = self.state.global_step
                    self.log({"loss": taken / steps, "mine": 1.0}, start_time)

        plain = trained(tmp_path, max_steps=6, logging_steps=2)
        own = trained(tmp_path, kind=Own, max_steps=6, logging_steps=2)
        assert logged(own, "mine") == [1.0, 1.0, 1.0]
        assert logged(own, "loss") == pytest.approx(logged(plain, "loss"))
        assert logged(own, "train_loss") == pytest.approx(logged(plain, "train_loss"))

    def test_prepare_inputs_changes_what_the_model_gets(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _prepare_inputs(self, inputs):
                return {**inputs, "x": torch.zeros_like(inputs["x"])}

        zeros = [{**sample, "x": torch.zeros(8)} for sample in tiny.vectors()]
        reference = trained(tmp_path, data=zeros, max_steps=2)
        assert logged(trained(tmp_path, kind=Own, max_steps=2), "loss") == logged(reference, "loss")

    def test_the_autocast_context_surrounds_the_loss(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def autocast_smart_context_manager(self, cache_enabled=True):
                return torch.autocast("cpu", dtype=torch.bfloat16)

        reference, own = trained(tmp_path, max_steps=2, bf16=True), trained(tmp_path, kind=Own, max_steps=2)
        assert logged(own, "loss") == pytest.approx(logged(reference, "loss"))

    def test_track_num_input_tokens_counts_in_place_of_ours(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _track_num_input_tokens(self, inputs):
                self.state.num_input_tokens_seen += 1

        trainer = trained(tmp_path, tiny.gpt2(), tiny.texts(), kind=Own, max_steps=3, eval_strategy="no")
        assert trainer.state.num_input_tokens_seen == 3

    def test_wrap_model_may_put_its_own_module_around_the_model(self, tmp_path: Path) -> None:
        class Around(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner, self.calls = inner, 0

            def forward(self, **inputs):
                self.calls += 1
                return self.inner(**inputs)

        class Own(Trainer):
            def _wrap_model(self, model, training=True, dataloader=None):
                return Around(super()._wrap_model(model, training, dataloader)) if training else model

        assert trained(tmp_path, kind=Own, max_steps=3).model_wrapped.calls == 3


class TestTheRun:
    def test_inner_training_loop_may_wrap_ours(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _inner_training_loop(self, batch_size=None, args=None, **kwargs):
                assert (batch_size, args) == (8, self.args)
                output = super()._inner_training_loop(batch_size=batch_size, args=args, **kwargs)
                return output._replace(training_loss=-1.0)

        assert make(tmp_path, kind=Own, max_steps=1).train().training_loss == -1.0

    def test_set_initial_training_values_decides_the_length(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def set_initial_training_values(self, args, dataloader):
                return (*super().set_initial_training_values(args, dataloader)[:-1], 3)

        assert trained(tmp_path, kind=Own, num_train_epochs=1).state.global_step == 3

    def test_determine_best_metric_decides_what_is_saved(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _determine_best_metric(self, metrics, trial):
                return self.state.global_step == 2

        trained(
            tmp_path, kind=Own, max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="best",
            metric_for_best_model="loss",
        )  # fmt: skip
        assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]

    def test_evaluate_may_add_metrics(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
                return {**super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler), "eval_mine": 5.0}

        options = {"eval_strategy": "epoch", "metric_for_best_model": "mine", "num_train_epochs": 1}
        assert trained(tmp_path, kind=Own, **options).state.best_metric == 5.0

    def test_evaluate_may_have_parameters_of_its_own(self, tmp_path: Path) -> None:
        """As subclasses for question answering have it: one argument more, and not at the end."""

        class Own(Trainer):
            def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval"):
                assert eval_examples is None
                return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

        sets = {"a": tiny.vectors(5), "b": tiny.vectors(6)}
        trainer = trained(
            tmp_path, kind=Own, max_steps=1, eval_strategy="steps", eval_steps=1, trainer={"eval_dataset": sets}
        )
        assert {"eval_a_loss", "eval_b_loss"} <= {key for entry in trainer.state.log_history for key in entry}


class TestLoaders:
    def test_set_signature_columns_decides_which_columns_are_kept(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _set_signature_columns_if_needed(self):
                self._signature_columns = ["x", "labels", "weight"]

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                assert inputs.pop("weight").shape == (8,)
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        weighted = [{**sample, "weight": 1.0, "text": "not kept"} for sample in tiny.vectors()]
        trained(tmp_path, data=weighted, kind=Own, max_steps=2)

    def test_get_collator_with_removed_columns_may_wrap_the_collator(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _get_collator_with_removed_columns(self, data_collator, description=None):
                inner = super()._get_collator_with_removed_columns(data_collator, description)
                seen.append(description)
                return lambda samples: inner(samples[:3])

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                assert len(inputs["x"]) <= 3
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        seen: list[Any] = []
        trainer = trained(tmp_path, kind=Own, max_steps=1)
        trainer.evaluate()
        assert seen == ["Training", "Evaluation"]

    def test_get_train_sampler_and_get_eval_sampler_are_of_the_strategy(self, tmp_path: Path) -> None:
        def kinds(**options: Any) -> list[Any]:
            trainer = make(tmp_path, tiny.gpt2(), tiny.texts(), trainer={"eval_dataset": tiny.texts(6)}, **options)
            samplers = trainer._get_train_sampler(), trainer._get_eval_sampler(trainer.eval_dataset)
            return [type(sampler).__name__ for sampler in samplers]

        assert kinds() == ["RandomSampler", "SequentialSampler"]
        assert kinds(train_sampling_strategy="sequential") == ["SequentialSampler", "SequentialSampler"]
        assert kinds(train_sampling_strategy="group_by_length") == ["LengthGroupedSampler", "LengthGroupedSampler"]


class TestSaving:
    def test_save_model_writes_checkpoints_as_well(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def save_model(self, output_dir=None, _internal_call=False):
                super().save_model(output_dir, _internal_call)
                (Path(output_dir) / "mine").write_text(str(_internal_call))

        trainer = trained(tmp_path, kind=Own, max_steps=2, save_strategy="steps", save_steps=2)
        trainer.save_model(str(tmp_path / "whole"))
        checkpoint = tmp_path / "checkpoint-2"
        assert [(folder / "mine").read_text() for folder in (checkpoint, tmp_path / "whole")] == ["True", "False"]
        assert (checkpoint / "model.safetensors").exists()
        make(tmp_path, kind=Own, max_steps=3).train(resume_from_checkpoint=True)  # the manifest knows the file

    def test_save_may_write_only_a_part_of_the_model(self, tmp_path: Path) -> None:
        """As scripts that train a projector have it: other weights, and nothing of the base class."""

        class Own(Trainer):
            def _save(self, output_dir=None, state_dict=None):
                torch.save({"head": self.model.head.weight}, Path(output_dir) / "head.pt")

        trained(tmp_path, kind=Own, max_steps=2, save_strategy="steps", save_steps=2)
        names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
        assert {"head.pt", "optimizer.pt", "trainer_state.json"} <= names
        assert "model.safetensors" not in names

    def test_save_writes_the_state_dict_that_is_given(self, tmp_path: Path) -> None:
        trainer = make(tmp_path / "run")
        state = {name: torch.full_like(value, 7.0) for name, value in trainer.model.state_dict().items()}
        trainer._save(str(tmp_path / "given"), state_dict=state)
        other = make(tmp_path / "other")
        other._load_from_checkpoint(str(tmp_path / "given"))
        assert all((parameter == 7.0).all() for parameter in other.model.parameters())

    def test_states_are_saved_and_loaded_by_the_overridden_methods(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _save_optimizer_and_scheduler(self, output_dir):
                (Path(output_dir) / "mine").touch()

            def _load_optimizer_and_scheduler(self, checkpoint):
                loaded.append(Path(checkpoint).name)

            def _load_rng_state(self, checkpoint):
                loaded.append(Path(checkpoint).name)

        loaded: list[str] = []
        options = {"kind": Own, "save_strategy": "steps", "save_steps": 2}
        trained(tmp_path, max_steps=2, **options)
        names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
        assert {"mine", "rng_state.pth"} <= names
        assert "optimizer.pt" not in names
        make(tmp_path, max_steps=3, **options).train(resume_from_checkpoint=True)
        assert loaded == ["checkpoint-2", "checkpoint-2"]

    def test_get_output_dir_decides_where_checkpoints_go(self, tmp_path: Path) -> None:
        class Own(Trainer):
            def _get_output_dir(self, trial):
                return str(tmp_path / "elsewhere")

        trained(tmp_path, kind=Own, max_steps=2, save_strategy="steps", save_steps=2)
        assert (tmp_path / "elsewhere" / "checkpoint-2" / "model.safetensors").exists()


def saving_on_two_ranks(folder: str) -> Any:
    called = []

    class Own(Trainer):
        def save_model(self, output_dir=None, _internal_call=False):
            called.append(_internal_call)
            super().save_model(output_dir, _internal_call)
            (Path(output_dir) / f"of-rank-{self.args.process_index}").touch()

        def _save_rng_state(self, output_dir):
            called.append("generators")
            super()._save_rng_state(output_dir)

    trained(folder, kind=Own, max_steps=2, save_strategy="steps", save_steps=2)
    return called


def test_every_rank_is_asked_to_save_and_one_is_kept(tmp_path: Path) -> None:
    assert in_world(2, "trainer.test_overriding:saving_on_two_ranks", str(tmp_path)) == [[True, "generators"]] * 2
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "of-rank-0", "rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= names
    assert "of-rank-1" not in names


def test_memory_can_be_measured_by_a_method_of_ones_own(tmp_path: Path) -> None:
    class Own(Trainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            self._memory_tracker.start()
            metrics = {"eval_mine": 1.0}
            self._memory_tracker.stop_and_update_metrics(metrics)
            return metrics

    assert "eval_mem_cpu_alloc_delta" in make(tmp_path, kind=Own, skip_memory_metrics=False).evaluate()
    assert make(tmp_path, kind=Own).evaluate() == {"eval_mine": 1.0}


def test_rows_of_one_process_are_gathered_as_they_are(tmp_path: Path) -> None:
    rows = {"a": torch.arange(3), "b": [torch.ones(2, 2)]}
    gathered = make(tmp_path)._nested_gather(rows)
    torch.testing.assert_close(gathered, rows)

"""The loop: how far it goes, what it averages and logs, what it saves, and how it goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import tiny
from trainer.runs import logged, make, quiet, trained, weights
from trainwright import Trainer, TrainerCallback
from trainwright.contract import UserError


class TestHorizon:
    """70 samples in batches of 8 are 9 batches."""

    @pytest.mark.parametrize(
        ("options", "steps", "epoch"),
        [
            ({"num_train_epochs": 2}, 18, 2.0),
            ({"num_train_epochs": 0.5}, 5, 5 / 9),
            ({"num_train_epochs": 2, "gradient_accumulation_steps": 4}, 6, 2.0),
            ({"max_steps": 13}, 13, 13 / 9),
            ({"max_steps": 4, "gradient_accumulation_steps": 4}, 4, 1 + 4 / 9),
            ({"num_train_epochs": 1, "dataloader_drop_last": True}, 8, 1.0),
            ({"num_train_epochs": 1, "per_device_train_batch_size": 100}, 1, 1.0),
        ],
    )
    def test_a_run_takes_the_steps_and_epochs_that_the_arguments_say(self, options, steps, epoch, tmp_path):
        trainer = trained(tmp_path, **options)
        assert (trainer.state.global_step, trainer.state.max_steps) == (steps, steps)
        assert trainer.state.epoch == pytest.approx(epoch)

    def test_a_set_without_length_goes_to_max_steps(self, tmp_path):
        trainer = trained(tmp_path, data=Endless(), max_steps=5, gradient_accumulation_steps=2)
        assert trainer.state.global_step == 5
        assert trainer.state.epoch == 1.0

    def test_a_short_stream_is_read_again_and_its_last_batches_count(self, tmp_path):
        """20 samples are 3 batches of 8: a whole step of two and a part of one, in each epoch."""
        trainer = trained(tmp_path, data=Endless(20), max_steps=5, gradient_accumulation_steps=2)
        assert trainer.state.global_step == 5


class Endless(torch.utils.data.IterableDataset):
    def __init__(self, samples: int | None = None) -> None:
        self.samples = samples

    def __iter__(self):
        data = tiny.vectors(64)
        number = 0
        while number != self.samples:
            yield data[number % 64]
            number += 1


class TestAccumulation:
    def test_a_loss_without_count_is_averaged_over_the_micro_batches(self, tmp_path):
        model = tiny.classifier(dropout=0.0)
        one = trained(tmp_path, model, per_device_train_batch_size=8, max_steps=4)
        model = tiny.classifier(dropout=0.0)
        four = trained(tmp_path, model, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=4)
        assert logged(four, "loss") == pytest.approx(logged(one, "loss"), abs=1e-6)
        for a, b in zip(weights(one), weights(four), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)

    def test_a_loss_over_tokens_is_averaged_over_those_of_the_whole_step(self, tmp_path):
        """Micro-batches with different numbers of targets weigh as their tokens do."""
        options = {"max_steps": 4, "train_sampling_strategy": "sequential", "max_grad_norm": 0.0}
        one = trained(tmp_path, quiet(tiny.gpt2()), tiny.texts(), per_device_train_batch_size=8, **options)
        four = trained(
            tmp_path, quiet(tiny.gpt2()), tiny.texts(), per_device_train_batch_size=2, gradient_accumulation_steps=4,
            **options,
        )  # fmt: skip
        assert logged(four, "loss") == pytest.approx(logged(one, "loss"), rel=1e-5)
        assert logged(four, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4)


class TestLogging:
    def test_nan_is_kept_out_of_the_mean_unless_it_is_wanted(self, tmp_path):
        first, second, third = (Spiked.alike() for _ in range(3))
        filtered = trained(tmp_path, first, max_steps=3, logging_steps=3)
        alone = trained(tmp_path, second, max_steps=3)
        each = logged(alone, "loss")
        assert logged(filtered, "loss") == pytest.approx([(each[0] + each[2]) / 2])
        assert math.isnan(each[1])  # there is nothing else in its window
        assert logged(alone, "train_loss") == pytest.approx(logged(filtered, "loss"))
        shown = trained(tmp_path, third, max_steps=3, logging_nan_inf_filter=False)
        assert [math.isnan(loss) for loss in logged(shown, "loss")] == [False, True, False]

    def test_losses_are_averaged_over_the_interval(self, tmp_path):
        each = logged(trained(tmp_path, max_steps=6), "loss")
        by_three = logged(trained(tmp_path, max_steps=6, logging_steps=3), "loss")
        assert by_three == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3])

    def test_nothing_is_logged_when_nothing_is_asked_for(self, tmp_path):
        assert logged(trained(tmp_path, max_steps=3, logging_strategy="no"), "loss") == []

    @pytest.mark.parametrize("kind", ["all", "non_padding"])
    def test_input_tokens_are_counted(self, kind, tmp_path):
        data = [{**s, "attention_mask": (s["labels"] != -100).long()} for s in tiny.texts(16)]
        trainer = trained(tmp_path, tiny.gpt2(), data, include_num_input_tokens_seen=kind, num_train_epochs=1)
        expected = sum(len(s["input_ids"]) if kind == "all" else int(s["attention_mask"].sum()) for s in data)
        assert trainer.state.num_input_tokens_seen == expected
        assert logged(trainer, "num_input_tokens_seen")[-1] == expected
        assert "train_tokens_per_second" in trainer.state.log_history[0]

    def test_tokens_and_operations_are_counted_from_shapes(self, tmp_path):
        trainer = trained(tmp_path, tiny.gpt2(), tiny.texts(16), num_train_epochs=1)
        assert trainer.state.local_tokens == 16 * 12
        assert trainer.state.total_flos == 6 * 16 * 12 * trainer.model.num_parameters(exclude_embeddings=True)

    def test_memory_is_measured_when_it_is_asked_for(self, tmp_path):
        trainer = make(tmp_path, max_steps=2, skip_memory_metrics=False)
        metrics = trainer.train().metrics
        assert {"init_mem_cpu_alloc_delta", "train_mem_cpu_peaked_delta", "before_init_mem_cpu"} <= metrics.keys()
        assert metrics["train_mem_cpu_peaked_delta"] >= 0
        assert "eval_mem_cpu_alloc_delta" in trainer.evaluate()
        assert not any("mem" in key for key in make(tmp_path, max_steps=2).train().metrics)


class Spiked(tiny.Classifier):
    """The second loss it computes is NaN, and no weight suffers from it."""

    calls = 0

    @classmethod
    def alike(cls):
        torch.manual_seed(0)
        return cls()

    def forward(self, x, labels=None):
        self.calls += 1
        loss, logits = super().forward(x, labels)
        return (torch.where(torch.tensor(self.calls == 2), torch.nan, loss), logits)


class TestSaving:
    def test_checkpoints_come_by_steps_and_at_the_end(self, tmp_path):
        trained(tmp_path, max_steps=5, save_strategy="steps", save_steps=2)
        assert checkpoints(tmp_path) == [2, 4, 5]

    def test_checkpoints_come_by_epoch_and_the_oldest_go(self, tmp_path):
        trained(tmp_path, num_train_epochs=4, save_strategy="epoch", save_total_limit=2)
        assert checkpoints(tmp_path) == [27, 36]

    def test_save_only_model_leaves_the_optimizer_out(self, tmp_path):
        trained(tmp_path, max_steps=2, save_strategy="steps", save_only_model=True)
        names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
        assert "model.safetensors" in names
        assert "optimizer.pt" not in names

    def test_only_better_models_are_saved_by_the_strategy_best(self, tmp_path):
        trainer = scored(tmp_path, save_strategy="best")
        assert checkpoints(tmp_path) == [1, 3]
        assert trainer.state.best_global_step == 3
        assert trainer.state.best_metric == 9.0

    def test_the_best_model_is_loaded_at_the_end(self, tmp_path):
        trainer = scored(tmp_path, save_strategy="steps", save_steps=1, load_best_model_at_end=True)
        assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-3"
        assert trainer.model.head.bias[0].item() == 3.0  # what the scoring run writes there

    def test_greater_is_better_decides_which_metric_is_the_best(self, tmp_path):
        assert scored(tmp_path, greater_is_better=False).state.best_metric == 1.0
        assert scored(tmp_path, greater_is_better=True).state.best_metric == 9.0

    def test_a_metric_that_evaluation_does_not_give_is_refused(self, tmp_path):
        options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "accuracy"}
        with pytest.raises(
            UserError, match=r"metric_for_best_model: no evaluation gives accuracy; choose one of loss$"
        ):
            trained(tmp_path, max_steps=1, **options)

    def test_the_best_checkpoint_outlives_the_limit(self, tmp_path):
        scored(tmp_path, save_strategy="steps", save_steps=1, load_best_model_at_end=True, save_total_limit=2)
        assert checkpoints(tmp_path) == [3, 6]

    def test_with_room_for_one_the_best_stays(self, tmp_path):
        scored(tmp_path, save_strategy="steps", save_steps=1, load_best_model_at_end=True, save_total_limit=1)
        assert checkpoints(tmp_path) == [3]

    def test_save_model_writes_what_load_state_dict_reads(self, tmp_path):
        from safetensors.torch import load_file

        trainer = trained(tmp_path, max_steps=2)
        trainer.save_model(str(tmp_path / "result"))
        twin = tiny.classifier(seed=5)
        twin.load_state_dict(load_file(tmp_path / "result" / "model.safetensors"))
        for a, b in zip(twin.parameters(), trainer.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_state_and_metrics_are_written_as_json(self, tmp_path, capsys):
        trainer = make(tmp_path, max_steps=2)
        result = trainer.train()
        trainer.save_state()
        trainer.save_metrics("train", result.metrics)
        trainer.save_metrics("eval", {"eval_loss": 1.0})
        trainer.log_metrics("train", result.metrics)
        assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2
        together = json.loads((tmp_path / "all_results.json").read_text())
        assert {"train_loss", "eval_loss"} <= together.keys()
        assert "***** train metrics *****" in capsys.readouterr().out


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def scored(folder: Any, **options: Any) -> Trainer:
    """Six evaluations that score 5, 4, 9, 1, 9, 2; the weights carry the step."""
    scores = iter([5.0, 4.0, 9.0, 1.0, 9.0, 2.0])

    class Mark(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            nn.init.constant_(model.head.bias, state.global_step)

    trainer = make(
        folder, max_steps=6, eval_strategy="steps", eval_steps=1, metric_for_best_model="score",
        trainer={"compute_metrics": lambda _: {"score": next(scores)}, "callbacks": [Mark]}, **options,
    )  # fmt: skip
    trainer.train()
    return trainer


class TestResuming:
    @pytest.mark.parametrize("at", [3, 9, 11])
    def test_a_run_goes_on_as_if_it_had_never_stopped(self, at, tmp_path):
        options = {"num_train_epochs": 2, "gradient_accumulation_steps": 1}
        whole = trained(tmp_path / "whole", **options)
        interrupted(tmp_path / "parts", at, **options)
        resumed = make(tmp_path / "parts", **options)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == whole.state.global_step
        for a, b in zip(weights(whole), weights(resumed), strict=True):
            assert torch.equal(a, b)

    def test_data_is_not_skipped_when_told_so(self, tmp_path):
        interrupted(tmp_path, 3, num_train_epochs=2)
        trainer = make(tmp_path, num_train_epochs=2, ignore_data_skip=True)
        seen = note_batches(trainer)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert len(seen) == 15  # from the start of the first epoch to step 18, three of which were done before
        assert trainer.state.epoch == pytest.approx(1 + 6 / 9)


def interrupted(folder: Any, at: int, **options: Any) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = control.should_training_stop = state.global_step == at

    trained(folder, trainer={"callbacks": [Stop]}, **options)


def note_batches(trainer: Trainer) -> list[Any]:
    seen, collate = [], trainer.data_collator
    trainer.data_collator = lambda samples: seen.append(samples) or collate(samples)
    return seen

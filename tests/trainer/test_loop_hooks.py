"""What a subclass overrides is called, and a model or data that break the contract are refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer import tiny
from trainer.runs import logged, make, trained, weights
from trainwright import Trainer, TrainerCallback, TrainingArguments, default_data_collator
from trainwright.arguments.errors import ModelError
from trainwright.contract import DataError, UserError
from trainwright.training import session
from trainwright.training.losses import LossMeter


class TestOverriding:
    def test_compute_loss_of_a_subclass_is_used_in_training_and_evaluation(self, tmp_path):
        class Doubled(Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
                return (2 * loss, outputs) if return_outputs else 2 * loss

        plain, doubled = trained(tmp_path, max_steps=1), trained(tmp_path, kind=Doubled, max_steps=1)
        assert logged(doubled, "loss")[0] == pytest.approx(2 * logged(plain, "loss")[0])
        assert doubled.evaluate()["eval_loss"] == pytest.approx(2 * evaluated(doubled))

    @pytest.mark.parametrize(("scaled", "times"), [(False, 1.0), (True, 2.0)])
    def test_a_loss_says_whether_it_is_scaled_for_accumulation(self, scaled, times, tmp_path):
        class Own(Trainer):
            loss_is_scaled_for_ga = scaled

        options = {"max_steps": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
        reference = trained(tmp_path, tiny.classifier(dropout=0.0), **options)
        trainer = trained(tmp_path, tiny.classifier(dropout=0.0), kind=Own, **options)
        assert logged(trainer, "loss")[0] == pytest.approx(times * logged(reference, "loss")[0])

    def test_training_step_of_a_subclass_runs_every_micro_batch(self, tmp_path):
        steps = []

        class Counting(Trainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                steps.append(self.state.global_step)
                return super().training_step(model, inputs, num_items_in_batch)

        trained(tmp_path, kind=Counting, max_steps=2, gradient_accumulation_steps=3)
        assert steps == [0, 0, 0, 1, 1, 1]

    def test_a_subclass_may_create_its_own_optimizer_and_schedule(self, tmp_path):
        class Own(Trainer):
            def create_optimizer(self):
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
                return self.optimizer

            def create_scheduler(self, num_training_steps, optimizer=None):
                self.lr_scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5)
                return self.lr_scheduler

        assert logged(trained(tmp_path, kind=Own, max_steps=3), "learning_rate") == [0.5, 0.25, 0.125]

    def test_a_subclass_may_create_optimizer_and_schedule_in_one_method(self, tmp_path):
        class Own(Trainer):
            def create_optimizer_and_scheduler(self, num_training_steps):
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=num_training_steps)
                self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)

        assert logged(trained(tmp_path, kind=Own, max_steps=2), "learning_rate") == [2.0, 2.0]

    def test_a_subclass_may_bring_its_own_train_dataloader(self, tmp_path):
        class Own(Trainer):
            def get_train_dataloader(self):
                return torch.utils.data.DataLoader(tiny.vectors(12), batch_size=4, collate_fn=self.data_collator)

        trainer = trained(tmp_path, kind=Own, num_train_epochs=2)
        assert trainer.state.global_step == 6

    def test_a_subclass_may_bring_its_own_sampler(self, tmp_path):
        class Own(Trainer):
            def _get_train_sampler(self, train_dataset=None):
                return torch.utils.data.SequentialSampler(range(24))

        trainer = make(tmp_path, kind=Own, num_train_epochs=1)
        seen, collate = [], trainer.data_collator
        trainer.data_collator = lambda samples: seen.append(samples) or collate(samples)
        trainer.train()
        assert [s["labels"].item() for batch in seen for s in batch] == [
            s["labels"].item() for s in tiny.vectors()[:24]
        ]

    def test_a_subclass_may_extend_log_evaluation_loop_and_floating_point_ops(self, tmp_path):
        class Own(Trainer):
            def log(self, logs, start_time=None):
                super().log({**logs, "mine": 1.0}, start_time)

            def evaluation_loop(self, *args, **kwargs):
                output = super().evaluation_loop(*args, **kwargs)
                output.metrics["eval_more"] = 7.0
                return output

            def floating_point_ops(self, inputs):
                return len(inputs["x"])

        trainer = trained(tmp_path, kind=Own, num_train_epochs=1, eval_strategy="epoch")
        assert len(logged(trainer, "mine")) == len(trainer.state.log_history)
        assert logged(trainer, "eval_more") == [7.0]
        assert trainer.state.total_flos == 70

    def test_prediction_step_of_a_subclass_gives_the_evaluated_loss(self, tmp_path):
        class Own(Trainer):
            def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
                assert not model.training
                return torch.tensor(3.0), None, None

        assert make(tmp_path, kind=Own).evaluate()["eval_loss"] == 3.0


def evaluated(trainer: Trainer) -> float:
    model, data = trainer.model.eval(), trainer.eval_dataset
    batch = {key: torch.stack([sample[key] for sample in data]) for key in ("x", "labels")}
    return model(**batch)[0].item()


class TestConstruction:
    def test_model_init_makes_a_model_for_every_run(self, tmp_path):
        made = []

        def init():
            made.append(tiny.Classifier())
            return made[-1]

        trainer = make_from(init, tmp_path)
        first = trainer.train().training_loss
        assert trainer.train().training_loss == first
        assert len(made) == 3
        assert trainer.model is made[-1]

    def test_optimizers_that_are_given_are_used(self, tmp_path):
        model = tiny.classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        given = {"optimizers": (optimizer, None)}
        trainer = trained(tmp_path, model, max_steps=2, lr_scheduler_type="constant", trainer=given)
        assert trainer.optimizer is optimizer
        assert logged(trainer, "learning_rate") == [0.25, 0.25]

    def test_an_optimizer_class_that_is_given_is_used(self, tmp_path):
        trainer = trained(tmp_path, max_steps=1, trainer={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.125})})
        assert type(trainer.optimizer) is torch.optim.SGD
        assert trainer.get_learning_rates() == [0.0, 0.0]  # the linear schedule has come to its end

    @pytest.mark.parametrize("name", ["params", "model", "optimizer_dict"])
    def test_settings_of_an_optimizer_may_bring_its_parameters(self, tmp_path, name):
        model = tiny.classifier()
        settings = {"lr": 0.125, name: [{"params": [first := next(model.parameters())]}]}
        given = {"optimizer_cls_and_kwargs": (torch.optim.SGD, settings)}
        trainer = trained(tmp_path, model, max_steps=1, trainer=given)
        assert [group["params"] for group in trainer.optimizer.param_groups] == [[first]]
        assert name in settings, "what was given is the caller's"

    def test_a_second_run_goes_on_with_the_weights_and_a_new_schedule(self, tmp_path):
        trainer = trained(tmp_path, max_steps=3)
        before = weights(trainer)
        trainer.train()
        assert logged(trainer, "learning_rate")[0] == 0.01
        assert trainer.state.global_step == 3
        assert not all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"model": None}, "give one of model and model_init, and not both"),
            ({"model_init": tiny.classifier}, "give one of model and model_init, and not both"),
            ({"args": {"eval_strategy": "steps"}}, "eval_dataset: eval_strategy asks for evaluations; give a set"),
            ({"data_collator": 3}, "data_collator: it must be callable"),
            ({"train_dataset": Ellipsis}, "max_steps: the train_dataset has no length"),
            (
                {
                    "optimizers": (torch.optim.SGD([nn.Parameter(torch.ones(1))]), None),
                    "optimizer_cls_and_kwargs": (1, {}),
                },
                "give one of optimizers and optimizer_cls_and_kwargs",
            ),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, given, message, tmp_path):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(tiny.vectors())

        given = {"model": tiny.classifier(), "train_dataset": tiny.vectors(), **given}
        if given["train_dataset"] is Ellipsis:
            given["train_dataset"] = Stream()
        arguments = {"output_dir": str(tmp_path), "use_cpu": True, **given.pop("args", {})}
        with pytest.raises(UserError, match=message):
            Trainer(args=TrainingArguments(**arguments), **given)

    def test_the_best_needs_a_metric(self, tmp_path):
        args = TrainingArguments(str(tmp_path), use_cpu=True)
        args.save_strategy = "best"
        with pytest.raises(UserError, match="metric_for_best_model must say what save_strategy"):
            Trainer(tiny.classifier(), args)

    @pytest.mark.parametrize("use_cache", [False, True])
    def test_use_cache_goes_into_the_configuration(self, use_cache, tmp_path):
        model = tiny.gpt2()
        model.config.use_cache = not use_cache
        make(tmp_path, model, tiny.texts(), use_cache=use_cache)
        assert model.config.use_cache is use_cache

    def test_full_determinism_refuses_what_has_no_deterministic_kernel(self, tmp_path, monkeypatch):
        for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
            monkeypatch.setenv(name, "to be taken back")
        try:
            with torch.backends.cudnn.flags():
                make(tmp_path, full_determinism=True)
            assert torch.are_deterministic_algorithms_enabled()
        finally:
            torch.use_deterministic_algorithms(False)

    def test_a_schedule_of_one_run_is_not_that_of_the_next(self, tmp_path):
        trainer = trained(tmp_path, max_steps=2)
        first = trainer.lr_scheduler
        trainer.train()
        assert trainer.lr_scheduler is not first

    def test_initial_values_are_those_of_the_run(self, tmp_path):
        trainer = make(tmp_path, num_train_epochs=2, gradient_accumulation_steps=4)
        values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
        assert values == (2, 3, 70, 140, 32, 9, 6)

    def test_special_tokens_of_the_tokenizer_go_into_the_configuration(self, tmp_path):
        class Tokenizer:
            eos_token_id, bos_token_id, pad_token_id = 5, None, 7
            model_input_names = ("input_ids",)

        model = tiny.gpt2()
        collate = {"data_collator": default_data_collator, "processing_class": Tokenizer()}
        trained(tmp_path, model, tiny.texts(), max_steps=1, trainer=collate)
        assert (model.config.eos_token_id, model.config.bos_token_id, model.config.pad_token_id) == (5, 0, 7)
        assert model.generation_config.eos_token_id == [5, 0]


def make_from(init: Any, folder: Any) -> Trainer:
    args = TrainingArguments(str(folder), use_cpu=True, max_steps=3, save_strategy="no", disable_tqdm=True)
    return Trainer(model_init=init, args=args, train_dataset=tiny.vectors())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)


class NamedLabel(Model):
    def forward(self, x, label=None):
        return nn.functional.cross_entropy(self.layer(x), label), x


class NoLoss(Model):
    def forward(self, x, labels=None):
        return {"logits": self.layer(x)}


class LogitsFirst(Model):
    def forward(self, x, labels=None):
        return self.layer(x), nn.functional.cross_entropy(self.layer(x), labels)


class Detached(Model):
    def forward(self, x, labels=None):
        return (nn.functional.cross_entropy(self.layer(x), labels).detach(),)


class Narrow(Model):
    def forward(self, x):
        return (self.layer(x).mean(),)


class TestContract:
    @pytest.mark.parametrize(
        ("model", "error", "message"),
        [
            (NamedLabel, ModelError, "NamedLabel.forward must not call an argument 'label'; call it 'labels'"),
            (NoLoss, ModelError, "no loss among logits, given a batch of x, labels"),
            (LogitsFirst, ModelError, r"the loss must be one number, got a tensor of shape \(8, 4\)"),
            (Detached, ModelError, "the loss has no gradient"),
            (
                Narrow,
                DataError,
                "Narrow.forward takes x, not labels; rename the column, or leave remove_unused_columns on",
            ),
        ],
    )
    def test_a_model_that_breaks_the_contract_is_refused_at_the_first_step(self, model, error, message, tmp_path):
        with pytest.raises(error, match=message) as caught:
            trained(tmp_path, model(), max_steps=2, remove_unused_columns=False)
        assert "\n" not in str(caught.value)

    def test_label_names_are_the_users_to_say(self, tmp_path):
        class Targets(Model):
            def forward(self, x, target=None):
                return (nn.functional.cross_entropy(self.layer(x), target), self.layer(x))

        data = [{"x": s["x"], "target": s["labels"]} for s in tiny.vectors(16)]
        trainer = trained(tmp_path, Targets(), data, max_steps=1, label_names=["target"])
        output = trainer.predict(data)
        assert output.label_ids.tolist() == [s["target"].item() for s in data]
        assert "test_loss" in output.metrics

    def test_the_loss_of_a_model_is_checked_once(self, tmp_path, monkeypatch):
        from trainwright.training import losses

        calls = []
        check = losses.check_loss
        monkeypatch.setattr(losses, "check_loss", lambda *args: calls.append(1) or check(*args))
        trained(tmp_path, max_steps=4, gradient_accumulation_steps=2)
        assert calls == [1]

    def test_an_output_folder_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"output_dir: .*file"):
            make(tmp_path / "file")


class TestMemory:
    def test_a_batch_that_does_not_fit_is_made_smaller(self, tmp_path):
        class Full(tiny.Classifier):
            def forward(self, x, labels=None):
                if len(x) > 15:
                    raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
                return super().forward(x, labels)

        trainer = make(tmp_path, Full(), per_device_train_batch_size=20, num_train_epochs=1, auto_find_batch_size=True)
        trainer.train()
        assert trainer._train_batch_size == trainer.state.train_batch_size == 14  # 20, 18, 16, 14
        assert trainer.state.global_step == 5
        with pytest.raises(RuntimeError, match="out of memory"):
            trained(tmp_path, Full(), per_device_train_batch_size=20)

    def test_a_resumed_run_begins_with_the_batch_size_that_fitted(self, tmp_path):
        options = {"per_device_train_batch_size": 20, "save_strategy": "steps", "auto_find_batch_size": True}
        first = make(tmp_path, max_steps=2, **options)
        first._train_batch_size = 14
        first.train()
        resumed = make(tmp_path, max_steps=3, **options)
        resumed.train(resume_from_checkpoint=True)
        assert resumed._train_batch_size == 14

    def test_a_graph_that_a_training_step_returns_is_not_kept(self, tmp_path, monkeypatch):
        class Careless(Trainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                loss = model(**inputs)[0]
                loss.backward()
                return loss

        seen, add = [], LossMeter.add
        monkeypatch.setattr(LossMeter, "add", lambda meter, losses: seen.extend(losses) or add(meter, losses))
        trained(tmp_path, kind=Careless, max_steps=2)
        assert [loss.requires_grad for loss in seen] == [False, False]

    def test_a_batch_of_one_that_does_not_fit_ends_the_run(self, tmp_path):
        class Fuller(tiny.Classifier):
            def forward(self, x, labels=None):
                raise RuntimeError("CUDA out of memory.")

        with pytest.raises(UserError, match="not even a batch of 1 fits into memory"):
            trained(tmp_path, Fuller(), per_device_train_batch_size=3, auto_find_batch_size=True)

    def test_caches_are_emptied_every_few_steps(self, tmp_path, monkeypatch):
        from trainwright.training import loop

        calls = []
        monkeypatch.setattr(loop, "clear_device_cache", lambda: calls.append(1))
        trained(tmp_path, max_steps=7, torch_empty_cache_steps=3)
        assert len(calls) == 2

    def test_gradients_are_gone_while_evaluating(self, tmp_path):
        class Look(TrainerCallback):
            def on_prediction_step(self, args, state, control, model=None, **kwargs):
                assert all(parameter.grad is None for parameter in model.parameters())

        trained(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, trainer={"callbacks": [Look]})

    def test_the_store_belongs_to_the_job_that_the_environment_names(self, tmp_path, monkeypatch):
        from trainwright.contract import ENV_JOB_FILE, ResolvedJob

        job = ResolvedJob(name="a", namespace="b", uid="u-1", attempt=3, nodes=1, per_node=1)
        (tmp_path / "job.json").write_text(job.to_json())
        monkeypatch.setenv(ENV_JOB_FILE, str(tmp_path / "job.json"))
        store = session.open_store(str(tmp_path))
        assert (store.fence.owner, store.fence.attempt) == ("u-1", 3)

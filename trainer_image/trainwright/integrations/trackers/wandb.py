"""Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trainwright.integrations.trackers.tracker import SINGLE_VALUES, Facts, Row, Tracker, rewrite_logs


class WandbCallback(Tracker):
    """Environment: WANDB_PROJECT, WANDB_LOG_MODEL (end, checkpoint, false), WANDB_WATCH, and those of wandb."""

    name = "wandb"
    keeps_run = True

    def look_up(self) -> None:
        import wandb

        self._wandb = wandb
        self._log_model = os.environ.get("WANDB_LOG_MODEL", "false")

    def begin(self, facts: Facts) -> str | None:
        wandb, args = self._wandb, facts.args
        if facts.trial_name is not None:
            wandb.finish()
            named = {"name": facts.trial_name, "group": args.run_name or args.output_dir}
        else:
            named = {} if args.run_name is None else {"name": args.run_name}
        if wandb.run is None:
            continued = {} if facts.run_id is None else {"id": facts.run_id, "resume": "allow"}
            wandb.init(project=os.environ.get("WANDB_PROJECT", "huggingface"), **named, **continued)
        wandb.config.update(facts.parameters, allow_val_change=True)
        wandb.define_metric("train/global_step")
        wandb.define_metric("*", step_metric="train/global_step", step_sync=True)
        if (count := facts.num_parameters()) is not None:
            wandb.config.update({"model/num_parameters": count}, allow_val_change=True)
        if self._log_model in ("checkpoint", "end") and not facts.resumes:
            self._keep_architecture(facts)
        run_id: str = wandb.run.id
        return run_id

    def _keep_architecture(self, facts: Facts) -> None:
        metadata = {
            "model_config": facts.model_config or None,
            "num_parameters": self._wandb.config.get("model/num_parameters"),
            "initial_model": True,
        }
        artifact = self._wandb.Artifact(name=self._model_name(facts), type="model", metadata=metadata)
        with artifact.new_file("model_architecture.txt", mode="w") as file:
            print(facts.model, file=file)
        self._wandb.run.log_artifact(artifact, aliases=["base_model"])

    def adopt(self, facts: Facts) -> None:
        if (watched := os.environ.get("WANDB_WATCH", "false")) in ("all", "parameters", "gradients"):
            self._wandb.watch(facts.model, log=watched, log_freq=max(100, int(facts.logging_steps)))

    def page(self) -> str | None:
        run = self._wandb.run
        return None if run is None or run.offline else run.url

    def send(self, facts: Facts, rows: list[Row]) -> None:
        (row,) = rows
        if row.predicted:
            self._wandb.log(rewrite_logs(row.values))
            return
        for name in SINGLE_VALUES:
            if name in row.values:
                self._wandb.run.summary[name] = row.values[name]
        others = {name: value for name, value in row.values.items() if name not in SINGLE_VALUES}
        self._wandb.log({**rewrite_logs(others), "train/global_step": row.step})

    def keeps_checkpoints(self) -> bool:
        return self._log_model == "checkpoint"

    def keep(self, facts: Facts, folder: str, name: str, row: Row) -> None:
        metadata = {**self._figures(), "model/num_parameters": self._wandb.config.get("model/num_parameters")}
        artifact = self._wandb.Artifact(name=self._model_name(facts), type="model", metadata=metadata)
        artifact.add_dir(folder)
        aliases = [f"epoch_{round(row.epoch or 0, 2)}", f"checkpoint_global_step_{row.step}"]
        self._wandb.log_artifact(artifact, aliases=aliases).wait()

    def keeps_model(self) -> bool:
        return self._log_model in ("checkpoint", "end")

    def keep_model(self, facts: Facts, folder: str, state: Any) -> None:
        args, count = facts.args, self._wandb.config.get("model/num_parameters")
        best = {
            f"eval/{args.metric_for_best_model}": state.best_metric,
            "train/total_floss": state.total_flos,
            "model/num_parameters": count,
        }
        metadata = {**(best if args.load_best_model_at_end else self._figures()), "final_model": True}
        artifact = self._wandb.Artifact(name=self._model_name(facts), type="model", metadata=metadata)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                artifact.add_file(str(path), name=str(path.relative_to(folder)))
        self._wandb.run.log_artifact(artifact, aliases=["final_model"]).wait()

    def _figures(self) -> dict[str, Any]:
        summary = dict(self._wandb.summary)
        return {k: v for k, v in summary.items() if isinstance(v, int | float) and not k.startswith("_")}

    def _model_name(self, facts: Facts) -> str:
        run, name = self._wandb.run, facts.args.run_name
        return f"model-{run.id if name in (None, facts.args.output_dir) else run.name}"

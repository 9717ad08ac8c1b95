"""Trackio: a local dashboard, or a Space of the Hub. Trackio knows a run by its project and name."""

from __future__ import annotations

import re
import secrets
from typing import Any

from trainwright.integrations.trackers.tracker import (
    IDLE_SECONDS,
    SINGLE_VALUES,
    Facts,
    Row,
    Tracker,
    rewrite_logs,
)

_SPACE = "https://huggingface.co/spaces/{}"


class TrackioCallback(Tracker):
    """Arguments: project, run_name, trackio_space_id, trackio_bucket_id, trackio_static_space_id, hub_private_repo."""

    name = "trackio"
    _space: str | None = None
    _static: str | None = None
    _run: Any = None

    def look_up(self) -> None:
        import trackio

        self._trackio = trackio

    def begin(self, facts: Facts) -> str | None:
        args, trackio = facts.args, self._trackio
        self._run = trackio.init(
            project=args.project, name=facts.run_id or args.run_name, space_id=args.trackio_space_id, resume="allow",
            private=args.hub_private_repo, bucket_id=args.trackio_bucket_id,
        )  # fmt: skip
        self._space = trackio.context_vars.current_space_id.get()
        trackio.config.update(facts.parameters, allow_val_change=True)
        if (count := facts.num_parameters()) is not None:
            trackio.config["model/num_parameters"] = count
        name: str = self._run.name
        return name

    def adopt(self, facts: Facts) -> None:
        """``trackio.log`` of the script, on its own thread, then goes to this run."""
        self._trackio.context_vars.current_run.set(self._run)
        self._trackio.context_vars.current_project.set(facts.args.project)

    def page(self) -> str | None:
        return _SPACE.format(self._space) if self._space else None

    def send(self, facts: Facts, rows: list[Row]) -> None:
        (row,) = rows
        if self._run is None:  # logged after the end of training
            self._run = self._trackio.init(project=facts.args.project, name=self.run_id, resume="allow")
        if row.predicted:
            self._run.log(rewrite_logs(row.values))
            return
        others = {name: value for name, value in row.values.items() if name not in SINGLE_VALUES}
        self._run.log({**rewrite_logs(others), "train/global_step": row.step})

    def end(self, facts: Facts, finished: bool) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
        if self._space and finished and facts.args.trackio_static_space_id is not False:
            self._static = self._trackio.freeze(
                space_id=self._space, project=facts.args.project, new_space_id=self._static_name(facts.args),
                private=facts.args.hub_private_repo,
            )  # fmt: skip
            self._tag_model(facts.model)

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        super().on_train_end(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if state.is_world_process_zero:
            self._trackio.context_vars.current_run.set(None)

    def on_push_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Publish the run beside the model, unless it has a Space already, and tag the model with it."""
        if not self._sends(state) or self._tried is None or self._space or args.trackio_static_space_id is False:
            return
        self._queue(lambda: self._publish(args, model))
        if self._ended:
            self._sender.stop(IDLE_SECONDS, IDLE_SECONDS)

    def _publish(self, args: Any, model: Any) -> None:
        self._static = self._trackio.sync(
            project=args.project, sdk="static", space_id=self._static_name(args), private=args.hub_private_repo,
            bucket_id=args.trackio_bucket_id, force=True,
        )  # fmt: skip
        self._tag_model(model)

    def _static_name(self, args: Any) -> str:
        return str(self._static or args.trackio_static_space_id or space_name(args.project))

    def _tag_model(self, model: Any) -> None:
        """The Hub shows the Space that a model's tag names."""
        space = self._static or self._space
        if model is not None and space is not None:
            kept = [tag for tag in getattr(model, "model_tags", None) or () if not tag.startswith("trackio")]
            model.model_tags = [*kept, "trackio", f"trackio:{_SPACE.format(space)}"]


def space_name(project: str) -> str:
    """A name that the Hub takes, with a random end."""
    name = re.sub(r"-+", "-", re.sub(r"[^a-z0-9._-]", "-", project.strip().lower())).strip("-_.")
    return f"{(name or 'trackio-project')[:81].rstrip('-')}-static-{secrets.token_hex(3)}"

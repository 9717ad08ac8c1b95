"""What the Trainer uploads to the Hub, and when; :mod:`trainwright.integrations.hub` does the uploading."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path
from typing import Any

from trainwright.integrations.hub import (
    EXCLUDED,
    NOT_MODEL,
    PATIENCE_SECONDS,
    START_SECONDS,
    Hub,
    PushInProgress,
    Upload,
    is_of_model,
    is_public,
)


def create(trainer: Any, token: str | None, private: bool | None) -> None:
    """Create the repository, and wait a moment for it: its full name begins with that of the user."""
    args = trainer.args
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    token = args.hub_token if token is None else token
    trainer._hub = trainer._hub or Hub(name, Path(args.output_dir), token)
    trainer.push_in_progress = None
    created = trainer._hub.create(token, args.hub_private_repo if private is None else private)
    wait([created], START_SECONDS)
    trainer.hub_model_id = trainer._hub.repository


def push(
    trainer: Any, message: str, blocking: bool, token: str | None, revision: str | None, card: dict[str, Any]
) -> Any:
    """Upload the output folder, after the uploads that are under way."""
    args, hub = trainer.args, trainer._hub
    name = card.pop("model_name", None) or trainer.hub_model_id.split("/")[-1]
    tags = [card["tags"]] if isinstance(card.get("tags"), str) else list(card.get("tags") or ())
    tags += [tag for tag in getattr(trainer.model, "model_tags", None) or () if tag not in tags]
    trainer.create_model_card(model_name=name, **({**card, "tags": tags} if tags else card))
    output = Path(args.output_dir)
    future = hub.upload(
        Upload(
            folder=hub.stage(output, is_public),
            message=message,
            source=output,
            token=args.hub_token if token is None else token,
            revision=args.hub_revision if revision is None else revision,
            excluded=EXCLUDED,
        )
    )
    if not blocking:
        trainer.push_in_progress = PushInProgress([future])
        return future
    hub.finish(PATIENCE_SECONDS)
    return None if future.exception() is not None else future.result()


def push_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Upload the model of a checkpoint, and for two of the strategies the checkpoint itself."""
    args, state, hub = trainer.args, trainer.state, trainer._hub
    busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if busy and not args.hub_always_push:
        return
    trainer.control = trainer.callback_handler.on_push_begin(args, state, trainer.control)
    place = f"epoch {int(state.epoch or 0)}" if args.save_strategy == "epoch" else f"step {state.global_step}"
    message, output = f"Training in progress, {place}", Path(args.output_dir)
    common = {"token": args.hub_token, "revision": args.hub_revision}
    root = hub.stage(output, is_public)
    hub.stage(checkpoint, is_of_model, into=root)
    excluded = [f"{name}*" for name in NOT_MODEL]
    jobs = [hub.upload(Upload(root, message, checkpoint, excluded=excluded, **common))]
    if args.hub_strategy in ("checkpoint", "all_checkpoints"):
        path = "last-checkpoint" if args.hub_strategy == "checkpoint" else checkpoint.name
        jobs.append(
            hub.upload(Upload(hub.stage(checkpoint), f"{message}, checkpoint", checkpoint, path=path, **common))
        )
    trainer.push_in_progress = PushInProgress([*(trainer.push_in_progress.jobs if busy else []), *jobs])

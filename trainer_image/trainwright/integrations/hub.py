"""Uploads to the Hugging Face Hub, on a thread of their own: the Hub never holds up or ends a run.

An upload that fails because the Hub cannot be reached, is busy or has changed meanwhile is tried again; huggingface_hub
sends only the files that the Hub does not have yet. What was not uploaded is said at the end, with the command for it.
"""

from __future__ import annotations

import atexit
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainwright.callbacks.callback import TrainerCallback
from trainwright.integrations import addresses
from trainwright.integrations.failures import is_outage, one_line
from trainwright.integrations.staging import remove, stage

START_SECONDS = 15.0
"""How long the start of a run waits for the repository."""
PATIENCE_SECONDS = 120.0
"""How long the end of a run goes on trying."""
LONGEST_PAUSE_SECONDS = 60.0
EXCLUDED = ["_*", "checkpoint-*", ".*"]
"""What stays out of the root of the repository."""
NOT_MODEL = (
    *("optimizer", "scheduler", "scaler", "rng_state", "data_state", "trainer_state", "trainwright_manifest"),
    "pytorch_model_fsdp",
)
"""How the names of files begin that a checkpoint has beside the model."""
_RETRIED = {408, 409, 412, 425, 429}


@dataclass
class Upload:
    """One commit. ``folder`` is the staged copy, ``source`` what a person would upload instead."""

    folder: Path
    message: str
    source: Path
    path: str | None = None
    revision: str | None = None
    token: str | None = None
    excluded: list[str] = field(default_factory=list)
    future: Future[Any] = field(default_factory=Future)
    work: Callable[[], Any] | None = None
    """Something else than an upload: the creation of the repository."""


class PushInProgress:
    """The uploads that are under way, under the name and with the methods of transformers."""

    def __init__(self, jobs: list[Future[Any]]) -> None:
        self.jobs = jobs

    def is_done(self) -> bool:
        return all(job.done() for job in self.jobs)

    def wait_until_done(self) -> None:
        for job in self.jobs:
            job.exception()

    def cancel(self) -> None:
        self.jobs = [job for job in self.jobs if not (job.cancel() or job.done())]


class Hub:
    """The repository of a run, and the queue of uploads to it."""

    def __init__(self, name: str, output: Path, token: str | None) -> None:
        self.repository, self._output, self._token = name, output, token
        self._queue: deque[Upload] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None
        self._left: list[Upload] = []
        self._count = 0
        self._trouble: str | None = None
        self._is_named = "/" in name

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        from trainwright import __version__

        return HfApi(library_name="trainwright", library_version=__version__)

    def create(self, token: str | None, private: bool | None) -> Future[Any]:
        """Create the repository, unless it exists."""

        def work() -> str:
            url = self._api().create_repo(self.repository, token=token, private=private, exist_ok=True)
            self.repository, self._is_named = url.repo_id, True
            addresses.announce(addresses.HUB, str(url))
            return str(url.repo_id)

        return self._put(Upload(Path(), "", self._output, token=token, work=work))

    def stage(self, source: Path, keeps: Callable[[str], bool] = lambda name: True, into: Path | None = None) -> Path:
        """A copy of ``source`` that stays until it is uploaded; ``into`` adds it to an earlier one."""
        if into is None:
            self._count += 1
        return stage(source, self._output, into.name if into is not None else f"hub-{self._count}", keeps)

    def upload(self, upload: Upload) -> Future[Any]:
        return self._put(upload)

    def _put(self, upload: Upload) -> Future[Any]:
        with self._changed:
            self._queue.append(upload)
            if self._thread is None:
                self._deadline = None
                self._thread = threading.Thread(target=self._work, name="hub", daemon=True)
                self._thread.start()
                atexit.register(self.tell_left)
            self._changed.notify_all()
        return upload.future

    def finish(self, patience: float) -> None:
        """Wait for all uploads; one that fails is tried again for ``patience`` seconds. Ends the thread."""
        thread = self._thread
        if thread is None:
            return
        with self._changed:
            self._deadline = time.monotonic() + patience
            self._changed.notify_all()
        thread.join()
        self._thread = None
        self.tell_left()

    def tell_left(self) -> None:
        """Say what was not uploaded, and how to do it."""
        atexit.unregister(self.tell_left)
        left = [*self._left, *(upload for upload in self._queue if upload.work is None)]
        self._left = []
        for command in dict.fromkeys(self._command(upload) for upload in left):
            say(f"hub: not uploaded; run: {command}")

    def _command(self, upload: Upload) -> str:
        options = [word for pattern in upload.excluded for word in ("--exclude", pattern)]
        options += ["--revision", upload.revision] if upload.revision else []
        return shlex.join(["hf", "upload", self.repository, str(upload.source), upload.path or ".", *options])

    # The methods below run on the thread.

    def _work(self) -> None:
        while (upload := self._next()) is not None:
            if upload.future.set_running_or_notify_cancel():
                self._try(upload)
            if upload.work is None:
                remove(upload.folder)

    def _next(self) -> Upload | None:
        with self._changed:
            while not self._queue:
                if self._deadline is not None:
                    return None
                self._changed.wait()
            return self._queue.popleft()

    def _try(self, upload: Upload) -> None:
        pause = 1.0
        while True:
            try:
                result = upload.work() if upload.work is not None else self._send(upload)
            except Exception as error:
                if not may_succeed_later(error) or self._is_late():
                    self._fail(upload, error)
                    return
                self._say_once(f"the Hub cannot be reached now, and training goes on: {self._shown(error)}")
                self._pause(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self._trouble = None
                upload.future.set_result(result)
                return

    def _send(self, upload: Upload) -> Any:
        api = self._api()
        if not self._is_named:  # the repository could not be created before
            url = api.create_repo(self.repository, token=upload.token, exist_ok=True)
            self.repository, self._is_named = url.repo_id, True
            addresses.announce(addresses.HUB, str(url))
        return api.upload_folder(
            repo_id=self.repository, folder_path=str(upload.folder), path_in_repo=upload.path,
            commit_message=upload.message, token=upload.token, revision=upload.revision,
        )  # fmt: skip

    def _fail(self, upload: Upload, error: Exception) -> None:
        what = "create the repository" if upload.work is not None else f"upload {upload.message!r}"
        say(f"hub: cannot {what}, and the run goes on: {self._shown(error)}")
        if upload.work is None:
            self._left.append(upload)
        upload.future.set_exception(error)

    def _shown(self, error: Exception) -> str:
        text = one_line(error)
        for secret in {self._token} - {None, ""}:
            text = text.replace(str(secret), "***")
        return text

    def _say_once(self, line: str) -> None:
        if self._trouble is None:
            self._trouble = line
            say(f"hub: {line}")

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._changed:
            while (left := end - time.monotonic()) > 0:
                if self._deadline is not None:
                    left = min(left, self._deadline - time.monotonic())
                    if left <= 0:
                        return
                self._changed.wait(left)


class HubCallback(TrainerCallback):
    """Uploads at each save, by the method of the Trainer that subclasses may override."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self._trainer._push_from_checkpoint(str(self._trainer.checkpoints.path(state.global_step)))


def is_of_model(name: str) -> bool:
    """Whether a file or folder of a checkpoint belongs to the model."""
    return not name.startswith((*NOT_MODEL, "."))


def is_public(name: str) -> bool:
    """Whether a file or folder of the output folder goes to the root of the repository."""
    return not name.startswith(("_", ".", "checkpoint-"))


def may_succeed_later(error: BaseException) -> bool:
    """Whether trying again may help: no connection, a busy server, or a commit that came in between."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _RETRIED if isinstance(status, int) and status < 500 else is_outage(error)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

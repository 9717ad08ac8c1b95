"""Checkpoints that are written while training continues: copied to the host at once, then written by a thread.

Only one checkpoint is written at a time; the next one waits for it. The thread does everything that makes a checkpoint
safe (temporary folder, flush, fence, rename), as a synchronous save does. Only afterwards are the ``on_save`` callbacks
called and older checkpoints deleted.

With several ranks, the threads communicate through their own process group. An error in the thread of any rank is
raised on the training thread of every rank, before the same step. As in :mod:`trainwright.distributed.preemption`, this
costs the steps nothing: the training thread writes ``begun = step`` and *then* reads ``finished``; the thread sets
``finished`` and *then* reads ``begun``, and the ranks take the maximum. So a step that began without seeing
``finished`` is included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from trainwright.checkpoint.part import Piece
from trainwright.checkpoint.snapshot import Snapshot
from trainwright.checkpoint.staging import Copy, Stager
from trainwright.checkpoint.store import CheckpointStore

FAILED_RUN_WAIT_SECONDS = 30.0
"""How long a failed run waits for its last checkpoint, which may need a peer that is gone."""


class BackgroundWriter:
    """Writes the checkpoints of one call of ``train`` on its own thread.

    Args:
        take: Returns the pieces of a checkpoint of the current state, made from the copies of its argument.
    """

    def __init__(self, store: CheckpointStore, take: Callable[[Copy], Snapshot]) -> None:
        self._store, self._take = store, take
        self._stager = Stager()
        self._save: _Save | None = None
        self._boundaries = 0
        self._warming: threading.Thread | None = None

    def start(self, step: int, then: Callable[[], None], done: Callable[[], None]) -> None:
        """Copy the current state and begin to write ``checkpoint-<step>``; all ranks call it together.

        Args:
            then: Called on the writing thread when the checkpoint is complete.
            done: Called by :meth:`settle` on the training thread, unless the write failed.
        """
        self.settle()
        if self._warming is not None:
            self._warming.join()
        self._save = _Save(self._own_store(), step, self._take(self._stager.copy), then, done)

    def _own_store(self) -> CheckpointStore:
        """The store for the writing thread, whose collectives are separate from those of the training."""
        return self._store.seen_by(self._store.apart())

    def is_due(self, step: int) -> bool:
        """Whether all ranks must call :meth:`settle` before ``step``, which begins now."""
        if self._save is not None:
            return self._save.is_due(step)
        self._boundaries += 1
        if self._boundaries == 2:  # after the first step the optimizer has its state
            self._warm_up()
        return False

    def _warm_up(self) -> None:
        """Allocate the memory for the copies in a thread, so that the first checkpoint does not wait for it."""
        states: list[tuple[str, Any]] = []
        self._take(lambda name, state: states.append((name, state)))
        self._warming = threading.Thread(target=lambda: [self._stager.copy(*state) for state in states], daemon=True)
        self._warming.start()

    def settle(self) -> None:
        """Wait until the current checkpoint, if any, is complete. All ranks call it before the same step.

        Raises:
            UserError: The checkpoint could not be written; the same error on every rank.
        """
        save, self._save = self._save, None
        if save is not None:
            save.result()
            save.done()

    @property
    def is_writing(self) -> bool:
        return self._save is not None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the current checkpoint, but only for a limited time after an error: a peer may be gone."""
        if kind is None:
            self.settle()
        elif self._save is not None:
            self._save.thread.join(FAILED_RUN_WAIT_SECONDS)


class _Save:
    """One checkpoint that is being written."""

    def __init__(
        self, store: CheckpointStore, step: int, pieces: Snapshot, then: Callable[[], None], done: Callable[[], None]
    ) -> None:
        self._store, self._step, self._then, self.done = store, step, then, done
        self._part, self._later = store.part(step), pieces.later
        self._begun, self._due_after = step, -1
        self._finished, self._agreed = False, threading.Event()
        self._error: BaseException | None = None
        self._write_at_once(pieces.at_once)
        self.thread = threading.Thread(target=self._run, name=f"checkpoint-{step}", daemon=True)
        self.thread.start()

    def _write_at_once(self, pieces: list[Piece]) -> None:
        """Let the thread raise an error that occurs here, because the threads of the other ranks wait for it."""
        try:
            with self._store.explained(f"save checkpoint-{self._step}"):
                self._part.open()
                self._part.write_unflushed(pieces)
        except Exception as error:
            self._part.failure = error

    def _run(self) -> None:
        try:
            self._store.write(self._step, self._later, self._part)
            self._then()
        except BaseException as error:  # raised later, on the training thread
            self._error = error
        self._finished = True
        try:
            self._due_after = max(self._store.ranks.gather(self._begun))
        except RuntimeError as error:  # a peer is gone
            self._error = self._error or error
        self._agreed.set()

    def is_due(self, step: int) -> bool:
        self._begun = step
        if not self._finished:
            return False
        self._agreed.wait()
        return step > self._due_after

    def result(self) -> None:
        self.thread.join()
        if self._error is not None:
            raise self._error

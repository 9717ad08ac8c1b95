"""Checkpoints that are written while training goes on: copied to the host at once, brought to the disk by a thread.

One checkpoint is under way at a time: the next one waits for it. All that makes a checkpoint safe (aside, flushed,
fenced, renamed) is done by the thread as it would be without one; only then are the listeners of ``on_save`` told, and
only then do older checkpoints go.

With several ranks their threads talk through a process group of their own. What the thread of any rank ran into is
raised on the training thread of every rank before the same step. As in :mod:`trainwright.distributed.preemption` no
step pays for that: the training thread writes ``begun = step``, *then* looks at ``finished``; the thread sets
``finished``, *then* reads ``begun``, and the ranks take the maximum. So a step that was begun without a look at
``finished`` is covered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from trainwright.checkpoint.part import Piece
from trainwright.checkpoint.snapshot import Snapshot
from trainwright.checkpoint.staging import Copy, Stager
from trainwright.checkpoint.store import CheckpointStore
from trainwright.distributed.ranks import Ranks

LONGEST_FAREWELL_SECONDS = 30.0
"""How long a run that failed waits for its last checkpoint, for which it may need a peer that is gone."""


class Background:
    """Writes the checkpoints of one call of ``train`` on a thread of its own.

    Args:
        take: Gives the pieces of a checkpoint as the run stands, through the copies that its argument makes.
    """

    def __init__(self, store: CheckpointStore, take: Callable[[Copy], Snapshot]) -> None:
        self._store, self._take = store, take
        self._stager = Stager()
        self._ranks: Ranks | None = None
        self._save: _Save | None = None
        self._boundaries = 0
        self._warming: threading.Thread | None = None

    def start(self, step: int, then: Callable[[], None], done: Callable[[], None]) -> None:
        """Copy the run as it stands and begin to write ``checkpoint-<step>``; all ranks call it together.

        Args:
            then: What the thread does when the checkpoint is there.
            done: What :meth:`settle` does on the thread that trains, unless the writing failed.
        """
        self.settle()
        if self._warming is not None:
            self._warming.join()
        self._save = _Save(self._own_store(), step, self._take(self._stager.copy), then, done)

    def _own_store(self) -> CheckpointStore:
        """The store as the thread sees it: with collectives that do not meet those of the training."""
        if self._ranks is None:
            self._ranks = self._store.ranks.apart()
        return self._store.seen_by(self._ranks)

    def is_due(self, step: int) -> bool:
        """Whether every rank settles before ``step``, which begins now."""
        if self._save is not None:
            return self._save.is_due(step)
        self._boundaries += 1
        if self._boundaries == 2:  # the first step is done, and the optimizer has its state
            self._warm_up()
        return False

    def _warm_up(self) -> None:
        """Touch the memory for the copies beside the training, so that the first checkpoint need not wait for it."""
        states: list[tuple[str, Any]] = []
        self._take(lambda name, state: states.append((name, state)))
        self._warming = threading.Thread(target=lambda: [self._stager.copy(*state) for state in states], daemon=True)
        self._warming.start()

    def settle(self) -> None:
        """Wait until the checkpoint under way, if any, is there. All ranks call it before the same step.

        Raises:
            UserError: It could not be written; the same error on every rank.
        """
        save, self._save = self._save, None
        if save is not None:
            save.result()
            save.done()

    @property
    def is_writing(self) -> bool:
        return self._save is not None

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for what is under way. After an error not for ever: it may need a peer that is gone."""
        if kind is None:
            self.settle()
        elif self._save is not None:
            self._save.thread.join(LONGEST_FAREWELL_SECONDS)


class _Save:
    """One checkpoint under way."""

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
        """A failure here is the thread's to tell, as the other ranks' threads wait for it."""
        try:
            with self._store.explained(f"save checkpoint-{self._step}"):
                self._part.open()
                self._part.write(pieces)
        except Exception as error:
            failure = error
            self._later = [lambda _: _raise(failure)]

    def _run(self) -> None:
        try:
            self._store.write(self._step, self._later, self._part)
            self._then()
        except BaseException as error:  # told on the thread that trains
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


def _raise(error: BaseException) -> None:
    raise error

"""Stop all ranks before the same step when any rank gets SIGTERM, without cost per step.

A checkpoint needs every rank at the same step, but SIGTERM reaches the ranks at different times, or only those of one
node. A collective in every step would cost a round trip. Instead each rank has a *listener* thread with a separate
connection to the store, and the order of reads and writes makes the agreement safe:

- the main thread writes ``begun = step``, *then* reads ``pending``;
- when any rank must stop, the listener sets ``pending``, *then* reads ``begun`` and publishes it.

Therefore the published value always includes a step that began before ``pending`` was visible. The last step is the
maximum of the published values: ranks behind it continue up to it, and no rank is beyond it. Listeners answer while the
main thread computes, waits in a collective, evaluates or saves, so no rank waits for another rank's main thread.
"""

from __future__ import annotations

import _thread
import functools
import itertools
import os
import signal
import sys
import threading
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

from trainwright.contract import ExitCode
from trainwright.launch import nodefiles

AGREEMENT_SECONDS = 15.0
"""Timeout for the other ranks' listeners, which answer at once unless their process has ended."""

_FOREVER = timedelta(days=20)  # the limit of milliseconds in 32 bits is 24 days
_JOIN_SECONDS = 2.0
_runs = itertools.count()


def under_launcher() -> bool:
    """Whether the launcher of a TrainingJob started this process; every job then saves a checkpoint on SIGTERM."""
    return nodefiles.node_dir() is not None


class Preemption:
    """Listens for SIGTERM while a model trains; a context manager around the loop.

    The caller calls ``begin(step)`` before every step, with numbers that increase by one. True means that every rank
    stops here: the caller saves a checkpoint and calls :meth:`leave`. After ``with`` the previous SIGTERM handler is
    restored.

    Args:
        agreement_seconds: Timeout for the other ranks.
        listens: If false, the SIGTERM handler is not changed, and ``begin`` always returns False.
    """

    def __init__(self, agreement_seconds: float = AGREEMENT_SECONDS, listens: bool = True) -> None:
        self._agreement_seconds, self._listens = agreement_seconds, listens
        self._begun = -1
        self._pending = False
        self._last: int | None = None
        self._settled = threading.Event()
        self._gang: _Gang | None = None
        self._listener: threading.Thread
        self._former: Any = None
        self._process = os.getpid()

    def begin(self, step: int) -> bool:
        """Record that ``step`` begins; return True if all ranks agreed to stop before it.

        Raises:
            SystemExit: This rank must stop, but another rank that a checkpoint needs has ended.
        """
        self._begun = step
        if not self._pending:
            return False
        return step > self._agreed()

    @property
    def requested(self) -> bool:
        """Whether this rank must stop soon, so that long work between steps can end early."""
        return self._pending

    def leave(self) -> NoReturn:
        """Exit as preempted; call this after the checkpoint is complete."""
        raise SystemExit(int(ExitCode.PREEMPTED))

    def __enter__(self) -> Preemption:
        if not self._listens:
            return self
        self._gang = _Gang.join(next(_runs))
        if self._gang is not None:
            self._listener = threading.Thread(target=self._listen, args=(self._gang,), name="preemption", daemon=True)
            self._listener.start()
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)
        if self._gang is not None:
            self._gang.close(self._begun)
            self._listener.join(_JOIN_SECONDS)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data loader worker inherits the handler
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif self._gang is not None:
            # Use _thread: a handler may interrupt code that holds threading's locks, and must not wait for the network.
            _thread.start_new_thread(self._ask, (self._gang,))
        elif not self._pending:
            self._settle(self._begun)

    def _ask(self, gang: _Gang) -> None:
        try:
            gang.ask_all()
        except RuntimeError:  # without the store the ranks cannot agree
            self._settle(None)

    def _settle(self, last: int | None) -> None:
        self._last = last
        self._pending = True
        self._settled.set()

    def _listen(self, gang: _Gang) -> None:
        try:
            if not gang.hear():
                return
            self._pending = True
            last = gang.agree(self._begun, self._agreement_seconds)
        except RuntimeError:  # the store or a peer is gone
            last = None
        if self._pending or gang.asked:
            self._settle(last)

    def _agreed(self) -> int:
        self._settled.wait(self._agreement_seconds + 5)
        if self._last is None:
            print("preemption: a peer is gone, leaving without a checkpoint", file=sys.stderr, flush=True)
            self.leave()
        return self._last


@functools.lru_cache(maxsize=1)
def _connections(store: Any) -> tuple[Any, Any]:
    """Return two separate connections, to wait and to send, because a waiting one is locked; cached for later runs."""
    return store.clone(), store.clone()


class _Gang:
    """Messages between the ranks of one run about stopping: one key per rank, and the step that each rank had begun."""

    def __init__(self, rank: int, world_size: int, ear: Any, mouth: Any) -> None:
        self._rank = rank
        self._mailboxes = [f"mail/{peer}" for peer in range(world_size)]
        self._begun = [f"begun/{peer}" for peer in range(world_size)]
        self._ear, self._mouth = ear, mouth
        self._closed = False
        self.asked = False

    @staticmethod
    def join(run: int) -> _Gang | None:
        """Join the ranks of ``run``; return None if this process trains alone."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return None
        if (world_size := distributed.get_world_size()) == 1:
            return None
        store = distributed.distributed_c10d._get_default_store()
        ear, mouth = (distributed.PrefixStore(f"preemption/{run}", own) for own in _connections(store))
        return _Gang(distributed.get_rank(), world_size, ear, mouth)

    def ask_all(self) -> None:
        """Request every rank to stop, including this one."""
        self.asked = True
        self._mouth.multi_set(self._mailboxes, ["stop"] * len(self._mailboxes))

    def hear(self) -> bool:
        """Wait for a request to stop; return False if the run ended instead."""
        self._ear.wait([self._mailboxes[self._rank]], _FOREVER)
        return not self._closed

    def agree(self, begun: int, seconds: float) -> int:
        """Publish the step that this rank had begun, wait for all others, and return the last step.

        Raises:
            RuntimeError: Not every rank answered within ``seconds``.
        """
        self._ear.set(self._begun[self._rank], str(begun))
        self._ear.wait(self._begun, timedelta(seconds=seconds))
        return max(map(int, self._ear.multi_get(self._begun)))

    def close(self, begun: int) -> None:
        """End the listener, and publish ``begun`` for ranks that still wait; a published value is never changed."""
        self._closed = True
        try:
            self._mouth.compare_set(self._begun[self._rank], "", str(begun))
            self._mouth.set(self._mailboxes[self._rank], "closed")
        except RuntimeError:
            return  # without the store the listener has ended too

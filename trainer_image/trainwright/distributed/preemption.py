"""Stop all ranks before the same step when any of them is asked to, at no cost to a step.

A checkpoint needs every rank at one step, and SIGTERM reaches the ranks at different times, or only those of one node.
Agreeing by a collective would cost a round trip in every step. Instead each rank has a *listener* thread with its own
connection to the store, and the agreement is a race that cannot be lost:

- the main thread writes ``begun = step``, *then* looks at ``pending``;
- the listener, when any rank was asked to stop, sets ``pending``, *then* reads ``begun`` and publishes it.

So a step that was begun without a look at ``pending`` is always covered by what its rank publishes. The last step is
the maximum that was published: ranks behind it go on up to it, and none is beyond it. Listeners answer while their
main thread computes, waits in a collective, evaluates or saves, so nobody waits for anybody's main thread.
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
"""How long to wait for the other ranks' listeners, which answer at once unless their process is gone."""

_FOREVER = timedelta(days=20)  # milliseconds are counted in 32 bits
_JOIN_SECONDS = 2.0
_runs = itertools.count()


def under_launcher() -> bool:
    """Whether the launcher of a TrainingJob started this process: it promises a checkpoint on SIGTERM to every job."""
    return nodefiles.node_dir() is not None


class Preemption:
    """Listens for SIGTERM while a model trains; a context manager around the loop.

    ``begin(step)`` is called at every step boundary, before step ``step`` (counted by the caller, rising by one). True
    says that every rank stops here: the caller saves a checkpoint and calls :meth:`leave`. After ``with`` the former
    SIGTERM handler is back.

    Args:
        agreement_seconds: How long to wait for the other ranks.
        listens: When false SIGTERM does what it did before, and nothing is ever pending.
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
        """Notes that ``step`` begins; True when all ranks agreed to stop before it.

        Raises:
            SystemExit: this rank shall stop, and a peer that is needed for a checkpoint is gone.
        """
        self._begun = step
        if not self._pending:
            return False
        return step > self._agreed()

    @property
    def requested(self) -> bool:
        """Whether this rank knows that it shall stop; long work between steps may be cut short."""
        return self._pending

    def leave(self) -> NoReturn:
        """Ends the run as preempted; to be called when the checkpoint is safe."""
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
            # The lowest-level start: a handler may interrupt threading's own locks, and must not wait for the network.
            _thread.start_new_thread(self._ask, (self._gang,))
        elif not self._pending:
            self._settle(self._begun)

    def _ask(self, gang: _Gang) -> None:
        try:
            gang.ask_all()
        except RuntimeError:  # the store is gone, and with it every hope of an agreement
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
    """Two of our own, one to wait on and one to speak on, for a waiting one is locked; kept for the next run."""
    return store.clone(), store.clone()


class _Gang:
    """The ranks of one run as they talk about stopping: one mailbox a rank, and what each rank had begun."""

    def __init__(self, rank: int, world_size: int, ear: Any, mouth: Any) -> None:
        self._rank = rank
        self._mailboxes = [f"mail/{peer}" for peer in range(world_size)]
        self._begun = [f"begun/{peer}" for peer in range(world_size)]
        self._ear, self._mouth = ear, mouth
        self._closed = False
        self.asked = False

    @staticmethod
    def join(run: int) -> _Gang | None:
        """None when this process trains alone."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return None
        if (world_size := distributed.get_world_size()) == 1:
            return None
        store = distributed.distributed_c10d._get_default_store()
        ear, mouth = (distributed.PrefixStore(f"preemption/{run}", own) for own in _connections(store))
        return _Gang(distributed.get_rank(), world_size, ear, mouth)

    def ask_all(self) -> None:
        """Asks every rank to stop, this one too."""
        self.asked = True
        self._mouth.multi_set(self._mailboxes, ["stop"] * len(self._mailboxes))

    def hear(self) -> bool:
        """Waits for a request to stop; False when the run ended instead."""
        self._ear.wait([self._mailboxes[self._rank]], _FOREVER)
        return not self._closed

    def agree(self, begun: int, seconds: float) -> int:
        """The last step: publishes what this rank had begun and waits for all others.

        Raises:
            RuntimeError: not every rank answered within ``seconds``.
        """
        self._ear.set(self._begun[self._rank], str(begun))
        self._ear.wait(self._begun, timedelta(seconds=seconds))
        return max(map(int, self._ear.multi_get(self._begun)))

    def close(self, begun: int) -> None:
        """Ends the listener, and answers for this rank whoever still asks; never takes back what it published."""
        self._closed = True
        try:
            self._mouth.compare_set(self._begun[self._rank], "", str(begun))
            self._mouth.set(self._mailboxes[self._rank], "closed")
        except RuntimeError:
            return  # the store is gone, and the listener with it

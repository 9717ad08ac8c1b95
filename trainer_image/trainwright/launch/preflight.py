"""A rank of ``spec.preflight``: checks its device, a sum over all ranks and its links, before anything is trained.

The launcher runs ``python -m trainwright.launch.preflight SETTINGS`` in place of each rank, as if in a round before
the first. So it works for any job, and leaves nothing in the processes that train. The main thread only beats, with the
number of the stage as its step; the checks run in another one. So the launcher can tell a rank that stands still from
one that waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median
from typing import Any

from trainwright.contract import ExitCode, UserError
from trainwright.launch import entry, nodefiles

STAGES = ("start", "multiply matrices", "meet the other ranks", "sum over all ranks", "send to its neighbours", "end")
LOCAL_STAGES = 2
"""In the first stages a rank waits for nobody."""
BEAT_SECONDS = 0.2
REPEATS = 5
LEAST_DIFFERENCE_SECONDS = 0.005
"""Smaller differences between ranks are noise."""
_ELEMENTS = {"cuda": 2**24, "cpu": 2**19}
"""Of a message, in float32."""
_SIZES = {"cuda": 8192, "cpu": 512}
_PRODUCTS = {"cuda": 10, "cpu": 1}
"""Rows of the matrices, and how many products are timed together."""


@dataclass(frozen=True)
class Settings:
    """``max_slowdown``: times the median of the other ranks, from which on a rank fails; 0 for never."""

    timeout_seconds: float
    max_slowdown: float
    backend: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class PreflightFailed(UserError):
    """A check failed; another attempt may get another device."""

    exit_code = 1  # type: ignore[assignment]


class Rank:
    """One rank during its checks."""

    def __init__(self, settings: Settings, rank: int, size: int, local_rank: int) -> None:
        self.settings, self.rank, self.size, self.local_rank = settings, rank, size, local_rank
        self.stage = 0
        self.error: BaseException | None = None

    def check(self) -> None:
        """Run all checks; keeps the error of one that fails."""
        try:
            self._check()
        except BaseException as error:
            self.error = error

    def _check(self) -> None:
        import torch

        device = self._device()
        self.stage = 1
        product_seconds = multiply(device, self.rank)
        if self.size == 1:
            self.say(f"a product of matrices took {product_seconds * 1e3:.1f} ms")
            return
        self.stage = 2
        timeout = timedelta(seconds=self.settings.timeout_seconds + 60)  # the launchers end it before
        backend = self.settings.backend or ("nccl" if device.type == "cuda" else "gloo")
        torch.distributed.init_process_group(backend, timeout=timeout)
        self.stage = 3
        sum_over_ranks(device, self.rank, self.size)
        self.stage = 4
        link_seconds = exchange(device, self.rank, self.size)
        own = torch.tensor([product_seconds, link_seconds], dtype=torch.float64, device=device)
        every = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(every, own)
        products, links = zip(*(one.tolist() for one in every), strict=True)
        self.stage = 5
        self.judge("a product of matrices", list(products))
        self.judge("a message to a neighbour", list(links))

    def _device(self) -> Any:
        import torch

        if not torch.cuda.is_available():
            return torch.device("cpu")
        device = torch.device("cuda", self.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def judge(self, what: str, seconds: list[float]) -> None:
        """Raise :class:`PreflightFailed` if this rank is far slower than the others; the first rank reports all."""
        limit = self.settings.max_slowdown
        usual = median(seconds[: self.rank] + seconds[self.rank + 1 :])
        own = seconds[self.rank]
        if limit and own > limit * usual and own - usual > LEAST_DIFFERENCE_SECONDS:
            raise PreflightFailed(
                f"preflight: rank {self.rank} on {socket.gethostname()} takes {own / usual:.1f} times as long for "
                f"{what} as the median of the others ({own * 1e3:.1f} ms, not {usual * 1e3:.1f} ms); see what else "
                "runs there, its clock rate and its network, or raise preflight.maxSlowdown"
            )
        slowest = max(range(self.size), key=seconds.__getitem__)
        self.say(
            f"{what} took {min(seconds) * 1e3:.1f} to {seconds[slowest] * 1e3:.1f} ms on {self.size} ranks, longest on "
            f"rank {slowest}"
        )

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(f"preflight: {text}", flush=True)


def multiply(device: Any, rank: int) -> float:
    """Multiply matrices whose product is known; returns the seconds of the quickest try.

    Row i of the first is i % 7 - 3 and column j of the second j % 5 - 2, with a sign for each k that is in both. So the
    product is exact in every number format, whatever the order of the sums.

    Raises:
        PreflightFailed: an element of the product is wrong.
    """
    import torch

    size, times = _SIZES[device.type], _PRODUCTS[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    numbers = torch.arange(size, device=device)
    rows, columns, signs = numbers % 7 - 3, numbers % 5 - 2, (numbers % 3 == 0) * 2 - 1
    first, second = torch.outer(rows, signs).to(dtype), torch.outer(signs, columns).to(dtype)
    expected, best = torch.outer(rows, columns) * size, float("inf")
    product = first
    for _ in range(REPEATS):
        began = _now(device)
        for _ in range(times):
            product = first @ second
        best = min(best, _now(device) - began)
        if wrong := int((product != expected.to(dtype)).sum()):
            raise PreflightFailed(
                f"preflight: rank {rank} on {socket.gethostname()}: {wrong} of {size * size} elements of a product of "
                f"matrices are wrong on {_named(device)}; the device is broken"
            )
    return best


def sum_over_ranks(device: Any, rank: int, size: int) -> None:
    """Sum numbers over all ranks whose sum is known.

    Raises:
        PreflightFailed: it is wrong here.
    """
    import torch

    numbers = torch.full((_ELEMENTS[device.type],), float(rank % 8 + 1), device=device)
    expected = float(sum(one % 8 + 1 for one in range(size)))
    torch.distributed.all_reduce(numbers)
    if wrong := int((numbers != expected).sum()):
        raise PreflightFailed(
            f"preflight: rank {rank} on {socket.gethostname()}: {wrong} of {numbers.numel()} sums over all ranks are "
            f"wrong on {_named(device)}; the device or its network is broken"
        )


def exchange(device: Any, rank: int, size: int) -> float:
    """Exchange a message with each neighbour; returns the seconds of the quickest link of this rank.

    A slow rank is slow with both of its neighbours, each of which has another one.

    Raises:
        PreflightFailed: a message arrived changed.
    """
    import torch

    own = torch.full((_ELEMENTS[device.type],), float(rank % 251), device=device)
    best = float("inf")
    for neighbour in neighbours(rank, size):
        if neighbour is None:
            continue
        received = torch.empty_like(own)
        for _ in range(REPEATS):
            operations = [
                torch.distributed.P2POp(torch.distributed.isend, own, neighbour),
                torch.distributed.P2POp(torch.distributed.irecv, received, neighbour),
            ]
            began = _now(device)
            for work in torch.distributed.batch_isend_irecv(operations):
                work.wait()
            best = min(best, _now(device) - began)
        if not bool((received == float(neighbour % 251)).all()):
            raise PreflightFailed(
                f"preflight: rank {rank} on {socket.gethostname()}: a message of rank {neighbour} arrived changed; the "
                "network between them is broken"
            )
    return best


def neighbours(rank: int, size: int) -> list[int | None]:
    """The neighbour of a rank in a ring, in each of three turns, so that no rank has two at once; None for none."""
    turns: list[int | None] = [None, None, None]
    for left in {rank, (rank - 1) % size}:
        right = (left + 1) % size
        turn = 2 if left == size - 1 and size % 2 else left % 2
        turns[turn] = right if rank == left else left
    return turns if size > 2 else turns[:1]


def _now(device: Any) -> float:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def _named(device: Any) -> str:
    if device.type == "cpu":
        return "its CPU"
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def main() -> None:
    """Check, and end the process with code 0 if all is well."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.PREEMPTED))  # there is nothing to save
    settings = Settings(**json.loads(sys.argv[1]))
    rank = Rank(settings, *(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    folder = nodefiles.node_dir()
    heartbeat = nodefiles.Heartbeat(nodefiles.heartbeat_path(folder, rank.local_rank)) if folder is not None else None
    checks = threading.Thread(target=rank.check, daemon=True)
    checks.start()
    while checks.is_alive():
        if heartbeat is not None:
            heartbeat.beat(rank.stage)
        checks.join(BEAT_SECONDS)
    if rank.error is not None:
        raise rank.error
    entry.leave(0)


if __name__ == "__main__":
    entry.run(main)

"""Starts of data workers in the midst of busy threads: how many stall, and how long each takes.

The threads do what those of a training rank do: they post progress, feed queues, walk the loaded libraries, reduce over
gloo, go backward, write lines, start and end, and so take the locks of the C library and of the dynamic linker again
and again. As many processes as there are cores keep the machine busy. torch's own forks are measured beside ours, one
for ten. Ends with 1 if a single worker of ours did not come to life.
"""

from __future__ import annotations

import argparse
import ctypes
import http.server
import importlib
import multiprocessing
import os
import statistics
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch.utils.data import DataLoader

from trainer.settings import settings
from trainwright.data import fork_server
from trainwright.data.loaders import eval_loader

WORKERS = 4
GIVEN_UP = 10.0
"""Seconds after which torch's own loader says that a worker gives no batch."""


class Loads(torch.utils.data.Dataset[Any]):
    """One sample a worker, which loads a library for it, as a decoder of images does."""

    def __len__(self) -> int:
        return WORKERS

    def __getitem__(self, index: int) -> Any:
        importlib.import_module("_xxsubinterpreters")
        return torch.tensor(index)


# -- what the threads do


def push() -> None:
    class Taken(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("localhost", 0), Taken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        urllib.request.urlopen(f"http://localhost:{server.server_port}/", data=b"x" * 1000).read()
        time.sleep(0.01)


def feed() -> None:
    queue: Any = multiprocessing.Queue()
    while True:
        queue.put(b"x" * 100)
        queue.get()


def walk_libraries() -> None:
    """As the unwinder does for every exception of C++, and tools that look at stacks do for longer."""
    library = ctypes.CDLL(None)

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    def look(*_: Any) -> int:
        time.sleep(0.001)
        return 1

    while True:
        library.dl_iterate_phdr(look, None)
        time.sleep(0.05)


def reduce() -> None:
    values = torch.ones(1000)
    while True:
        torch.distributed.all_reduce(values)
        time.sleep(0.001)


def train() -> None:
    weights = torch.randn(100, 100, requires_grad=True)
    while True:
        (weights @ weights).sum().backward()
        time.sleep(0.001)


def come_and_go() -> None:
    while True:
        thread = threading.Thread(target=lambda: print("x" * 100, file=open(os.devnull, "w"), flush=True))  # noqa: SIM115
        thread.start()
        thread.join()
        time.sleep(0.001)


THREADS = (push, feed, walk_libraries, reduce, train, come_and_go)


def burn() -> None:
    while True:
        pass


# -- the starts


def torchs() -> Iterator[Any]:
    return iter(DataLoader(Loads(), num_workers=WORKERS, timeout=GIVEN_UP, multiprocessing_context="fork"))


def ours() -> Iterator[Any]:
    args = settings(dataloader_num_workers=WORKERS)
    return iter(eval_loader(Loads(), args=args, batch_size=1, collate_fn=torch.stack, rank=0, world_size=1))


def ours_forked() -> Iterator[Any]:
    args = settings(dataloader_num_workers=WORKERS, dataloader_multiprocessing_context="fork")
    return iter(eval_loader(Loads(), args=args, batch_size=1, collate_fn=torch.stack, rank=0, world_size=1))


def measure(name: str, make: Callable[[], Iterator[Any]], starts: int, seconds: float) -> int:
    """Start that many workers, or as many as there is time for; returns how many passes stalled."""
    begun, done, stalled, taken = time.monotonic(), 0, 0, []
    while done < starts and time.monotonic() - begun < seconds:
        start = time.monotonic()
        try:
            assert len(list(make())) == WORKERS
            taken.append((time.monotonic() - start) / WORKERS)
        except RuntimeError as error:
            stalled += 1
            print(f"  after {done} starts: {str(error).splitlines()[0]}", flush=True)
        done += WORKERS
    middle, most = (1000 * choose(taken or [0.0]) for choose in (statistics.median, max))
    print(f"{name:22} {done:6} starts {stalled:4} stalled {middle:8.1f} ms each {most:8.1f} at most", flush=True)
    return stalled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=2000)
    parser.add_argument(
        "--seconds", type=float, default=900.0, help="at most, for ours; a tenth of it for each of the others"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with fork_server.running(True):
        burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(os.cpu_count() or 1)]
        for process in burners:
            process.start()
        for body in THREADS:
            threading.Thread(target=body, daemon=True).start()
        time.sleep(1)
        stalled = measure("from the fork server", ours, chosen.starts, chosen.seconds)
        stalled += measure("forked, with a proof", ours_forked, chosen.starts // 10, chosen.seconds / 10)
        measure("torch's own forks", torchs, chosen.starts // 10, chosen.seconds / 10)
        for process in burners:
            process.kill()
    sys.stdout.flush()
    os._exit(1 if stalled else 0)


if __name__ == "__main__":
    main()

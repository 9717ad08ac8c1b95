"""``python -m bench.operator [name ...]``, run in tests/: every bench of ``BENCHES``, or those that are named."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from bench.operator import burst, gangs, idle, pushes, queues, strangers

BENCHES = {
    "burst": lambda given: burst.main(given.jobs or 1000),
    "gangs": lambda given: gangs.main(given.jobs or 5000),
    "idle": lambda given: idle.main(given.jobs or 10_000),
    "pushes": lambda given: pushes.main(given.jobs or 2000),
    "queues": lambda given: queues.main(given.jobs or 500),
    "strangers": lambda given: strangers.main(given.jobs or 20_000),
}


def main() -> int:
    """0 when every limit is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHES))
    parser.add_argument("--jobs", type=int, help="fewer than the bench's own number, for a quick look")
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHES:
            parser.error(f"{name}: not one of {', '.join(BENCHES)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the control plane is taken down
    kept = [asyncio.run(BENCHES[name](given)) for name in given.names or BENCHES]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())

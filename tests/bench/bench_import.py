"""What ``import trainwright`` and its Trainer cost beside torch itself: seconds, megabytes, modules.

    python tests/bench/bench_import.py [--rounds 5]

Each import is timed in a fresh interpreter, interleaved; the medians are told beside those of the Hugging Face Trainer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

IMPORTS = {
    "torch": "import torch",
    "trainwright alone": "import trainwright",
    "trainwright arguments": "from trainwright import TrainingArguments",
    "trainwright Trainer": "from trainwright import Trainer, TrainingArguments",
    "hugging face Trainer": "from transformers import Trainer, TrainingArguments",
}

MEASURE = """
import importlib.util, json, resource, sys, time
find_spec, extras = importlib.util.find_spec, ("peft", "bitsandbytes")  # of the tests; transformers would load them
importlib.util.find_spec = lambda name, *package: None if name in extras else find_spec(name, *package)
start = time.process_time()
{statement}
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([seconds, peak, len(sys.modules)]))
"""


def measure(statement: str) -> list[float]:
    command = [sys.executable, "-c", MEASURE.format(statement=statement)]
    result: list[float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seen: dict[str, list[list[float]]] = {name: [] for name in IMPORTS}
    for number in range(rounds + 1):
        for name, statement in IMPORTS.items():
            sample = measure(statement)
            if number > 0:  # the first round reads the files
                seen[name].append(sample)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seen.items()}
    base = medians["torch"]
    print(f"{'':<24}{'CPU s':>8}{'MB':>8}{'modules':>9}{'s more than torch':>20}{'MB more':>9}")
    for name, (seconds, megabytes, modules) in medians.items():
        print(
            f"{name:<24}{seconds:>8.2f}{megabytes:>8.0f}{modules:>9.0f}"
            f"{seconds - base[0]:>20.2f}{megabytes - base[1]:>9.0f}"
        )


if __name__ == "__main__":
    main()

"""``python -m trainwright_operator.main``: the operator, or one line if its packages are not installed."""

from __future__ import annotations

import sys

from trainwright import extras

UNUSABLE = 2


def main() -> int:
    """The exit code of the operator's process; 2 if it cannot start until the user fixes something."""
    if line := extras.missing(*extras.packages("operator")):
        print(f"trainwright-operator: {line}", file=sys.stderr)
        return UNUSABLE
    from trainwright_operator.cluster import process

    return process.main()


if __name__ == "__main__":
    sys.exit(main())

"""Makes every process forget one argument, named in the environment: it is as if nobody had set it.

On ``PYTHONPATH`` of :mod:`prove`'s runs alone. Python imports a module of this name when it starts.
"""

import os

if forgotten := os.environ.get("FORGOTTEN_ARGUMENT"):
    from trainwright.arguments import TrainingArguments
    from trainwright.arguments.fields import FIELDS

    check = TrainingArguments.check

    def check_without(self: TrainingArguments) -> None:
        setattr(self, forgotten, FIELDS[forgotten].default)
        check(self)

    TrainingArguments.check = check_without  # type: ignore[method-assign]

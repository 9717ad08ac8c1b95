"""Who may write to an output: only its owner, and only the newest attempt of the owner.

An attempt that lost its node may still run when its successor starts. The successor writes its claim into the output
before it reads from there. Just before a writer renames a checkpoint into place, it checks for newer claims; the older
attempt then stops. Each claim is a separate file, so two attempts that start together do not overwrite each other's.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from trainwright.checkpoint.diskio import flush_folder, write_durably
from trainwright.contract import UserError

FOLDER = ".trainwright"
OWNER_FILE = "owner.json"


class Fence:
    """The claims on one output folder.

    Args:
        output: The output folder.
        owner: The unique id of the job; None for a run without a job, which claims nothing.
        attempt: The number of the owner's attempt, from 1.
        job: The name of the owner for messages: namespace/name.
    """

    def __init__(self, output: Path, owner: str | None, attempt: int, job: str = "") -> None:
        self.output = output
        self.owner, self.job = owner, job
        self.attempt = attempt
        self._folder = output / FOLDER

    def claim(self, adopt: bool, holds_checkpoints: bool) -> None:
        """Write this attempt's claim.

        Raises:
            UserError: The output holds checkpoints of another owner, or a newer attempt has claimed it.
        """
        if self.owner is None:
            return
        holder = self._holder()
        if holder != self.owner:
            if holds_checkpoints and not adopt:
                whose = f"of {self._describe(holder)}" if holder else "that no TrainingJob wrote"
                raise UserError(
                    f"{self.output}: holds checkpoints {whose}; choose another output or subPath, "
                    "or set output.adopt: true to resume from them"
                )
            self._take_over()
        self.check()
        (self._folder / f"attempt-{self.attempt}").touch()
        flush_folder(self._folder)

    def _take_over(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for claim in self._folder.glob("attempt-*"):
            claim.unlink(missing_ok=True)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        named = {"job": self.job, "since": since} if self.job else {}
        write_durably(self._folder / OWNER_FILE, json.dumps({"owner": self.owner, **named}))

    def check(self) -> None:
        """Raises :class:`UserError` when another job or a newer attempt has claimed the output."""
        if self.owner is None:
            return
        holder = self._holder()
        if holder != self.owner:
            raise UserError(
                f"{self.output}: was taken over by {self._describe(holder)}; this job ({self.job or self.owner}) stops "
                "writing to it"
            )
        newest = self._newest_attempt()
        if newest > self.attempt:
            raise UserError(
                f"{self.output}: attempt {newest} of this job has claimed it; attempt {self.attempt} stops writing here"
            )

    def _holder(self) -> str | None:
        try:
            holder: str = json.loads((self._folder / OWNER_FILE).read_text(encoding="utf-8"))["owner"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return "(unreadable claim)"
        return holder

    def _describe(self, holder: str | None) -> str:
        """The job's name instead of its uid, with the time of the claim, because another job may have the same name."""
        try:
            claim = json.loads((self._folder / OWNER_FILE).read_text(encoding="utf-8"))
            job, since = claim["job"], claim["since"]
        except (OSError, ValueError, KeyError, TypeError):  # written by an older release
            return f"the job {holder}"
        text = f"the job {job}, which began to write here at {since}"
        return f"{text} and is another job with the same name (uid {holder})" if job == self.job else text

    def _newest_attempt(self) -> int:
        claims = (name.removeprefix("attempt-") for name in os.listdir(self._folder))
        return max((int(number) for number in claims if number.isdigit()), default=0)

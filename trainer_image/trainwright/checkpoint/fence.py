"""Who may write to an output: only its owner, and only the newest attempt and round of the owner.

An attempt that lost its node may still run when its successor starts. The successor writes its claim into the output
before it reads from there. Just before a writer renames a checkpoint into place, it checks for newer claims; the older
attempt then stops. Each claim is a separate file, so two attempts that start together do not overwrite each other's.
The rounds of an attempt, whose ranks are restarted in place, fence one another out in the same way.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from trainwright.checkpoint.diskio import flush_folder, write_durably
from trainwright.contract import UserError

FOLDER = ".trainwright"
OWNER_FILE = "owner.json"
_CLAIM = re.compile(r"attempt-([0-9]+)(?:\.([0-9]+))?")


class Fence:
    """The claims on one output folder.

    Args:
        output: The output folder.
        owner: The unique id of the job; None for a run without a job, which claims nothing.
        attempt: The number of the owner's attempt, from 1.
        job: The name of the owner for messages: namespace/name.
        round: The round of the attempt, from 1.
    """

    def __init__(self, output: Path, owner: str | None, attempt: int, job: str = "", round: int = 1) -> None:
        self.output = output
        self.owner, self.job = owner, job
        self.attempt, self.round = attempt, round
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
        (self._folder / self._claim_name()).touch()
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
        attempt, round = self._newest_claim()
        if attempt > self.attempt:
            raise UserError(
                f"{self.output}: attempt {attempt} of this job has claimed it; "
                f"attempt {self.attempt} stops writing here"
            )
        if attempt == self.attempt and round > self.round:
            raise UserError(
                f"{self.output}: round {round} of attempt {attempt} has claimed it; "
                f"round {self.round} stops writing here"
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

    def _claim_name(self) -> str:
        """The first round is claimed as ever: an older release reads the claims of attempts, and ignores rounds."""
        return f"attempt-{self.attempt}" if self.round == 1 else f"attempt-{self.attempt}.{self.round}"

    def _newest_claim(self) -> tuple[int, int]:
        """The newest attempt and its newest round."""
        claims = (_CLAIM.fullmatch(name) for name in os.listdir(self._folder))
        return max(((int(claim[1]), int(claim[2] or 1)) for claim in claims if claim), default=(0, 1))

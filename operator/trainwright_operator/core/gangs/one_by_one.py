"""A cluster that starts each pod by itself, as most do.

A gang of which only a part finds room holds that room for nothing, and two such gangs can hold each other for ever. So
the attempt is given up after a while and tried again later.
"""

from __future__ import annotations

from trainwright_operator.api.spec import TrainingJob
from trainwright_operator.core.gangs.gang import Gang, GangScheduler, Membership


class OneByOne(GangScheduler):
    def takes(self, job: TrainingJob, scheduler: str) -> bool:
        """Every job, also one that names a scheduler of which no file here knows, and brings what that needs itself."""
        return True

    def membership(self, gang: Gang) -> Membership:
        return Membership()

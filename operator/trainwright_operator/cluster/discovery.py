"""What of the API this cluster serves, asked once at the start: clusters differ in how they start gangs."""

from __future__ import annotations

import logging
from datetime import timedelta

from trainwright_operator.cluster.client import Api
from trainwright_operator.core.gangs.podgroup import POD_GROUP, POD_GROUP_VERSIONS, Gangs

logger = logging.getLogger(__name__)


async def find_gangs(api: Api, timeout: float) -> Gangs:
    """With the newest version of PodGroup that is served and known here, or without one."""
    for version in POD_GROUP_VERSIONS:
        if POD_GROUP in await api.kinds(version):
            logger.info("gangs are started by the scheduler", extra={"podGroup": version})
            return Gangs(version, timedelta(seconds=timeout))
    logger.info("gangs are given up when only a part finds room", extra={"seconds": timeout})
    return Gangs(None, timedelta(seconds=timeout))

"""Telling a mistake from a network that is down: the one ends a job for good, the other is worth another attempt."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from trainwright.contract import UserError

NETWORK = re.compile(
    r"\w*Connect\w*Error|\w*Timeout(Error)?|ReadError|ProxyError|RemoteProtocolError|ServerDisconnectedError|SSLError"
    r"|LocalEntryNotFoundError|gaierror"
)
"""Exceptions of the HTTP and storage clients, by name: none of them needs to be installed."""
BUSY = frozenset({429, 500, 502, 503, 504})


class Unreachable(ConnectionError):
    """A hub or store that cannot be reached now. No :class:`UserError`: another attempt may find it."""


def refuse(error: BaseException, message: str, kind: type[UserError] = UserError) -> Exception:
    """What to raise for ``error``: a ``kind``, or :class:`Unreachable` where the network is to blame."""
    if os.environ.get("HF_HUB_OFFLINE") != "1" and any(_of_the_network(cause) for cause in causes(error)):
        return Unreachable(message)
    return kind(message)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what led to it, back to the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if isinstance(seen, UserError) else seen.__context__)


def first_line(error: BaseException) -> str:
    """The first line of its message, or its name when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _of_the_network(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return NETWORK.fullmatch(type(error).__name__) is not None or status in BUSY

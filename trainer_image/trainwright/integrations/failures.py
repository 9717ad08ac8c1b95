"""Failures of servers: which of them may pass, and how to say them in one line."""

from __future__ import annotations

_OUTAGE_NAMES = (
    *("Connect", "Timeout", "Network", "Transport", "ServiceUnavailable", "ProtocolError", "RetryError", "CommError"),
)


def is_outage(error: BaseException) -> bool:
    """Whether a later try may succeed: the connection failed, or the server was busy."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            return status == 429 or status >= 500
        if isinstance(seen, ConnectionError | TimeoutError):
            return True
        if any(name in type(seen).__name__ for name in _OUTAGE_NAMES):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def one_line(error: BaseException, most: int = 300) -> str:
    """An error as one line: its first line with its type, shortened."""
    text = " ".join(str(error).split()) or "no message"
    text = text if len(text) <= most else text[:most] + " ..."
    return f"{type(error).__name__}: {text}"

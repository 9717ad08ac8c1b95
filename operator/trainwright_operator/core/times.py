"""Times as Kubernetes writes them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def write_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_time(text: str | None) -> datetime | None:
    """None for an absent or unreadable time: a child that somebody else wrote must not stop the plan.

    So is one of a year that no clock shows, which in another zone might be none that can be written.
    """
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if time is None or not 1970 <= time.year < 9999:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time

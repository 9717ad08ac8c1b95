"""Times as Kubernetes writes them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

SKEW = timedelta(seconds=2)
"""By how much clocks that agree are apart, with seconds cut off."""


def write_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def remaining(since: datetime, span: timedelta, now: datetime) -> timedelta:
    """What is left of a span that began at ``since``, by another machine's clock; nothing, at the least.

    A time to come tells that the clocks disagree, and nothing of how long ago it was: then nothing is waited for.
    """
    left = since + span - now
    return left if timedelta(0) < left <= span + SKEW else timedelta(0)


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

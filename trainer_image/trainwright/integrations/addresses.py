"""Where a run and its model can be seen: the pages of the trackers, and the repository on the Hub.

Trackers and uploads enter them from their threads; the reporter sends them to the operator.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

_pages: dict[str, str] = {}
"""Tracker, or ``hub`` for the model -> URL."""

HUB = "hub"


def announce(name: str, url: str | None) -> None:
    """Enter a page; a URL that a browser cannot open is left out, and so is a password in it."""
    parts = urlsplit(url or "")
    if parts.scheme in ("http", "https") and parts.hostname:
        host = parts.netloc.rpartition("@")[2]
        _pages[name] = urlunsplit(parts._replace(netloc=host))


def forget() -> None:
    _pages.clear()


def runs() -> list[dict[str, str]]:
    """``{"tracker", "url"}`` of each tracker that has a page, by name."""
    return [{"tracker": name, "url": url} for name, url in sorted(_pages.items()) if name != HUB]


def model() -> str | None:
    """The page of the model on the Hub."""
    return _pages.get(HUB)

"""What a person is told when the cluster gives no answer, or another one than was hoped for; always one line."""

from __future__ import annotations

IN_BETWEEN = "see the server of the kubeconfig, and whether a proxy or a login page stands in between"


class RemoteError(Exception):
    """The message says what is wrong and the mend."""


class Absent(RemoteError):
    """There is no such object, or the cluster does not know its kind."""


class Forbidden(RemoteError):
    """The credentials are good, and do not allow this."""


class Expired(RemoteError):
    """A watch began too far in the past: list again."""


class Unreachable(RemoteError):
    """No answer came, or none of use that may come later: the API server starts, fails, or has too much to do."""


class Silent(Unreachable):
    """A stream told nothing for so long that its connection may be dead."""


def refusal(code: int, message: str) -> RemoteError:
    """What an answer of the API server with an error code means to a person."""
    text = " ".join(message.split()) or f"HTTP {code}"
    if code == 401:
        return RemoteError("the cluster does not accept these credentials; log in again, or choose another --context")
    if code == 403:
        return Forbidden(f"{text}; ask for the role `view` in the namespace")
    if code == 404:
        return Absent(text)
    if code == 410:
        return Expired(text)
    if code < 400:
        return Unreachable(f"the answer {code} points to another place; {IN_BETWEEN}")
    answered = f"the API server answered {code}: {text}"
    return Unreachable(answered) if code == 429 or code >= 500 else RemoteError(answered)

"""The settings of an operator process, from environment variables that the chart sets; all have defaults."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trainwright_operator.api.formats import KEY, is_key
from trainwright_operator.api.names import GROUP, LABEL_MANAGED_BY
from trainwright_operator.core.placement.pools import DEFAULT_IMAGE

PREFIX = "TRAINWRIGHT_"


class SettingsError(Exception):
    """A variable is invalid; the message has its name and the allowed values."""


@dataclass(frozen=True)
class Settings:
    """Every field is read from ``TRAINWRIGHT_<FIELD>``. Times are seconds."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; empty watches the whole cluster."""
    operator_namespace: str = "trainwright-system"
    """The namespace of the lease and of the endpoint's certificate."""
    pod_name: str = field(default_factory=socket.gethostname)
    workers: int = 16
    image: str = DEFAULT_IMAGE
    """The trainer image of pools without one."""
    lease_name: str = "trainwright-operator"
    lease_duration: float = 15.0
    lease_renew_deadline: float = 10.0
    lease_period: float = 2.0
    leader_election: bool = True
    status_interval: float = 15.0
    """The minimum time between two status writes that only update progress."""
    status_budget: float = 50.0
    """The maximum status writes per second for progress, over all jobs."""
    relist_interval: float = 600.0
    progress_port: int = 8443
    """0 disables the progress endpoint; pods then report only by their termination message."""
    progress_url: str = ""
    """The URL for pods; empty derives it from the Service of the chart."""
    certificate_secret: str = "trainwright-progress-tls"
    progress_service: str = "trainwright-progress"
    progress_max_bytes: int = 64 * 1024
    progress_rate: float = 5.0
    """Pushes per second of one pod, above which it gets 429."""
    gang_timeout: float = 300.0
    """How long a partially scheduled gang keeps its nodes; plus up to half of it, so that two gangs differ."""
    kueue: str = "auto"
    """Whether jobs with a queue wait for Kueue: ``auto`` (where it is installed), ``on`` or ``off``."""
    propagate_labels: tuple[str, ...] = ()
    """Labels of a TrainingJob that are copied to all its children."""
    http_port: int = 8080
    """The port for liveness, readiness and metrics."""
    log_level: str = "INFO"

    @property
    def progress_hosts(self) -> list[str]:
        """The names that the endpoint's certificate is for."""
        service = f"{self.progress_service}.{self.operator_namespace}.svc"
        return [service, f"{service}.cluster.local"]

    @property
    def progress_base_url(self) -> str:
        return self.progress_url or f"https://{self.progress_hosts[0]}:{self.progress_port}"


_KUEUE = ("auto", "on", "off")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "workers": (1, 1024),
    "lease_duration": (1, 3600),
    "lease_period": (0.01, 3600),
    "status_interval": (0, 3600),
    "status_budget": (0.01, 10_000),
    "relist_interval": (1, 86_400),
    "progress_port": (0, 65_535),
    "progress_max_bytes": (1024, 2**24),
    "progress_rate": (0.01, 10_000),
    "gang_timeout": (1, 86_400),
    "http_port": (1, 65_535),
}
"""Minimum and maximum of each."""


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """Raises :class:`SettingsError` for a value of the wrong type or out of range."""
    known = {PREFIX + item.name.upper(): item for item in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if variable in known:
            values[known[variable].name] = _parse(variable, text, str(known[variable].type))
    settings = Settings(**values)
    for problem in _problems(settings):
        raise SettingsError(problem)
    return settings


def _problems(settings: Settings) -> Iterator[str]:
    for name, (least, most) in _NUMBERS.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            yield f"{PREFIX}{name.upper()}={value:g}: takes {least:g} to {most:g}"
    if settings.log_level not in _LEVELS:
        yield f"{PREFIX}LOG_LEVEL={settings.log_level!r}: takes {', '.join(_LEVELS)}"
    if settings.kueue not in _KUEUE:
        yield f"{PREFIX}KUEUE={settings.kueue!r}: takes {', '.join(_KUEUE)}"
    if not settings.lease_period < settings.lease_renew_deadline < settings.lease_duration:
        yield (
            f"{PREFIX}LEASE_RENEW_DEADLINE={settings.lease_renew_deadline:g}: takes more than LEASE_PERIOD "
            f"({settings.lease_period:g}) and less than LEASE_DURATION ({settings.lease_duration:g})"
        )
    for label in settings.propagate_labels:
        if label.startswith(f"{GROUP}/") or label == LABEL_MANAGED_BY:
            yield f"{PREFIX}PROPAGATE_LABELS={label}: is the operator's own; leave it out"
        elif not is_key(label):
            yield f"{PREFIX}PROPAGATE_LABELS={label}: {KEY.hint}"
    if settings.progress_port == settings.http_port:
        yield f"{PREFIX}PROGRESS_PORT={settings.progress_port}: is that of health and metrics (HTTP_PORT)"


def _parse(variable: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return {"int": int, "float": float, "str": str}[kind](text)
    except (KeyError, ValueError):
        takes = {"bool": "true or false", "int": "a whole number", "float": "a number of seconds or a rate"}
        raise SettingsError(f"{variable}={text!r}: takes {takes[kind]}") from None

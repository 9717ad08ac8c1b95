"""The position of this pod in its gang, from torchrun's variables, and the wait until the gang can meet.

Rendezvous is static: the node rank is the pod's completion index and node 0 is the master. So ranks keep their order in
logs, in progress and in a TPU's wiring.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from trainwright.contract import ENV_FIRST_NODE_RANK, MASTER_PORT, UserError

RENDEZVOUS_SECONDS = 1800
"""How long a pod waits for the others, whose images may still be pulled and whose nodes may still be added."""
FIRST_LOG_SECONDS = 15.0
"""A node that waits for longer logs what it waits for: a gang whose pods have started usually meets at once."""
CONNECT_SECONDS = 3.0
_LONGEST_PAUSE = 1.0
_MOST_NAMED = 8


class RendezvousFailed(Exception):
    """The gang did not meet in time; a retry may succeed."""


@dataclass(frozen=True)
class Place:
    """One node of a gang: ``node_rank`` of ``nodes``, each with ``per_node`` ranks; ``timeout`` in seconds."""

    nodes: int
    per_node: int
    node_rank: int
    master: str
    port: int
    timeout: int = RENDEZVOUS_SECONDS

    @staticmethod
    def of(environment: Mapping[str, str]) -> Place:
        """From ``PET_NNODES``, ``PET_NPROC_PER_NODE``, ``PET_NODE_RANK``, ``PET_MASTER_ADDR``, ``PET_MASTER_PORT`` and
        the ``timeout`` of ``PET_RDZV_CONF``, as torchrun reads them. A gang of one node meets on loopback. With several
        slices, ``PET_NODE_RANK`` counts the hosts of its slice, and ``TRAINWRIGHT_FIRST_NODE_RANK`` is added to it.
        """
        nodes = _number(environment, "PET_NNODES", 1, least=1)
        first = _number(environment, ENV_FIRST_NODE_RANK, 0, least=0)
        node_rank = first + _number(environment, "PET_NODE_RANK", 0, least=0)
        if node_rank >= nodes:
            raise UserError(f"PET_NODE_RANK: {node_rank} is beyond the last of {nodes} nodes (PET_NNODES)")
        return Place(
            nodes,
            _number(environment, "PET_NPROC_PER_NODE", 1, least=1),
            node_rank,
            _master(environment) if nodes > 1 else "127.0.0.1",
            _port(environment, nodes),
            _timeout(environment),
        )

    @property
    def ranks(self) -> range:
        """The global ranks of this node."""
        return range(self.node_rank * self.per_node, (self.node_rank + 1) * self.per_node)


class Wait:
    """How long this node has waited for others; ``report`` gets a message after 15 s, then at growing intervals."""

    def __init__(self, place: Place, report: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._place, self._report, self._now = place, report, now
        self._began = now()
        self._due = FIRST_LOG_SECONDS
        self.reported = False

    @property
    def patience(self) -> float:
        """Seconds until the next report or the timeout."""
        waited = self._now() - self._began
        return max(0.01, min(self._due, self._place.timeout) - waited)

    def still_waiting(self, what: str, check: str) -> None:
        """Reports, when a report is due, that this node still waits for ``what`` (``for node 0: ...``).

        Raises:
            RendezvousFailed: it has waited for ``place.timeout`` seconds.
        """
        waited, who = self._now() - self._began, f"node {self._place.node_rank}"
        if waited >= self._place.timeout:
            raise RendezvousFailed(f"{who} waited {self._place.timeout} s {what}; {check}")
        if waited >= self._due:
            self._due = 4 * waited
            self.reported = True
            self._report(f"{who} has waited {waited:.0f} s {what}; {check}")

    def seconds(self) -> float:
        return self._now() - self._began


def wait_for_master(place: Place, wait: Wait, resolve: Callable[..., object] = socket.getaddrinfo) -> None:
    """Returns as soon as the master's name resolves: a headless Service publishes it once its pod has an address.

    Raises:
        RendezvousFailed: the name did not resolve within ``place.timeout`` seconds.
    """
    check = f"check that its pod runs, {_service(place)} and the cluster's DNS"
    for _ in _tries():
        try:
            resolve(place.master, place.port)
            return
        except OSError as error:
            wait.still_waiting(f"for node 0: {place.master} does not resolve ({error.strerror or error})", check)


def wait_for_port(place: Place, wait: Wait, connect: Callable[..., socket.socket] = socket.create_connection) -> None:
    """Returns as soon as node 0 listens. A plain socket, because its error says what is wrong; the store's does not.

    Raises:
        RendezvousFailed: nobody answered within ``place.timeout`` seconds.
    """
    for _ in _tries():
        try:
            connect((place.master, place.port), timeout=CONNECT_SECONDS).close()
            return
        except ConnectionRefusedError:
            why, check = "it does not listen yet", "see its log"
        except OSError as error:
            why, check = str(error.strerror or error), network_hint(place)
        wait.still_waiting(f"for node 0 at {place.master}:{place.port}: {why}", check)


def network_hint(place: Place) -> str:
    """What to check when pods run but do not reach each other."""
    return (
        f"check that a NetworkPolicy lets the job's pods reach one another on every port, {_service(place)} "
        "and the cluster's DNS"
    )


def named(nodes: list[int]) -> str:
    """``node 3``, ``nodes 1, 2 and 7 more``."""
    shown = ", ".join(map(str, nodes[:_MOST_NAMED]))
    more = len(nodes) - _MOST_NAMED
    return f"node{'s' * (len(nodes) > 1)} {shown}{f' and {more} more' if more > 0 else ''}"


def _service(place: Place) -> str:
    _, _, service = place.master.partition(".")
    return f"the Service {service}" if service and not service[-1].isdigit() else "its Service"


def _tries() -> Iterator[None]:
    pause = 0.1
    while True:
        yield
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 1.5)


def _master(environment: Mapping[str, str]) -> str:
    master = environment.get("PET_MASTER_ADDR")
    if not master:
        raise UserError("PET_MASTER_ADDR: must name node 0 when there is more than one node (PET_NNODES)")
    return master


def _port(environment: Mapping[str, str], nodes: int) -> int:
    if "PET_MASTER_PORT" in environment or nodes > 1:
        return _number(environment, "PET_MASTER_PORT", MASTER_PORT, least=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _timeout(environment: Mapping[str, str]) -> int:
    pairs = (pair.partition("=") for pair in environment.get("PET_RDZV_CONF", "").split(","))
    settings = {name.strip(): value.strip() for name, _, value in pairs if name.strip()}
    return _number(settings, "timeout", RENDEZVOUS_SECONDS, least=1, shown="PET_RDZV_CONF: timeout")


def _number(source: Mapping[str, str], name: str, default: int, *, least: int, shown: str | None = None) -> int:
    text = source.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{shown or name}: {text!r} must be a whole number of at least {least}")
    return int(text)

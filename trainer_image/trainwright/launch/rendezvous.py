"""Where this pod stands in its gang, from torchrun's own variables, and the wait until the gang can meet.

Rendezvous is static: the node rank is the pod's completion index and node 0 is the master, so that ranks keep their
order in logs, in progress and in a TPU's wiring.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainwright.contract import ENV_FIRST_NODE_RANK, MASTER_PORT, UserError

RENDEZVOUS_SECONDS = 1800
"""How long a pod waits for the others: images are pulled and nodes are scaled up meanwhile."""
_LONGEST_PAUSE = 1.0


class RendezvousFailed(Exception):
    """The gang did not meet in time; another attempt may."""


@dataclass(frozen=True)
class Place:
    """One node of a gang: ``node_rank`` of ``nodes``, each with ``per_node`` ranks; seconds for ``timeout``."""

    nodes: int
    per_node: int
    node_rank: int
    master: str
    port: int
    timeout: int = RENDEZVOUS_SECONDS

    @staticmethod
    def of(environment: Mapping[str, str]) -> Place:
        """From ``PET_NNODES``, ``PET_NPROC_PER_NODE``, ``PET_NODE_RANK``, ``PET_MASTER_ADDR``, ``PET_MASTER_PORT`` and
        the ``timeout`` of ``PET_RDZV_CONF``, as torchrun reads them. A gang of one node meets on loopback. In a slice
        among several, ``PET_NODE_RANK`` counts the slice's own hosts, from ``TRAINWRIGHT_FIRST_NODE_RANK`` on.
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


def wait_for_master(place: Place, resolve: Callable[..., object] = socket.getaddrinfo) -> None:
    """Returns as soon as the master's name resolves: a headless Service publishes it once its pod has an address.

    Raises:
        RendezvousFailed: the name did not resolve within ``place.timeout`` seconds.
    """
    deadline = time.monotonic() + place.timeout
    pause = 0.1
    while True:
        try:
            resolve(place.master, place.port)
            return
        except OSError as error:
            if time.monotonic() + pause > deadline:
                raise RendezvousFailed(
                    f"node {place.node_rank} waited {place.timeout} s for node 0: {place.master} does not resolve "
                    f"({error.strerror or error}); its pod has not started"
                ) from None
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

"""What a node is opened with: its socket, and its engine with an id."""

from __future__ import annotations

import errno
import random
import socket

from dht.config import DhtConfig, EngineConfig, Randomness
from dht.engine import Engine
from dht.keys import NodeId, is_secure_id, secure_id
from dht.state import SavedState
from swarm.errors import ResourceError

RECEIVE_BUFFER = 1 << 20  # bytes of kernel buffer: a lookup's answers arrive in bursts
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  (compared with, not listened on)


def make_engine(config: DhtConfig, saved: SavedState | None, now: float) -> Engine:
    """An engine with the configured id, the saved one if it still suits the address, or a fresh one."""
    rng: Randomness = random.SystemRandom() if config.seed is None else random.Random(config.seed)  # noqa: S311
    host = config.external_host or (None if config.host in WILDCARDS else config.host)
    noise = rng.randbytes(NodeId.size)
    if config.node_id is not None:
        node_id = config.node_id
    elif saved is not None and (host is None or is_secure_id(saved.node_id, host)):
        node_id = saved.node_id
    else:
        node_id = NodeId(noise) if host is None else secure_id(host, noise)
    settings = EngineConfig(node_id=node_id, fixed_id=config.node_id is not None, host=host, read_only=config.read_only)
    return Engine(settings, rng, now)


def listen(config: DhtConfig) -> socket.socket:
    """A UDP socket bound as configured. Raises `ResourceError` if the port is in use or the address not ours."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        where = f"{config.host}:{config.port}"
        if error.errno == errno.EADDRINUSE:
            raise ResourceError(f"UDP {where} is in use; stop the other program or choose another port") from error
        raise ResourceError(f"cannot listen on UDP {where}: {error.strerror}; choose another address") from error
    return sock

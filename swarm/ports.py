"""Whether a port can be had: asked before long work that would end in "address already in use".

It is bound and let go at once, so whoever binds it later must still be ready to fail.
"""

from __future__ import annotations

import os
import socket

from swarm.errors import ResourceError


def check_port(host: str, port: int, *, option: str = "--port", udp: bool = False) -> None:
    """Raise `ResourceError` if ``host`` (a numeric address) cannot be listened on at ``port``; 0 is any free one."""
    if problem := port_problem(host, port, udp=udp):
        kind = "UDP " if udp else ""
        raise ResourceError(f"cannot listen on {kind}{host}:{port} ({problem}); choose another with {option}")


def port_problem(host: str, port: int, *, udp: bool) -> str:
    """Why the system refuses the port; empty if it does not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as probe:
            if not udp and os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server would
            probe.bind((host, port))
    except OSError as error:
        return error.strerror or str(error)
    return ""

from __future__ import annotations

import socket

import pytest

from swarm.errors import ResourceError
from swarm.ports import check_port, port_problem


@pytest.mark.parametrize("udp", [False, True])
def test_a_port_in_use_is_refused_with_what_to_do_and_is_free_again_afterwards(udp: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        if not udp:
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"127.0.0.1:{port} .*; choose another with --dht-port"):
            check_port("127.0.0.1", port, option="--dht-port", udp=udp)
    check_port("127.0.0.1", port, udp=udp)
    check_port("127.0.0.1", port, udp=udp)


def test_any_free_port_and_an_address_that_is_not_here() -> None:
    assert port_problem("127.0.0.1", 0, udp=False) == port_problem("127.0.0.1", 0, udp=True) == ""
    assert port_problem("192.0.2.1", 0, udp=False)

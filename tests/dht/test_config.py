from __future__ import annotations

import pytest

from dht.config import DhtConfig
from swarm.errors import UsageError


def test_the_defaults_make_a_first_node_on_this_machine() -> None:
    config = DhtConfig()
    assert (config.host, config.port, config.bootstrap, config.read_only) == ("127.0.0.1", 0, (), False)


@pytest.mark.parametrize(
    ("port", "bootstrap"),
    [(-1, ()), (65536, ()), (0, (("127.0.0.1", 0),)), (0, (("", 1),)), (0, (("127.0.0.1", 70000),))],
)
def test_impossible_addresses_are_refused(port: int, bootstrap: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(UsageError):
        DhtConfig(port=port, bootstrap=bootstrap)


def test_an_empty_host_is_refused() -> None:
    with pytest.raises(UsageError):
        DhtConfig(host="")

"""What a BitTorrent session may do, and the settings of libtorrent that follow from it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from swarm.errors import UsageError

ALERT_QUEUE = 20_000  # a fast transfer of small pieces fills libtorrent's 2 000 between two turns of the loop
QUEUE = 500  # blocks of 16 KiB asked of one peer and not yet come: 160 MB/s at 50 ms
CROWD_QUEUE = 16  # with more, eight that join at once open so many pieces that they finish each other's from the seed
QUEUE_TIME = 1  # seconds' worth of requests kept at a peer; libtorrent's 3 opens more pieces than it can finish
PIECE_TIMEOUT = 5  # seconds without a block before its piece is asked elsewhere; at 20 a layer waits for one block
UNCHOKED = 64  # peers served at once; with libtorrent's 8 the ninth worker that joins waits
RECONNECT_TIME = 5  # seconds per failed attempt; libtorrent's 60 outlasts a peer's restart
TICK = 100  # ms between two turns of the rate limits and connection attempts; at 500 a layer waits for its last piece
FAST_BUFFER = 4 * 2**20  # bytes; uTP on a fast link is six times slower with the system's default


@dataclass(frozen=True, slots=True, kw_only=True)
class TorrentConfig:
    """Where a session listens and how much it may transfer."""

    host: str = "127.0.0.1"
    """Numeric address to listen on."""
    port: int = 0
    """TCP port; 0 lets the system choose."""
    upload_rate: int = 0
    """Bytes per second to all peers, local ones included; 0 is unlimited."""
    download_rate: int = 0
    """The same for receiving."""
    utp: bool = False
    """Also speak uTP, which yields to other traffic: for home links. On fast links it is many times slower."""
    map_ports: bool = False
    """Ask the router, by UPnP and NAT-PMP, to let peers in; never on a loopback address."""

    @property
    def maps_ports(self) -> bool:
        """Whether the router is asked."""
        return self.map_ports and not ipaddress.ip_address(self.host).is_loopback

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError as error:
            raise UsageError(f"{self.host[:80]!r} is not a numeric address to listen on, such as 127.0.0.1") from error
        if not 0 <= self.port <= 0xFFFF or self.upload_rate < 0 or self.download_rate < 0:
            raise UsageError("a torrent session needs a port from 0 to 65535 and rates that are not negative")


def session_settings(config: TorrentConfig) -> dict[str, Any]:
    """Everything that reaches out by default is off; what is left listens on one address."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    settings: dict[str, Any] = {
        "listen_interfaces": f"{host}:{config.port}",
        "listen_system_port_fallback": False,
        "max_retry_port_bind": 0,  # a port in use is an error, not the next port
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": config.maps_ports,
        "enable_natpmp": config.maps_ports,
        "dht_bootstrap_nodes": "",
        "webtorrent_stun_server": "",
        "allow_multiple_connections_per_ip": True,  # peers behind one NAT
        "enable_outgoing_utp": config.utp,
        "enable_incoming_utp": config.utp,
        "upload_rate_limit": config.upload_rate,
        "download_rate_limit": config.download_rate,
        "min_reconnect_time": RECONNECT_TIME,
        "tick_interval": TICK,
        "max_out_request_queue": QUEUE,
        "request_queue_time": QUEUE_TIME,
        "piece_timeout": PIECE_TIMEOUT,
        "unchoke_slots_limit": UNCHOKED,
        "alert_queue_size": ALERT_QUEUE,
    }
    if config.utp:
        settings |= {"recv_socket_buffer_size": FAST_BUFFER, "send_socket_buffer_size": FAST_BUFFER}
    return settings

"""Where nodes and peers are: endpoints of either address family, and contacts, with their compact forms (BEP 5, 32)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import NamedTuple

from dht.keys import NodeId
from swarm.errors import ProtocolError

V4_SIZE = 6  # address and port
V6_SIZE = 18


class Endpoint(NamedTuple):
    """A UDP or TCP address: a numeric host (never a name) and a port. Equal to the tuple that sockets give."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return ":" in self.host

    @property
    def packed_host(self) -> bytes:
        """The address alone, 4 or 16 bytes."""
        if self.is_ipv6:
            return IPv6Address(self.host).packed
        return bytes(map(int, self.host.split(".")))

    def pack(self) -> bytes:
        """The compact form: 6 bytes (IPv4) or 18 (IPv6)."""
        return self.packed_host + self.port.to_bytes(2, "big")

    @classmethod
    def unpack(cls, raw: bytes) -> Endpoint:
        """Read the compact form. Raises `ProtocolError` for another length or port 0."""
        if len(raw) == V4_SIZE:
            host = ".".join(map(str, raw[:4]))
        elif len(raw) == V6_SIZE:
            host = IPv6Address(raw[:16]).compressed
        else:
            raise ProtocolError(f"a compact address has {V4_SIZE} or {V6_SIZE} bytes, not {len(raw)}")
        port = int.from_bytes(raw[-2:], "big")
        if port == 0:
            raise ProtocolError("a compact address names port 0")
        return cls(host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Contact:
    """A node: its id and where it answers."""

    node_id: NodeId
    endpoint: Endpoint

    def pack(self) -> bytes:
        """The compact form: 26 bytes (IPv4) or 38 (IPv6)."""
        return self.node_id + self.endpoint.pack()


def pack_contacts(contacts: Iterable[Contact]) -> bytes:
    """Compact forms one after the other, as KRPC's ``nodes`` and ``nodes6`` carry them."""
    return b"".join(contact.pack() for contact in contacts)


def unpack_contacts(raw: bytes, *, ipv6: bool) -> tuple[Contact, ...]:
    """Read ``nodes`` or ``nodes6``. Entries with port 0 are left out: foreign nodes do pass them on.

    Raises `ProtocolError` unless ``raw`` is a whole number of entries.
    """
    size = NodeId.size + (V6_SIZE if ipv6 else V4_SIZE)
    if len(raw) % size:
        raise ProtocolError(f"{len(raw)} bytes are not a whole number of {size}-byte contacts")
    return tuple(
        Contact(NodeId(raw[at : at + NodeId.size]), Endpoint.unpack(raw[at + NodeId.size : at + size]))
        for at in range(0, len(raw), size)
        if raw[at + size - 2 : at + size] != b"\0\0"
    )

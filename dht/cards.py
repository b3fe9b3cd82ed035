"""Cards: what a worker says of itself at length. A BEP 44 item under the worker's key, salt ``swarm/card/1``.

A card changes seldom and is stored by any mainline node; what is true this minute stands in the roster, and what is
true this second the worker's quote says. The value is a dictionary: e endpoints (compact), g region, r reachability,
s spans of `SPAN_SIZE` bytes each, one after the other, big-endian: manifest id 32, start 2, stop 2, variant 4,
price_in 4, price_out 4, decode_rate 4, free_positions 4, queue 1. With 16 spans it is under 1000 bytes.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any, Self

from dht.contacts import Endpoint
from dht.fields import read_bytes
from dht.items import MAX_VALUE
from dht.roster import REGION_SIZE, VARIANT_SIZE, pack_label, unpack_label
from swarm.codec import Value, encode
from swarm.errors import ProtocolError, UsageError
from swarm.ids import ManifestId
from swarm.receipts import Price

CARD_SALT = b"swarm/card/1"
MAX_SPANS = 16  # what fits BEP 44's 1000 bytes beside three endpoints
MAX_ENDPOINTS = 3  # IPv4, IPv6 and a relay
UINT32_MAX = 2**32 - 1

_SPAN = struct.Struct(">32sHH4sIIIIB")
SPAN_SIZE = _SPAN.size


class Reachability(enum.Enum):
    """How a worker can be called."""

    DIRECT = b"d"
    RELAYED = b"r"
    UNREACHABLE = b"u"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanOffer:
    """Layers [start, stop) of one model. Prices over 2^32 - 1 are said as that; rosters and quotes have them whole."""

    manifest_id: ManifestId
    start: int
    stop: int
    variant: str = ""
    """How the weights are kept, up to 4 characters; empty for as published."""
    price: Price
    decode_rate: int = 0
    """Measured, in thousandths of a token per second for the whole span."""
    free_positions: int = 0
    """Positions of the whole span that still fit in its key-value memory."""
    queue: int = 0
    """Steps waiting for the device, 255 for more."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 0xFFFF:
            raise UsageError(f"a card's span [{self.start}, {self.stop}) is empty or out of range; give START:STOP")
        if not 0 <= self.decode_rate <= UINT32_MAX or not 0 <= self.free_positions <= UINT32_MAX:
            raise UsageError("a card's rate or free positions are out of range")
        if not 0 <= self.queue <= 0xFF:
            raise UsageError(f"a card's queue is from 0 to 255, not {self.queue}")
        pack_label(self.variant, VARIANT_SIZE)

    def pack(self) -> bytes:
        """The span's part of the card."""
        return _SPAN.pack(
            self.manifest_id, self.start, self.stop, pack_label(self.variant, VARIANT_SIZE),
            min(self.price.per_1k_input, UINT32_MAX), min(self.price.per_1k_output, UINT32_MAX), self.decode_rate,
            self.free_positions, self.queue,
        )  # fmt: skip

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read such a part. Raises `ProtocolError`."""
        manifest_id, start, stop, variant, price_in, price_out, rate, free, queue = _SPAN.unpack(raw)
        try:
            return cls(
                manifest_id=ManifestId(manifest_id), start=start, stop=stop, variant=unpack_label(variant),
                price=Price(per_1k_input=price_in, per_1k_output=price_out), decode_rate=rate, free_positions=free,
                queue=queue,
            )  # fmt: skip
        except UsageError as error:
            raise ProtocolError(error.message) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A worker's own description."""

    endpoints: tuple[Endpoint, ...]
    """Where it is called (TCP), the best first."""
    reachability: Reachability = Reachability.DIRECT
    region: str = ""
    """Two letters, or empty."""
    spans: tuple[SpanOffer, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.endpoints) <= MAX_ENDPOINTS:
            raise UsageError(f"a card names 1 to {MAX_ENDPOINTS} endpoints, not {len(self.endpoints)}")
        if not len(self.spans) <= MAX_SPANS:
            raise UsageError(f"a card has up to {MAX_SPANS} spans, not {len(self.spans)}; leave some out")
        pack_label(self.region, REGION_SIZE)
        if len(encode(self.value())) > MAX_VALUE:
            raise UsageError(f"a card has at most {MAX_VALUE} bytes; leave an endpoint or a span out")

    def value(self) -> dict[bytes, Any]:
        """The value of the BEP 44 item."""
        return {
            b"e": [endpoint.pack() for endpoint in self.endpoints],
            b"g": pack_label(self.region, REGION_SIZE),
            b"r": self.reachability.value,
            b"s": b"".join(span.pack() for span in self.spans),
        }

    @classmethod
    def read(cls, value: Value) -> Self:
        """The card that an item's value says. Raises `ProtocolError` for any other value."""
        if not isinstance(value, dict):
            raise ProtocolError("not a worker's card")
        endpoints, spans = value.get(b"e"), read_bytes(value, b"s", most=MAX_VALUE)
        if not isinstance(endpoints, list) or not all(isinstance(raw, bytes) for raw in endpoints):
            raise ProtocolError("a card without endpoints")
        if len(spans) % SPAN_SIZE:
            raise ProtocolError("a card's spans are cut off")
        try:
            card = cls(
                endpoints=tuple(Endpoint.unpack(raw) for raw in endpoints),
                reachability=Reachability(read_bytes(value, b"r", exactly=1)),
                region=unpack_label(read_bytes(value, b"g", exactly=REGION_SIZE)),
                spans=tuple(SpanOffer.unpack(spans[at : at + SPAN_SIZE]) for at in range(0, len(spans), SPAN_SIZE)),
            )
        except (UsageError, ValueError) as error:
            raise ProtocolError("not a worker's card") from error
        if card.value() != value:
            raise ProtocolError("a card with fields that this version does not know")
        return card

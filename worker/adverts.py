"""What a worker says of itself in the DHT: the part of its live quote that others choose by. Pure."""

from __future__ import annotations

from ipaddress import ip_address

from dht.heartbeat import Advert
from swarm.records import Quote


def advert_of(quote: Quote) -> Advert:
    """The advert that says what ``quote`` says. A worker that listens on every address leaves it to others to say
    where they see it.
    """
    return Advert(
        manifest_id=quote.manifest_id,
        host=None if ip_address(quote.host).is_unspecified else quote.host,
        port=quote.port,
        start=quote.start,
        stop=quote.stop,
        price=quote.price,
        free_slots=max(0, quote.free_slots),
        decode_rate=quote.decode_rate,
    )

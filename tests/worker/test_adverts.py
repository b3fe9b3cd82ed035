from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.ids import Address, ManifestId, PeerId
from swarm.receipts import Price
from swarm.records import Quote
from worker.adverts import advert_of

QUOTE = Quote(
    worker=PeerId(b"w" * 32), manifest_id=ManifestId(b"m" * 32), start=2, stop=6,
    price=Price(per_1k_input=3, per_1k_output=4), account=Address(bytes(20)), chain_id=0, contract=Address(bytes(20)),
    window=8, device="cpu", device_name="", memory_bytes=1, host="20.1.2.3", port=7000, free_slots=5,
    free_positions=9, queue=0, decode_rate=1500, prefill_rate=1, context=64, issued=1, valid_until=2,
)  # fmt: skip


def test_an_advert_says_what_the_quote_says() -> None:
    advert = advert_of(QUOTE)
    assert (advert.manifest_id, advert.host, advert.port) == (QUOTE.manifest_id, "20.1.2.3", 7000)
    assert (advert.start, advert.stop, advert.price) == (2, 6, QUOTE.price)
    assert (advert.free_slots, advert.decode_rate) == (5, 1500)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104  (what is listened on, not where)
def test_a_worker_on_every_address_leaves_it_to_others_where_it_is(host: str) -> None:
    assert advert_of(replace(QUOTE, host=host)).host is None

from __future__ import annotations

import pytest

from dht.items import ImmutableItem
from dht.keys import Target
from dht.publications import (
    ANNOUNCE_EVERY,
    PUT_EVERY,
    THIN_EVERY,
    Announcement,
    Publication,
    Publications,
    PublishedItem,
)
from dht.routing import BUCKET_SIZE
from swarm.codec import encode

HERE = Announcement(target=Target(b"1" * 20), port=7000)
ITEM = PublishedItem(item=ImmutableItem(encoded=encode(b"v")))


@pytest.mark.parametrize(
    ("publication", "holders", "interval"),
    [
        (HERE, BUCKET_SIZE, ANNOUNCE_EVERY),
        (ITEM, BUCKET_SIZE, PUT_EVERY),
        (HERE, BUCKET_SIZE - 1, THIN_EVERY),
        (ITEM, 0, THIN_EVERY),
    ],
)
def test_when_it_is_due_again(publication: Publication, holders: int, interval: tuple[float, float]) -> None:
    publications = Publications()
    for draw, due in ((0.0, interval[0]), (0.5, sum(interval) / 2)):
        publications.add(publication, holders=holders, now=100.0, draw=draw)
        assert publications.next_due() == 100.0 + due
        assert publications.take_due(99.0 + due) == []
    assert publications.take_due(100.0 + due) == [publication]
    assert publications.take_due(100.0 + due) == []
    assert len(publications) == 1  # it is due again later even if nobody adds it anew


def test_an_announcement_and_an_item_do_not_replace_each_other() -> None:
    publications = Publications()
    twin = Announcement(target=ITEM.target, port=1)
    publications.add(ITEM, holders=0, now=0.0, draw=0.0)
    publications.add(twin, holders=0, now=0.0, draw=0.0)
    assert publications.announced_port(ITEM.target) == 1
    publications.remove(Announcement, ITEM.target)
    assert publications.announced_port(ITEM.target) is None
    assert publications.take_due(1000.0) == [ITEM]
    publications.remove(PublishedItem, ITEM.target)
    assert publications.next_due() is None

from __future__ import annotations

from dht.contacts import Endpoint
from dht.votes import MAX_VOTERS, AddressVotes


def voter(number: int) -> Endpoint:
    return Endpoint(f"10.0.0.{number}", 1)


def test_most_votes_win_and_ports_do_not_matter() -> None:
    votes = AddressVotes()
    assert votes.host is None
    votes.add(voter(1), Endpoint("1.1.1.1", 1))
    votes.add(voter(2), Endpoint("2.2.2.2", 1))
    votes.add(voter(3), Endpoint("2.2.2.2", 9))
    assert votes.host == "2.2.2.2"


def test_one_host_has_one_vote() -> None:
    votes = AddressVotes()
    for port in range(1, 9):
        votes.add(Endpoint("10.0.0.1", port), Endpoint("6.6.6.6", 1))
    votes.add(voter(2), Endpoint("1.1.1.1", 1))
    votes.add(voter(3), Endpoint("1.1.1.1", 1))
    assert votes.host == "1.1.1.1"


def test_a_change_of_address_is_followed() -> None:
    votes = AddressVotes()
    for number in range(MAX_VOTERS):
        votes.add(voter(number), Endpoint("1.1.1.1", 1))
    for number in range(MAX_VOTERS // 2 + 1):
        votes.add(voter(100 + number), Endpoint("2.2.2.2", 1))
    assert votes.host == "2.2.2.2"


def test_agreement_takes_four_voters_and_more_than_half() -> None:
    votes = AddressVotes()
    for number in range(3):
        votes.add(Endpoint(f"{20 + number}.1.1.1", 1), Endpoint("51.1.1.1", 1))
    assert (votes.host, votes.agreed) == ("51.1.1.1", None)
    votes.add(Endpoint("30.1.1.1", 1), Endpoint("52.1.1.1", 1))
    assert votes.agreed == "51.1.1.1"
    for number in range(2):
        votes.add(Endpoint(f"{40 + number}.1.1.1", 1), Endpoint("52.1.1.1", 1))
    assert votes.agreed is None
    for number in range(1, 200):  # one /24 is one voter
        votes.add(Endpoint(f"40.1.1.{number}", 1), Endpoint("52.1.1.1", 1))
    assert votes.agreed is None

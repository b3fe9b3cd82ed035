from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.commands import PRICES, HandMade, open_hand_made


@pytest.fixture(scope="session")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandMade]:
    """A chain, a publisher and three workers that ask a price, each started with its command."""
    with open_hand_made(tmp_path_factory.mktemp("by-hand")) as swarm:
        spans = (("first", "0:3"), ("second", "3:6"), ("third", "6:8"))
        jobs = [swarm.begin_work(name, span, *PRICES, *swarm.pay) for name, span in spans]
        swarm.workers = [job.future.result() for job in jobs]
        yield swarm


@pytest.fixture(scope="session")
def free(hand_made: HandMade) -> str:
    """The name of a second model, by another publisher who joined the first, that one worker serves for nothing."""
    model = hand_made.publish("free", "gratis")
    hand_made.work("gratis-worker", "0:8", "--price", "0", model=model)
    return model

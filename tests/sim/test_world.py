"""The simulator itself, with nodes that speak a protocol of their own: what they hear, they say back once."""

from __future__ import annotations

import pytest

from tests.sim.attackers import Babbler, Flooder, Quiet, Slow
from tests.sim.links import Link, Links, uniform
from tests.sim.world import BACKLOG, Address, World, reproduce

A, B, C = ("20.0.0.1", 1), ("20.0.0.2", 2), ("20.0.1.3", 3)


class Echo(Quiet):
    """Says back what it hears unless it is an echo itself, and ticks every second."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.heard: list[tuple[float, bytes, Address]] = []
        self.ticks: list[float] = []
        self.next = now + 1.0

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        self.heard.append((now, data, addr))
        if not data.startswith(b"echo"):
            self.out.append((b"echo " + data, addr))

    def next_deadline(self) -> float:
        return self.next

    def handle_timer(self, now: float) -> None:
        self.ticks.append(now)
        self.next += 1.0

    def events(self) -> list[str]:
        return [f"heard {len(self.heard)}"] if self.heard else []


def make_world(seed: int = 1, **link: float) -> World:
    world = World(seed, Links(Link(delay=uniform(0.01, 0.05), **link)))
    for address in (A, B, C):
        world.add(address, Echo)
    return world


def say(world: World, source: Address, target: Address, data: bytes) -> None:
    world.call(source, lambda node, _: node.out.append((data, target)))


def echo(world: World, address: Address) -> Echo:
    node = world.node(address)
    assert isinstance(node, Echo)
    return node


def talk(seed: int, **link: float) -> World:
    world = make_world(seed, **link)
    for number in range(50):
        say(world, A, B, b"%d" % number)
        say(world, B, C, b"%d" % number)
        world.run(0.01)
    world.run(1.0)
    return world


def test_the_same_seed_gives_the_same_trace_and_another_another() -> None:
    link = {"loss": 0.1, "duplicates": 0.1, "late": 0.1}
    assert talk(1, **link).trace == talk(1, **link).trace
    assert talk(1, **link).trace != talk(2, **link).trace


def test_a_datagram_and_its_answer_take_their_time() -> None:
    world = make_world()
    seen: list[tuple[Address, str]] = []
    world.on_event = lambda address, event: seen.append((address, event))
    say(world, A, B, b"hello")
    assert world.run_until(lambda: bool(echo(world, A).heard), 1.0)
    ((arrived, data, source),) = echo(world, B).heard
    assert (data, source) == (b"hello", A)
    assert 0.01 <= arrived <= 0.05
    assert echo(world, A).heard == [(world.now, b"echo hello", B)]
    assert (world.sent, world.delivered, world.sent_bytes) == (2, 2, 15)
    assert (B, "heard 1") in seen


def test_nodes_are_made_when_they_are_needed_and_tick_by_their_own_clocks() -> None:
    world = make_world()
    world.run(5.0)
    world.add(("20.0.9.9", 9), Echo, ahead=3600.0)
    assert echo(world, A).ticks == []
    say(world, A, B, b"x")
    world.run(3.5)
    assert echo(world, A).ticks == pytest.approx([6.0, 7.0, 8.0])
    world.call(("20.0.9.9", 9), lambda node, now: None)
    world.run(1.0)
    assert echo(world, ("20.0.9.9", 9)).ticks == pytest.approx([3609.5])
    world.shift_clock(A, 100.0)
    world.run(0.0)
    assert echo(world, A).ticks[-1] == pytest.approx(109.5)


def test_a_killed_node_hears_nothing_and_its_place_can_be_taken() -> None:
    world = make_world()
    say(world, A, B, b"one")
    world.kill(B)
    world.run(1.0)
    assert echo(world, A).heard == []
    world.add(B, Echo)
    say(world, A, B, b"two")
    world.run(1.0)
    assert [data for _, data, _ in echo(world, B).heard] == [b"two"]
    with pytest.raises(ValueError, match="taken"):
        world.add(B, Echo)


def test_a_paused_node_hears_later_what_its_socket_could_hold() -> None:
    world = make_world()
    say(world, B, A, b"awake")
    world.run(0.5)
    world.pause(B)
    for number in range(BACKLOG + 5):
        say(world, A, B, b"%d" % number)
    world.run(3.0)
    node = echo(world, B)
    assert len(node.heard) == 1
    assert node.ticks == []
    world.resume(B)
    assert len(node.heard) == 1 + BACKLOG
    assert node.ticks == [3.5]


class TestLinks:
    def test_loss_duplicates_and_reordering_have_their_shares(self) -> None:
        world = make_world(loss=0.2)
        for number in range(1000):
            say(world, A, B, b"echo%d" % number)
        world.run(1.0)
        assert 750 < len(echo(world, B).heard) < 850
        world = make_world(duplicates=0.3)
        for number in range(1000):
            say(world, A, B, b"echo%d" % number)
        world.run(1.0)
        assert 1250 < len(echo(world, B).heard) < 1350
        world = make_world(late=0.1)
        for number in range(1000):
            say(world, A, B, b"echo%d" % number)
        world.run(0.06)
        assert 870 < len(echo(world, B).heard) < 930

    def test_partitions_hold_until_they_are_healed(self) -> None:
        world = make_world()
        halves = world.links.separate({A[0]})
        say(world, A, B, b"cut")
        say(world, C, B, b"free")
        world.run(0.5)
        assert [data for _, data, _ in echo(world, B).heard] == [b"free"]
        world.links.heal(halves)
        oneway = world.links.silence({B[0]})
        say(world, A, B, b"in")
        world.run(0.5)
        assert [data for _, data, _ in echo(world, B).heard] == [b"free", b"in"]
        assert echo(world, A).heard == []
        world.links.heal(oneway)
        say(world, A, B, b"again")
        world.run(0.5)
        assert [data for _, data, _ in echo(world, A).heard] == [b"echo again"]

    def test_a_host_can_have_a_link_of_its_own(self) -> None:
        world = make_world()
        world.links.set_host(C[0], Link(loss=1.0))
        say(world, A, C, b"x")
        say(world, A, B, b"x")
        world.run(1.0)
        assert echo(world, C).heard == []
        assert len(echo(world, B).heard) == 1


class TestAttackers:
    def test_a_slow_node_is_right_too_late(self) -> None:
        world = make_world()
        world.add(("20.0.2.4", 4), lambda now: Slow(Echo(now), 2.0))
        say(world, A, ("20.0.2.4", 4), b"x")
        world.run(1.9)
        assert echo(world, A).heard == []
        world.run(0.3)
        assert len(echo(world, A).heard) == 1

    def test_a_babbler_answers_and_a_flooder_keeps_its_rate(self) -> None:
        world = make_world()
        world.add(("20.0.2.5", 5), lambda now: Babbler(7))
        say(world, A, ("20.0.2.5", 5), b"x")
        world.run(0.5)
        assert echo(world, A).heard
        world.kill(("20.0.2.5", 5))
        world.add(("20.0.2.6", 6), lambda now: Flooder(B, 100.0, lambda number: b"echo%d" % number, now))
        world.call(("20.0.2.6", 6), lambda node, now: None)
        world.run(2.0)
        assert 190 <= len(echo(world, B).heard) <= 202


def test_a_failed_seed_says_how_to_see_it_again() -> None:
    assert reproduce(7, "tests/sim/test_x.py::test_y") == (
        "reproduce with: SIM_SEED=7 python -m pytest 'tests/sim/test_x.py::test_y'"
    )

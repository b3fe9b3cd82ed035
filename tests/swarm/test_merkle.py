from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.merkle import (
    CHUNK_STEPS,
    EMPTY_ROOT,
    ChainedRoot,
    Frontier,
    leaf_hash,
    merkle_proof,
    merkle_root,
    node_hash,
    verify_proof,
)

LEAVES = st.lists(st.binary(min_size=32, max_size=32), max_size=70)


def frontier_of(leaves: list[bytes]) -> Frontier:
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier


@given(LEAVES)
def test_the_frontier_keeps_the_root_of_the_definition(leaves: list[bytes]) -> None:
    frontier = frontier_of(leaves)
    assert (frontier.root(), frontier.count) == (merkle_root(leaves), len(leaves))


@given(LEAVES, LEAVES)
def test_a_restored_frontier_grows_like_the_first(before: list[bytes], after: list[bytes]) -> None:
    kept = frontier_of(before)
    restored = Frontier.restore(kept.count, kept.peaks)
    for leaf in after:
        restored.append(leaf)
    assert restored.root() == merkle_root(before + after)


@given(st.integers(0, 1 << 20), st.integers(0, 25))
def test_peaks_of_another_count_are_refused(count: int, peaks: int) -> None:
    if count.bit_count() == peaks:
        assert Frontier.restore(count, bytes(32 * peaks)).count == count
    else:
        with pytest.raises(ValueError, match="peaks"):
            Frontier.restore(count, bytes(32 * peaks))


@given(LEAVES.filter(bool), st.data())
def test_a_proof_shows_its_own_leaf_at_its_own_place_only(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof, root, leaf = merkle_proof(leaves, index), merkle_root(leaves), leaves[index]
    assert verify_proof(leaf, index, len(leaves), proof, root)
    assert not verify_proof(bytes(31) + b"\1", index, len(leaves), proof, root) or leaf == bytes(31) + b"\1"
    assert not verify_proof(leaf, index, len(leaves), [*proof, root], root)
    assert not verify_proof(leaf, len(leaves), len(leaves), proof, root)
    assert not verify_proof(leaf, -1, len(leaves), proof, root)
    for other in set(range(len(leaves))) - {index}:
        assert not verify_proof(leaf, other, len(leaves), proof, root) or leaves[other] == leaf
    if proof:
        assert not verify_proof(leaf, index, len(leaves), proof[:-1], root)


@pytest.mark.parametrize("index", [-1, 2])
def test_no_proof_of_a_leaf_outside_the_tree(index: int) -> None:
    with pytest.raises(IndexError, match=f"no leaf {index} in a tree of 2"):
        merkle_proof([bytes(32), bytes(32)], index)


def test_leaves_nodes_and_chains_have_different_tags() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert left == hashlib.sha256(b"swarm-leaf/v1\0\0a").digest()
    assert node_hash(left, right) == hashlib.sha256(b"swarm-node/v1\0\0" + left + right).digest()
    assert leaf_hash(left + right) != node_hash(left, right)
    one_step = ChainedRoot()
    one_step.append(b"a", tokens=1)
    assert one_step.value() == hashlib.sha256(b"swarm-chunk/v1\0" + EMPTY_ROOT + left).digest()


def test_golden_roots() -> None:
    leaves = [leaf_hash(bytes([n])) for n in range(7)]
    assert merkle_root([]) == EMPTY_ROOT
    assert merkle_root(leaves).hex() == "4e7451be35615ba8f277e6f44f40dc181942f72fa702357bdc0b1ed5b1870bd4"


def chained_by_definition(steps: list[tuple[bytes, int]]) -> bytes:
    """The chunks written out, then chained."""
    chunks: list[list[bytes]] = [[]]
    for data, tokens in steps:
        if tokens > 1:
            chunks += [[data], []]
        else:
            if len(chunks[-1]) == CHUNK_STEPS:
                chunks.append([])
            chunks[-1].append(data)
    chain = EMPTY_ROOT
    for chunk in filter(None, chunks):
        root = merkle_root([leaf_hash(data) for data in chunk])
        chain = hashlib.sha256(b"swarm-chunk/v1\0" + chain + root).digest()
    return chain


@given(st.lists(st.tuples(st.binary(max_size=8), st.sampled_from([1, 1, 1, 1, 1, 5])), max_size=120))
def test_chained_roots_follow_the_definition_at_every_step(steps: list[tuple[bytes, int]]) -> None:
    chained = ChainedRoot()
    assert chained.value() == EMPTY_ROOT
    for at, (data, tokens) in enumerate(steps, 1):
        chained.append(data, tokens=tokens)
        if at % 7 == 0 or at == len(steps):
            assert chained.value() == chained_by_definition(steps[:at])


def test_asking_for_the_value_does_not_close_the_chunk() -> None:
    asked, quiet = ChainedRoot(), ChainedRoot()
    for n in range(CHUNK_STEPS + 3):
        for chained in (asked, quiet):
            chained.append(bytes([n]), tokens=1)
        asked.value()
    assert asked.value() == quiet.value()

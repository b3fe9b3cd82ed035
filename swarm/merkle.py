"""Merkle trees and chained roots over SHA-256, with different domain tags for leaves, nodes and chains.

The tree is that of RFC 6962 (section 2.1): the left subtree of n leaves holds the largest power of two below n, so a
tree grows by appending and `Frontier` keeps its root in O(log n) state. The tags keep a leaf from being shown as a
node, and a chained root from being shown as either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Self

HASH_SIZE = 32
EMPTY_ROOT = bytes(HASH_SIZE)
CHUNK_STEPS = 32  # decode steps to a chunk; a prefill step is a chunk of its own (one leaf each)

_LEAF = b"swarm-leaf/v1\0\0"
_NODE = b"swarm-node/v1\0\0"
_CHAIN = b"swarm-chunk/v1\0"


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """The hash of a leaf with these bytes."""
    digest = hashlib.sha256(_LEAF)
    digest.update(data)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(_NODE + left + right).digest()


class Frontier:
    """An append-only tree, as the roots of its complete subtrees, largest first."""

    __slots__ = ("_peaks", "count")

    def __init__(self) -> None:
        self._peaks: list[tuple[int, bytes]] = []  # (leaves in it, its root)
        self.count = 0

    @classmethod
    def restore(cls, count: int, peaks: bytes) -> Self:
        """The tree of ``count`` leaves whose `peaks` were kept. Raises `ValueError` if they do not fit together."""
        # The complete subtrees of n leaves are the powers of two in n.
        sizes = [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1]
        if len(peaks) != HASH_SIZE * len(sizes):
            raise ValueError(f"a tree of {count} leaves has {len(sizes)} peaks, not {len(peaks)} bytes of them")
        frontier = cls()
        frontier.count = count
        frontier._peaks = [(size, peaks[HASH_SIZE * at : HASH_SIZE * (at + 1)]) for at, size in enumerate(sizes)]
        return frontier

    @property
    def peaks(self) -> bytes:
        """The roots of the complete subtrees, largest first, 32 bytes each; with the count, all `restore` needs."""
        return b"".join(root for _, root in self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        size, root = 1, leaf
        while self._peaks and self._peaks[-1][0] == size:
            root = node_hash(self._peaks.pop()[1], root)
            size *= 2
        self._peaks.append((size, root))
        self.count += 1

    def root(self) -> bytes:
        """The root over all leaves so far; 32 zero bytes for none."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1][1]
        for _, peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, straight from the definition; the specification of `Frontier`."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else EMPTY_ROOT
    split = _split(len(leaves))
    return node_hash(merkle_root(leaves[:split]), merkle_root(leaves[split:]))


def merkle_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The sibling hashes from leaf ``index`` up to the root. Raises `IndexError` outside the tree."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"no leaf {index} in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*merkle_proof(leaves[:split], index), merkle_root(leaves[split:])]
    return [*merkle_proof(leaves[split:], index - split), merkle_root(leaves[:split])]


def verify_proof(leaf: bytes, index: int, count: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``leaf`` is number ``index`` of the ``count`` leaves under ``root``."""
    if not 0 <= index < count:
        return False
    path: list[bool] = []  # True where the leaf is in the left subtree, root first
    while count > 1:
        split = _split(count)
        left = index < split
        path.append(left)
        index, count = (index, split) if left else (index - split, count - split)
    if len(path) != len(proof):
        return False
    for left, sibling in zip(reversed(path), proof, strict=True):
        leaf = node_hash(leaf, sibling) if left else node_hash(sibling, leaf)
    return leaf == root


class ChainedRoot:
    """The root a stage signs for what went in (or out): chunk roots, each hashed over all chunks before it.

    A prefill step (more than one token) closes the open chunk and is a chunk of its own; decode steps fill chunks of
    `CHUNK_STEPS`. Sender and receiver of the same steps so arrive at the same root.
    """

    __slots__ = ("_chain", "_open")

    def __init__(self) -> None:
        self._chain = EMPTY_ROOT
        self._open = Frontier()

    def append(self, data: bytes | bytearray | memoryview, *, tokens: int) -> None:
        """Add the wire bytes of one step that carries ``tokens`` positions."""
        if tokens > 1:
            self._chain = self._closed()
            self._open = Frontier()
        self._open.append(leaf_hash(data))
        if tokens > 1 or self._open.count == CHUNK_STEPS:
            self._chain = self._closed()
            self._open = Frontier()

    def value(self) -> bytes:
        """The root over everything so far, an open chunk included."""
        return self._closed()

    def _closed(self) -> bytes:
        if not self._open.count:
            return self._chain
        return hashlib.sha256(_CHAIN + self._chain + self._open.root()).digest()


def _split(count: int) -> int:
    """The largest power of two below ``count`` (which is at least two)."""
    return 1 << ((count - 1).bit_length() - 1)

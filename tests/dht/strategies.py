"""Hypothesis strategies for the DHT's values."""

from __future__ import annotations

from hypothesis import strategies as st

from dht.contacts import Contact, Endpoint
from dht.keys import NodeId, Target
from dht.krpc import ErrorPacket, Packet, QueryPacket, ReplyPacket
from dht.queries import AnnouncePeer, Family, FindNode, Get, GetPeers, Ping, Put, SampleInfohashes, UnknownQuery
from dht.replies import Reply, Samples

NODE_IDS = st.binary(min_size=20, max_size=20).map(NodeId)
TARGETS = st.binary(min_size=20, max_size=20).map(Target)
PORTS = st.integers(1, 65535)
V4_ENDPOINTS = st.builds(Endpoint, st.ip_addresses(v=4).map(str), PORTS)
V6_ENDPOINTS = st.builds(Endpoint, st.ip_addresses(v=6).map(lambda address: address.compressed), PORTS)
ENDPOINTS = st.one_of(V4_ENDPOINTS, V6_ENDPOINTS)
V4_CONTACTS = st.builds(Contact, NODE_IDS, V4_ENDPOINTS)
V6_CONTACTS = st.builds(Contact, NODE_IDS, V6_ENDPOINTS)

SEQS = st.integers(0, 2**63 - 1)
VALUES = st.recursive(
    st.one_of(st.integers(-(2**63), 2**63), st.binary(max_size=40)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.binary(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
TOKENS = st.binary(max_size=16)
KEYS = st.binary(min_size=32, max_size=32)
SIGNATURES = st.binary(min_size=64, max_size=64)

WANTS = st.lists(st.sampled_from(Family), unique=True).map(lambda want: tuple(f for f in Family if f in want))
FILTERS = st.binary(min_size=256, max_size=256)
SAMPLES = st.builds(
    Samples,
    info_hashes=st.lists(TARGETS, max_size=5).map(tuple),
    total=st.integers(0, 10**6),
    interval=st.integers(0, 21600),
)

QUERIES = st.one_of(
    st.just(Ping()),
    st.builds(FindNode, target=TARGETS, want=WANTS),
    st.builds(GetPeers, info_hash=TARGETS, want=WANTS, scrape=st.booleans()),
    st.builds(
        AnnouncePeer,
        info_hash=TARGETS,
        port=PORTS,
        token=TOKENS,
        implied_port=st.booleans(),
        seed=st.booleans(),
    ),
    st.builds(Get, target=TARGETS, seq=st.none() | SEQS, want=WANTS),
    st.builds(SampleInfohashes, target=TARGETS, want=WANTS),
    st.builds(Put, token=TOKENS, value=VALUES),
    st.builds(
        Put,
        token=TOKENS,
        value=VALUES,
        public_key=KEYS,
        salt=st.binary(max_size=64),
        seq=SEQS,
        signature=SIGNATURES,
        cas=st.none() | SEQS,
    ),
    st.builds(UnknownQuery, method=st.just(b"vote"), target=st.none() | TARGETS),
)
REPLIES = st.builds(
    Reply,
    nodes=st.lists(V4_CONTACTS, max_size=8).map(tuple),
    nodes6=st.lists(V6_CONTACTS, max_size=8).map(tuple),
    token=st.none() | TOKENS,
    peers=st.lists(ENDPOINTS, max_size=8).map(tuple),
    value=st.none() | VALUES,
    public_key=st.none() | KEYS,
    seq=st.none() | SEQS,
    signature=st.none() | SIGNATURES,
    seeds=st.none() | FILTERS,
    downloaders=st.none() | FILTERS,
    samples=st.none() | SAMPLES,
)
TRANSACTIONS = st.binary(min_size=1, max_size=32)
PACKETS: st.SearchStrategy[Packet] = st.one_of(
    st.builds(QueryPacket, transaction=TRANSACTIONS, sender=NODE_IDS, query=QUERIES, read_only=st.booleans()),
    st.builds(ReplyPacket, transaction=TRANSACTIONS, sender=NODE_IDS, reply=REPLIES, external=st.none() | ENDPOINTS),
    st.builds(
        ErrorPacket, transaction=TRANSACTIONS, error_code=st.integers(0, 400), message=st.text("abc é", max_size=40)
    ),
)

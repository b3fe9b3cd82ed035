"""The DHT: a mainline Kademlia node (BEP 5, 42, 43, 44), and on top of it the directory of models.

config      settings of a node
node        the trio driver: `open_node`                                   (I/O)
directory   typed: which manifest a name means, and who serves it          (I/O, through a node)
names       PUBLISHER/NAME
adverts     a worker's heartbeats                                          (I/O, through a node)
heartbeat   what they write, and into which shards
roster      who serves which layers: signed entries, filters, shards       cards      a worker's own description
roster_queries, roster_store, roster_search    how entries travel, are kept for others, and are found
engine      the node without socket or clock: datagrams and times in, datagrams and events out
operations  pings, searches and stores that the engine drives              outcomes   how they end
lookup      whom to ask next, and when enough has been heard
calls       queries in flight: timeouts and retransmission
server      what a node answers                                            tokens     who may store
routing     buckets, replacements, quality                                 store      what is kept for others
publications  what this node publishes, and when again                     votes      how others see us
krpc        packets                                                        items      BEP 44's items
keys        ids, targets, distance                                         contacts   endpoints and nodes
statistics  figures for operators                                          errors     what is added to the tree
"""

from __future__ import annotations

from dht.cards import Card, Reachability, SpanOffer
from dht.config import DhtConfig, EngineConfig
from dht.contacts import Contact, Endpoint
from dht.directory import Directory
from dht.engine import Engine, Finished
from dht.errors import ConflictError
from dht.heartbeat import Advert
from dht.items import ImmutableItem, MutableItem
from dht.keys import NodeId, Target
from dht.names import check_name, format_model_reference, parse_model_reference
from dht.node import Node, open_node
from dht.roster import Entry, Filter
from dht.statistics import Statistics

__all__ = [
    # a node
    "DhtConfig", "Node", "open_node", "Statistics",
    # the directory
    "Directory", "check_name", "format_model_reference", "parse_model_reference",
    # capacity
    "Advert", "Card", "Entry", "Filter", "Reachability", "SpanOffer",
    # values
    "Contact", "Endpoint", "ImmutableItem", "MutableItem", "NodeId", "Target",
    # the core
    "Engine", "EngineConfig", "Finished",
    # errors
    "ConflictError",
]  # fmt: skip

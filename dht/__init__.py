"""The DHT: a mainline Kademlia node (BEP 5, 42, 43, 44), and on top of it the directory of models.

config      settings of a node
node        the trio driver: `open_node`                                   (I/O)
directory   typed: which manifest a name means, and who serves it          (I/O, through a node)
names       PUBLISHER/NAME
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

from dht.config import DhtConfig, EngineConfig
from dht.contacts import Contact, Endpoint
from dht.directory import Directory
from dht.engine import Engine, Finished
from dht.errors import ConflictError
from dht.items import ImmutableItem, MutableItem
from dht.keys import NodeId, Target
from dht.names import check_name, format_model_reference, parse_model_reference
from dht.node import Node, open_node
from dht.statistics import Statistics

__all__ = [
    # a node
    "DhtConfig", "Node", "open_node", "Statistics",
    # the directory
    "Directory", "check_name", "format_model_reference", "parse_model_reference",
    # values
    "Contact", "Endpoint", "ImmutableItem", "MutableItem", "NodeId", "Target",
    # the core
    "Engine", "EngineConfig", "Finished",
    # errors
    "ConflictError",
]  # fmt: skip

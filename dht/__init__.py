"""The DHT: a mainline Kademlia node (BEP 5, 32, 33, 42, 43, 44, 46, 51), and on top of it the directory of models.

config      settings of a node
node        its public face: `open_node`                                   (I/O)
driver, opening    the trio driver around an engine, and its socket        (I/O)
state       what is remembered over a restart                              (I/O)
crawl       a walk over the whole network                                  (I/O, through a node)
mutable_torrents   torrents that a key names                               (I/O, through a node)
directory   typed: which manifest a name means, and who serves it          (I/O, through a node)
names       PUBLISHER/NAME
adverts     a worker's heartbeats                                          (I/O, through a node)
heartbeat   what they write, and into which shards
roster      who serves which layers: signed entries, filters, shards       cards      a worker's own description
roster_queries, roster_store, roster_search    how entries travel, are kept for others, and are found

engine      the node without socket or clock: datagrams and times in, datagrams and events out
running     operations in progress                                         clock      one that never goes back
operations  what the engine drives                                         outcomes   how they end
search      lookups that collect something                                 starts     where they begin
storing     a search, and then stores                                      region     everybody near a key
lookup      whom to ask next, and when enough has been heard               paths      several of them at once
calls       queries in flight: timeouts and retransmission                 outgoing   datagrams on their way out
server      what a node answers                                            tokens     who may store
allowance   how many bytes go to whom                                      prefixes   whose addresses are one's own
routing     buckets, replacements, quality                                 store      what is kept for others
samples     the info-hashes it shows                                       bloom      how many, without naming them
publications, publisher    what this node publishes, and when again        votes      how others see us
krpc        packets                                                        fields     reading them
queries     what is asked                                                  replies    what is answered
items       BEP 44's items                                                 keys       ids, targets, distance
contacts    endpoints and nodes                                            statistics figures for operators
errors      what is added to the tree
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
from dht.mutable_torrents import TorrentLink, get_torrent, put_torrent
from dht.names import check_name, format_model_reference, parse_model_reference
from dht.node import Node, open_node
from dht.outcomes import SampledInfohashes, SwarmSize
from dht.roster import Entry, Filter
from dht.statistics import Statistics

__all__ = [
    # a node
    "DhtConfig", "Node", "open_node", "SampledInfohashes", "Statistics", "SwarmSize",
    # mutable torrents
    "TorrentLink", "get_torrent", "put_torrent",
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

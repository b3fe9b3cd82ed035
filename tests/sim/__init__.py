"""A deterministic network in one process: virtual time, seeded chance, any object with an engine's interface as a node.

world       the clock, the nodes, and whatever is on its way
links       what becomes of a datagram: delay, loss, duplicates, reordering, partitions
addresses   where nodes live: hosts in /24 blocks
churn       nodes that come and go
attackers   nodes that are silent, slow or babble, for any protocol
kademlia    DHT engines on such a network (the one module here that knows `dht`)
"""

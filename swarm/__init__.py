"""The kernel: identity, wire, torrents, manifest, receipts, ledger, settlement, and the command line.

    values and formats    ids errors codec identity merkle receipts records manifest
    the wire              frames messages protocol (pure) · tls peer (drivers)
    weights               safetensors_header model_folder metadata (pure) · torrents (driver)
    money                 ledger settlement (interface) · settlement_evm embedded_chain contracts/
    roles as commands     cli/ · demo/

Imports nothing of dht, worker or client, except in cli/, which composes them.
"""

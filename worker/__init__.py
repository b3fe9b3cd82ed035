"""The worker: loads a span of a model, serves stages of it, and collects vouchers."""

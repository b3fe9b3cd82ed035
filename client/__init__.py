"""The client: finds workers, builds a chain, streams tokens, pays.

    from client import Swarm
    with Swarm() as swarm:
        print(swarm.generate("PUBLISHER/NAME", "def fib(n):").text)

library           `Swarm`, `AsyncSwarm`: the public face
bridge            a trio loop in a thread, for callers on asyncio or on none      (threads)
streams           texts being generated, each a task                              (I/O)
generate          a prompt becomes a call, tokens become text                     (I/O)
options           what can be asked for                                           testing   a swarm for tests
tokenizer         text to ids                                                     detokenizer   ids to text
stops             stop strings
template          chat templates, rendered in                                     template_process
node              names, workers and calls                                        (I/O)
call              one session across a chain                                      (I/O)
route             which chain                                                     budget, bill   what it costs
wallet            channels and vouchers                                           (I/O)
publish, seeder   a folder becomes a model in the swarm                           (I/O)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.generate import Chat, Reply, TextDelta, TokenLogprob, Usage
    from client.library import AsyncStream, AsyncSwarm, Stream, Swarm
    from client.options import GenerateOptions

__all__ = [
    # the swarm
    "AsyncSwarm", "Swarm",
    # what comes back
    "AsyncStream", "Reply", "Stream", "TextDelta", "TokenLogprob", "Usage",
    # what is asked
    "Chat", "GenerateOptions",
]  # fmt: skip

_HOMES = {
    "generate": ("Chat", "Reply", "TextDelta", "TokenLogprob", "Usage"),
    "library": ("AsyncStream", "AsyncSwarm", "Stream", "Swarm"),
    "options": ("GenerateOptions",),
}


def __getattr__(name: str) -> Any:
    """Re-exports are loaded at first use: publishing and paying do without the text half, and the other way round."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"client.{module}"), name)
    raise AttributeError(f"module 'client' has no attribute {name!r}")

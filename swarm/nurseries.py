"""A nursery whose single error comes out as itself, for resources whose nursery is nobody else's business.

`trio.open_nursery` wraps every error in an ExceptionGroup, because several tasks may fail at once. A resource that
keeps one task beside its caller's block (`async with open_peer(...)`) would so hide the caller's own errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """`trio.open_nursery`, but an error that is alone is raised alone; several stay a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error = single_error(group)
        if error is group:
            raise
        context = error.__context__
        try:
            raise error  # never `from`: it has causes of its own
        finally:
            error.__context__ = context
            del error


def single_error(group: BaseException) -> BaseException:
    """The one real error in a group, the group itself when there are several, a cancellation when there is none."""
    leaves = list(_leaves(group))
    errors = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
    if len(errors) > 1:
        return group
    return (errors or leaves)[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error

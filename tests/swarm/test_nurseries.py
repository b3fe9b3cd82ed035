from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from swarm.errors import ClosedError
from swarm.nurseries import open_nursery, single_error


async def fail(error: BaseException) -> None:
    raise error


@asynccontextmanager
async def resource() -> AsyncIterator[trio.Nursery]:
    """Keeps a task beside the block, as connections do."""
    async with open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()


async def test_the_bodys_error_comes_out_as_itself() -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with resource():
            raise error
    assert caught.value is error


async def test_an_errors_cause_and_context_survive() -> None:
    cause, context = OSError("cause"), LookupError("context")

    def chained() -> None:
        try:
            raise context
        except LookupError:
            raise ClosedError("closed") from cause

    with pytest.raises(ClosedError) as caught:
        async with resource():
            chained()
    assert caught.value.__cause__ is cause
    assert caught.value.__context__ is context


async def test_a_tasks_error_cancels_the_body_and_comes_out_as_itself() -> None:
    async def beside() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(fail, KeyError("task"))
            await trio.sleep_forever()

    with pytest.raises(KeyError, match="task"):
        await beside()


async def test_two_errors_stay_a_group() -> None:
    async def both() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(fail, KeyError("task"))
            raise ValueError("body")

    with pytest.raises(BaseExceptionGroup) as caught:
        await both()
    assert {type(error) for error in caught.value.exceptions} == {KeyError, ValueError}


async def test_nested_resources_do_not_wrap() -> None:
    with pytest.raises(KeyError, match="inner"):
        async with resource(), resource(), resource():
            raise KeyError("inner")


async def test_a_cancellation_from_outside_stays_one() -> None:
    with trio.CancelScope() as scope:
        async with resource():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_deadline_of_the_body_stays_one() -> None:
    async def slow() -> None:
        async with resource():
            with trio.fail_after(0):
                await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        await slow()


async def test_a_return_out_of_the_block_is_no_error() -> None:
    async def inner() -> int:
        async with resource():
            return 7

    assert await inner() == 7


async def test_the_error_of_a_cancelled_group_is_the_real_one() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled) as caught:
            await trio.lowlevel.checkpoint()
    cancelled, real, other = caught.value, KeyError("real"), ValueError("other")
    assert single_error(real) is real
    assert single_error(BaseExceptionGroup("", [cancelled, real])) is real
    assert single_error(BaseExceptionGroup("", [BaseExceptionGroup("", [real]), cancelled])) is real
    assert single_error(BaseExceptionGroup("", [cancelled, cancelled])) is cancelled
    group = BaseExceptionGroup("", [cancelled, real, other])
    assert single_error(group) is group

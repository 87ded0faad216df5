"""What goes wrong is told, and mends itself where it can; nothing is leaked."""

from __future__ import annotations

import asyncio

import pytest

from ...errors import LeaseLost, ProviderUnavailable, PublishRejected
from ...provider import Batch
from ...runtime import message_of
from ..transport import SECONDS, Transport, consuming, hold, lanes, opened, publish
from .material import events, promising


class Failing:
    """Of :class:`ProviderConformance`."""

    async def test_an_event_that_is_too_large_is_rejected(self, transport: Transport) -> None:
        """By its id; without it the rest of the batch goes through."""
        async with promising(transport, "max_message_bytes") as provider, consuming(provider) as stream:
            small, large = events(2)
            large = large.replace(payload="x" * (provider.features.max_message_bytes or 0))
            with pytest.raises(PublishRejected) as error:
                await provider.publish(Batch([message_of(small), message_of(large)]))
            assert error.value.event_id == str(large.id)
            await publish(provider, small)
            await stream.take(1)
            assert set(stream.ids) == {str(small.id)}

    async def test_publishing_again_adds_nothing(self, transport: Transport) -> None:
        """The same batch with the same position is there once; an older epoch is refused; the next batch goes on."""
        async with promising(transport, "idempotent_publish") as provider, consuming(provider) as stream:
            one, two = events(10), events(10, 10)
            batch = Batch([message_of(event) for event in one], "relay:x", 0, 2, '{"high":10,"gaps":[]}')
            for _ in range(3):
                await provider.publish(batch)
            later = Batch([message_of(event) for event in two], "relay:x", 0, 3, '{"high":20,"gaps":[]}')
            await provider.publish(later)
            with pytest.raises(LeaseLost):
                await provider.publish(Batch(batch.messages, "relay:x", 0, 2, '{"high":30,"gaps":[]}'))
            await publish(provider, *(last := events(5, 20)))  # one of each row: behind whatever was stored twice
            await stream.until(lambda: {str(event.id) for event in last} <= set(stream.ids))
            assert sorted(event.payload for event in stream.events) == list(range(25))

    async def test_a_server_that_crashes_and_comes_back_loses_nothing(self, transport: Transport) -> None:
        """Mid-stream: publishing says ProviderUnavailable meanwhile, consumers go on by themselves, in order."""
        if transport.stop is None or transport.start is None:
            pytest.skip("this transport has no server that can be stopped")
        sent = events(120, rows=4)
        async with promising(transport, "durable") as provider, consuming(provider, prefetch=10) as stream:
            await publish(provider, *sent[:60])
            await stream.take(20)
            transport.stop()
            with pytest.raises(ProviderUnavailable):
                async with asyncio.timeout(SECONDS):
                    await provider.publish(Batch([message_of(sent[60])]))
            transport.start()
            await publish(provider, *sent[60:])
            everything = {str(event.id) for event in sent}
            await stream.until(lambda: everything <= set(stream.ids))
            assert lanes(stream.events) == lanes(sent)

    async def test_a_server_that_does_not_answer_is_unavailable(self, transport: Transport) -> None:
        """At open, or at the first call where open does not connect; once it answers, all is well."""
        if transport.stop is None or transport.start is None:
            pytest.skip("this transport has no server that can be stopped")
        transport.stop()
        async with transport.make() as provider:
            with pytest.raises(ProviderUnavailable):
                async with asyncio.timeout(SECONDS):
                    await provider.open()
                    await provider.publish(Batch([message_of(events(1)[0])]))
            await provider.close()
        transport.start()
        async with opened(transport) as provider, consuming(provider) as stream:
            await publish(provider, *events(1, 1))
            await stream.take(1)

    async def test_a_cancelled_consumer_leaks_nothing(self, transport: Transport) -> None:
        """However often, whether it waits or has events in hand: no task is left, and the next one gets everything."""
        async with opened(transport) as provider:
            await publish(provider, *(sent := events(10)))
            async with consuming(provider, hold) as stream:
                await stream.take(10)
            before = asyncio.all_tasks()
            for number in range(5):
                async with consuming(provider, hold, consumer=f"c{number}") as stream:
                    if number % 2:
                        await stream.take(10)
            assert {task.get_name() for task in asyncio.all_tasks() - before} == set()
            async with consuming(provider) as stream:
                await stream.take(10)
                assert lanes(stream.events) == lanes(sent)

    async def test_closing_is_clean(self, transport: Transport) -> None:
        """Twice, and before opening: nothing is left running."""
        before = asyncio.all_tasks()
        async with transport.make() as provider:
            await provider.close()
            await provider.open()
            async with consuming(provider) as stream:
                await publish(provider, *events(1))
                await stream.take(1)
            await provider.close()
            await provider.close()
            await asyncio.sleep(0)
            assert {task.get_name() for task in asyncio.all_tasks() - before} == set()

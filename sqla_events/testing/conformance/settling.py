"""What is settled is done, and what is not comes again, whoever dies."""

from __future__ import annotations

import asyncio
import time

from ..transport import Transport, consuming, hold, lanes, opened, publish, victim
from .material import events, failure, promising


class Settling:
    """Of :class:`ProviderConformance`."""

    async def test_what_was_not_settled_comes_again(self, transport: Transport) -> None:
        """After the consumer closed; the same ids, in order; what was acknowledged, in whatever order, does not."""
        sent = events(60)
        async with opened(transport) as provider:
            async with consuming(provider, hold) as stream:
                await publish(provider, *sent)
                taken = await stream.take(60)
                for delivery in reversed(taken):
                    if delivery.event().payload % 3:
                        delivery.ack()
            async with consuming(provider) as stream:
                await publish(provider, *(late := events(1, 60)))
                left = [*(event for event in sent if event.payload % 3 == 0), *late]
                await stream.take(len(left))
                assert sorted(stream.ids) == sorted(str(event.id) for event in left)
                assert lanes(stream.events) == lanes(left)

    async def test_settled_deliveries_are_durable_when_the_provider_is_closed(self, transport: Transport) -> None:
        """Another process gets the rest and nothing else."""
        sent = events(20)
        async with promising(transport, "durable") as provider, consuming(provider, hold) as stream:
            await publish(provider, *sent)
            for delivery in (await stream.take(20))[:13]:
                delivery.ack()
            left = stream.ids[13:]
        async with opened(transport) as provider, consuming(provider, consumer="two") as stream:
            await publish(provider, *(late := events(1, 20)))
            await stream.take(8)
            assert sorted(stream.ids) == sorted([*left, str(late[0].id)])

    async def test_no_more_than_the_prefetch_is_in_hand(self, transport: Transport) -> None:
        """The provider waits for acknowledgements; then it goes on."""
        async with opened(transport) as provider, consuming(provider, hold, prefetch=10) as stream:
            await publish(provider, *events(40, rows=40))
            settled = 0
            while settled < 40:
                await stream.take(settled + 1)
                await asyncio.sleep(0.02)
                assert len(stream.deliveries) - settled <= 10
                stream.deliveries[settled].ack()
                settled += 1
            assert len(set(stream.ids)) == 40

    async def test_a_consumer_that_was_killed_loses_nothing(self, transport: Transport) -> None:
        """kill -9: what it had not acknowledged goes to another one of its group, in order, with the same ids."""
        sent = events(60, rows=6)
        async with promising(transport, "durable", "cross_process") as provider:
            await publish(provider, *sent)
            with victim(transport, "group", count=40, acked=10) as other:
                had = await other.ids()
                assert len(had) == 40
                async with consuming(provider, consumer="heir") as stream:
                    other.kill()
                    must_come = {str(event.id) for event in sent} - set(had[:10])
                    await stream.until(lambda: must_come <= set(stream.ids))
                    payloads = lanes(stream.events).values()
                    assert all(numbers == sorted(numbers) for numbers in payloads)

    async def test_slow_work_and_retries_are_left_alone(self, transport: Transport) -> None:
        """What a living consumer works on, or waits to try again, for much longer than the redelivery timeout goes to nobody else."""
        async with promising(transport, "shared_groups") as first, opened(transport) as second:
            async with consuming(first, hold, consumer="slow") as slow:
                await publish(first, *events(2, rows=2))
                working, waiting = await slow.take(2)
                waiting.retry(failure(attempts=1), 2 * transport.redelivery)
                async with consuming(second, consumer="eager") as eager:
                    await asyncio.sleep(2 * transport.redelivery)
                    assert eager.deliveries == []
                    assert len(slow.deliveries) == 2
                    working.ack()
                    waiting.ack()

    async def test_attempts_survive_a_restart(self, transport: Transport) -> None:
        """How often each subscription has failed, and when its next attempt is due, come with the event to another process."""
        before = time.time()
        async with promising(transport, "retry_survives_restart") as provider, consuming(provider, hold) as stream:
            await publish(provider, *events(1))
            (delivery,) = await stream.take(1)
            delivery.retry(failure("app.mail", attempts=1), 0.01)
            delivery.retry(failure("app.mail", attempts=2), 3600)
            delivery.retry(failure("app.log", attempts=1), 7200)
        async with opened(transport) as provider, consuming(provider, hold, consumer="two") as stream:
            (delivery,) = await stream.take(1)
            assert delivery.attempts == {"app.mail": 2, "app.log": 1}
            assert 3600 <= delivery.due["app.mail"] - before < 7200 <= delivery.due["app.log"] - before < 10_000
            delivery.ack()

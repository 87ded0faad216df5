"""NATS: each event once and in order, whatever is lost, killed or full; streams as they are set."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from sqla_events.errors import ConfigError, LeaseLost, ProviderUnavailable, PublishRejected
from sqla_events.event import Event
from sqla_events.provider import Batch
from sqla_events.providers.nats import NatsProvider, publisher
from sqla_events.providers.nats.connection import Connection, Out
from sqla_events.runtime import message_of
from tests.providers.nats_support import STREAM, batch, ids, messages, opened, provider, stored, stored_ids
from tests.servers.nats import NatsServer

SHORT: dict[str, Any] = {"duplicate_window": 0.1}
"""After which ids protect from nothing: the server's least."""


async def test_subjects_are_event_types(nats: NatsServer) -> None:
    """As anybody sees them who listens, and quoted names as they are."""
    async with opened(nats) as one:
        client = await one._connection.ready()
        heard = await client.subscribe("events.public.*.create")
        sent = [Event(type=kind) for kind in ("public.users.create", "public.order%2Elines.create", "public.ключ.create")]
        await one.publish(Batch([message_of(event) for event in sent]))
        assert [(await heard.next_msg()).subject for _ in sent] == [f"events.{event.type}" for event in sent]


async def test_a_type_that_is_none_is_rejected(nats: NatsServer) -> None:
    """It could be read as a part of the protocol."""
    good, bad = messages(2)
    bad = type(bad)(bad.id, "public.x\r\nPUB a 0", bad.lane, bad.body, bad.seq)
    async with opened(nats) as one:
        with pytest.raises(PublishRejected) as error:
            await one.publish(batch([good, bad]))
        assert error.value.event_id == bad.id
        await one.publish(batch([good]))
        assert await stored_ids(one) == [good.id]


async def test_many_windows_arrive_in_order(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of more messages than are sent before an acknowledgement."""
    monkeypatch.setattr(publisher, "WINDOW", 7)
    sent = messages(100)
    async with opened(nats) as one:
        await one.publish(batch(sent[:50]))
        await one.publish(batch(sent[50:]))
        assert await stored_ids(one) == ids(sent)


# Lost on the way ----------------------------------------------------------------------------------------------------


class Lossy:
    """Drops some of the messages that are written, as a server does that loses its leadership."""

    def __init__(self, one: NatsProvider, monkeypatch: pytest.MonkeyPatch, *lost: str) -> None:
        self._write = one._connection.write
        self._lost = set(lost)
        self.dropped: list[str] = []
        monkeypatch.setattr(one._connection, "write", self.write)

    async def write(self, outs: Sequence[Out]) -> None:
        left = []
        for out in outs:
            name = out.headers.get("Nats-Msg-Id", "")
            if name in self._lost:
                self._lost.remove(name)
                self.dropped.append(name)
            else:
                left.append(out)
        await self._write(left)


@pytest.mark.parametrize("epoch", [0, 1])
async def test_a_message_that_is_lost_lets_none_behind_it_pass(nats: NatsServer, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Its row's next event would be before it otherwise. With and without a relay."""
    sent = messages(20, rows=2)
    async with opened(nats, **SHORT) as one:
        lossy = Lossy(one, monkeypatch, sent[5].id, sent[6].id, sent[12].id)
        await one.publish(batch(sent, epoch=epoch))
        assert lossy.dropped == [sent[5].id, sent[6].id, sent[12].id]
        assert await stored_ids(one) == ids(sent)


@pytest.mark.parametrize("times", [1, 3])
async def test_an_acknowledgement_that_is_lost_repeats_nothing(nats: NatsServer, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Also long after the duplicate window."""
    sent = messages(30)
    async with opened(nats, **SHORT) as one:
        await one.publish(batch(sent[:10]))
        ask, left = one._connection.ask, times

        async def deaf(subject: str, *args: Any) -> Any:
            nonlocal left
            answer = await ask(subject, *args)
            if subject.startswith("events.") and left:
                left -= 1
                raise ProviderUnavailable("the answer was lost")
            return answer

        monkeypatch.setattr(one._connection, "ask", deaf)
        for _ in range(times):
            with pytest.raises(ProviderUnavailable):
                await one.publish(batch(sent[10:] if times == 1 else [*sent[10:20], *messages(1, 90 + left)]))
            await asyncio.sleep(0.3)  # the server forgets the ids
        await one.publish(batch(sent[10:]))
        found = await stored_ids(one)
        assert len(found) == len(set(found))
        assert [one for one in found if one in ids(sent)] == ids(sent)


async def test_the_same_batch_again_is_nothing(nats: NatsServer) -> None:
    """The relay did not learn that it was published."""
    sent = messages(10)
    async with opened(nats, **SHORT) as one:
        for _ in range(3):
            await one.publish(batch(sent))
            await asyncio.sleep(0.2)
        assert await stored_ids(one) == ids(sent)


async def test_another_batch_at_the_same_position_is_published(nats: NatsServer) -> None:
    """What a relay had given up on and is redriven does not change the position."""
    sent, redriven = messages(10), messages(1, 5)
    async with opened(nats, **SHORT) as one:
        await one.publish(batch(sent))
        await one.publish(batch(redriven, high=10))
        assert await stored_ids(one) == [*ids(sent), *ids(redriven)]


# Relays that follow each other --------------------------------------------------------------------------------------


async def test_a_relay_that_follows_publishes_nothing_twice(nats: NatsServer) -> None:
    """Its predecessor was killed before it committed: some of the batch, all of it, or several batches are there already."""
    sent = messages(60)
    async with opened(nats, **SHORT) as first:
        for start in range(0, 40, 10):
            await first.publish(batch(sent[start : start + 10]))
    await asyncio.sleep(0.3)
    async with opened(nats, **SHORT) as second:  # it was committed up to 20
        await second.publish(batch(sent[20:45], epoch=2))
        await second.publish(batch(sent[45:50], epoch=2))
    await asyncio.sleep(0.3)
    async with opened(nats, **SHORT) as third:  # nothing was committed by the second
        for start in range(20, 60, 4):
            await third.publish(batch(sent[start : start + 4], epoch=3))
        assert await stored_ids(third) == ids(sent)


async def test_events_that_were_committed_late_are_published(nats: NatsServer) -> None:
    """A lower number that comes after higher ones: a gap, and not something that is there already."""
    sent = messages(30)
    late = sent.pop(4)
    async with opened(nats, **SHORT) as first:
        await first.publish(Batch(sent, "relay:nats", 0, 1, '{"high":30,"gaps":[[5,5]]}'))
    async with opened(nats, **SHORT) as second:
        await second.publish(Batch([late], "relay:nats", 0, 2, '{"high":30,"gaps":[]}'))
        assert await stored_ids(second) == [*ids(sent), late.id]


async def test_a_zombie_appends_nothing(nats: NatsServer) -> None:
    """It was paused between two batches, for longer than a lease lasts; its successor has published since."""
    sent = messages(30)
    async with opened(nats, **SHORT) as zombie, opened(nats, **SHORT) as heir:
        await zombie.publish(batch(sent[:10]))
        await heir.publish(batch(sent[:15], epoch=2))
        await asyncio.sleep(2 * publisher.MARK_SECONDS)
        with pytest.raises(LeaseLost, match="epoch 2"):
            await zombie.publish(batch(sent[10:20]))
        await heir.publish(batch(sent[15:], epoch=2))
        assert await stored_ids(heir) == ids(sent)


async def test_what_a_zombie_appends_before_its_heir_does_is_not_repeated(nats: NatsServer) -> None:
    """The heir has the lease and has claimed its epoch, and learns by its broken chain what is there."""
    sent = messages(40)
    async with opened(nats, **SHORT) as zombie, opened(nats, **SHORT) as heir:
        await zombie.publish(batch(sent[:10]))
        await heir.publish(batch(sent[:1], high=1, epoch=2))  # is there: nothing is appended, the zombie's chain holds
        await zombie.publish(batch(sent[10:20]))
        await asyncio.sleep(0.3)
        await heir.publish(batch(sent[1:5], epoch=2))
        await heir.publish(batch(sent[5:30], epoch=2))
        with pytest.raises(LeaseLost):
            await zombie.publish(batch(sent[20:30]))
        await heir.publish(batch(sent[30:], epoch=2))
        assert await stored_ids(heir) == ids(sent)


async def test_services_share_a_stream(nats: NatsServer) -> None:
    """Two logs with the same numbers and epochs, and publishers without a log, all at once."""
    logs = {"a": messages(300), "b": messages(300)}
    alone = messages(40, 1000)

    async def relay(one: NatsProvider, log: str) -> None:
        one._publisher._log = log
        for start in range(0, 300, 20):
            await one.publish(batch(logs[log][start : start + 20], epoch=1))

    async def publish(one: NatsProvider) -> None:
        for message in alone:
            await one.publish(Batch([message]))

    async with opened(nats, **SHORT) as a, opened(nats, **SHORT) as b, opened(nats, **SHORT) as c:
        await asyncio.gather(relay(a, "a"), relay(b, "b"), publish(c))
        found = await stored_ids(a)
        assert len(found) == 640
        for sent in (logs["a"], logs["b"], alone):
            assert [one for one in found if one in set(ids(sent))] == ids(sent)


async def test_many_gaps_make_no_mark_and_no_duplicates(nats: NatsServer) -> None:
    """A position that is too long to keep: reading begins further back."""
    sent = messages(3000)
    gaps = ",".join(f"[{number},{number}]" for number in range(10_000, 14_000, 2))
    async with opened(nats, **SHORT) as first:
        await first.publish(Batch(sent[:2000], "relay:nats", 0, 1, f'{{"high":14000,"gaps":[[2001,3000],{gaps}]}}'))
    async with opened(nats, **SHORT) as second:
        await second.publish(batch(sent, epoch=2))
        assert await stored_ids(second) == ids(sent)


async def test_a_stream_that_was_made_anew_is_filled(nats: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """It lost what it had acknowledged: that is told, and what comes is published."""
    sent = messages(20)
    async with opened(nats) as one:
        await one.publish(batch(sent[:10]))
        await one._jetstream.call(f"STREAM.DELETE.{STREAM}")
        await one.open()
        await one.publish(batch(sent[10:]))
        assert await stored_ids(one) == ids(sent[10:])
        assert "lost some that it had acknowledged" in caplog.text


async def test_a_stream_that_is_gone_is_unavailable(nats: NatsServer) -> None:
    """Until somebody makes it again; nothing else comes out of any call."""
    async with opened(nats) as one:
        await one.publish(batch(messages(2)))
        for name in (STREAM, f"{STREAM}_DEAD"):
            await one._jetstream.call(f"STREAM.DELETE.{name}")
        with pytest.raises(ProviderUnavailable):
            await one.publish(batch(messages(2, 3)))
        with pytest.raises(ProviderUnavailable):
            await one.publish(Batch(messages(2)))
        with pytest.raises(ProviderUnavailable, match="stream not found"):
            await anext(one.history())
        with pytest.raises(ProviderUnavailable, match="stream not found"):
            await one.dead_letters.list()


# Streams that refuse ------------------------------------------------------------------------------------------------


async def test_a_full_stream_is_unavailable_until_there_is_room(nats: NatsServer) -> None:
    """It refuses what comes, and keeps what nobody has read; then everything is there once and in order."""
    sent = messages(40)
    async with opened(nats, max_bytes=6000, **SHORT) as one:
        with pytest.raises(ProviderUnavailable, match="maximum bytes exceeded"):
            await one.publish(batch(sent))
        first = await stored_ids(one)
        assert first == ids(sent)[: len(first)]
        assert first
        await one._jetstream.call(f"STREAM.PURGE.{STREAM}")
        found = [*first]
        while len(found) < len(sent):
            with contextlib.suppress(ProviderUnavailable):
                await one.publish(batch(sent))
            found += await stored_ids_from(one, len(found) + 1)
            await one._jetstream.call(f"STREAM.PURGE.{STREAM}")
        assert found == ids(sent)


async def stored_ids_from(one: NatsProvider, first: int) -> list[str]:
    last = (await one._jetstream.info(STREAM))["state"]["last_seq"]
    return [kept.headers["Nats-Msg-Id"] async for kept in one._jetstream.each(STREAM, first, last)]


async def test_an_event_that_is_too_large_for_the_stream_is_rejected_by_name(nats: NatsServer) -> None:
    """A limit that only the stream knows; the others of its batch go through."""
    sent = messages(10)
    large = message_of(Event(type="public.things.update", payload="x" * 5000, key="1", seq=11))
    async with opened(nats, **SHORT) as one:
        config = (await one._jetstream.info(STREAM))["config"]
        await one._jetstream.call(f"STREAM.UPDATE.{STREAM}", {**config, "max_msg_size": 4000})
        with pytest.raises(PublishRejected) as error:
            await one.publish(batch([*sent[:5], large, *sent[5:]], high=11))
        assert error.value.event_id == large.id
        await one.publish(batch(sent, high=11))
        assert await stored_ids(one) == ids(sent)


# Streams as they are set --------------------------------------------------------------------------------------------


async def test_the_stream_is_what_the_settings_say(nats: NatsServer) -> None:
    """And those beside it."""
    settings = {"storage": "memory", "max_age": "1h", "max_bytes": 1_000_000, "duplicate_window": 60, "subject_prefix": "shop.events"}
    async with opened(nats, stream_name="SHOP", **settings) as one:
        config = (await one._jetstream.info("SHOP"))["config"]
        assert config["subjects"] == ["shop.events.>"]
        assert (config["storage"], config["max_age"], config["max_bytes"]) == ("memory", 3_600_000_000_000, 1_000_000)
        assert (config["duplicate_window"], config["num_replicas"], config["discard"]) == (60_000_000_000, 1, "new")
        for name in ("KV_SHOP", "SHOP_DEAD"):
            assert (await one._jetstream.info(name))["config"]["storage"] == "memory"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"storage": "memory"}, "storage is file there and memory here"),
        ({"max_age": 60}, "max_age is 0 s there and 60 s here"),
        ({"max_bytes": 1000}, "max_bytes is -1 there and 1000 here"),
        ({"duplicate_window": 30}, "duplicate_window is 120 s there and 30 s here"),
        ({"subject_prefix": "other"}, "its subjects are events.> and ours are other.>"),
    ],
)
async def test_a_stream_that_is_not_is_an_error(nats: NatsServer, changed: dict[str, Any], told: str) -> None:
    """Nothing is changed behind the back of whoever made it."""
    async with opened(nats):
        other = provider(nats.url, **changed)
        with pytest.raises(ConfigError, match="is not what the settings say") as error:
            await other.open()
        assert told in str(error.value)
        assert f"nats stream edit {STREAM}" in str(error.value)
        await other.close()


async def test_replicas_need_a_cluster(nats: NatsServer) -> None:
    one = provider(nats.url, replicas=3)
    with pytest.raises(ConfigError, match="cannot be made as the settings"):
        await one.open()
    await one.close()


async def test_processes_that_start_together_make_one_stream(nats: NatsServer) -> None:
    several = [provider(nats.url) for _ in range(5)]
    await asyncio.gather(*(one.open() for one in several))
    await several[0].publish(batch(messages(1)))
    assert len(await stored(several[4])) == 1
    for one in several:
        await one.close()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"stream_name": "a.b"}, "nats.stream_name is 'a.b'"),
        ({"stream_name": ""}, "nats.stream_name is ''"),
        ({"subject_prefix": "a b"}, "nats.subject_prefix is 'a b'"),
        ({"subject_prefix": "$JS.x"}, "nats.subject_prefix is '$JS.x'"),
        ({"tls_ca": "/nowhere.pem"}, "nats.tls_ca"),
    ],
)
async def test_settings_that_nats_does_not_take(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        await provider("nats://127.0.0.1:1", **wrong).open()
    assert told in str(error.value)


# Other versions of nats-py ------------------------------------------------------------------------------------------


async def test_public_methods_of_nats_py_do_as_well(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the private ones are gone."""
    monkeypatch.setattr(Connection, "private", False)
    sent = messages(30)
    async with opened(nats) as one:
        await one.publish(batch(sent))
        assert await stored_ids(one) == ids(sent)
        assert [message.id async for page in one.history() for message in page] == ids(sent)

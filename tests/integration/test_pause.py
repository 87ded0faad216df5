"""Pausing a subscription for every process, from anywhere, over restarts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from sqla_events import Broker, Config, ConfigError, connect
from sqla_events.cli import main
from tests.integration.shop import Inbox, eventually

SETTINGS = {"poll_interval": 0.05, "lease": 2.0}


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database_url)
    yield engine
    engine.dispose()


def cli(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_line_pauses_and_resumes_a_running_process(engine: sa.Engine, database_url: str) -> None:
    """What runs finishes, the rest waits in order, also over a restart; others of the group go on; status tells."""
    broker, paused, other = Broker(Config.load(SETTINGS), engine), Inbox(), Inbox()
    broker.subscribe("*", handler=paused, name="mailer")
    broker.subscribe("*", handler=other, name="other")
    broker.start()
    broker.publish("a.b.c", 0, key="1").result(20)
    paused.wait(1)
    assert cli("pause", database_url, "mailer") == "paused: mailer\n"
    assert cli("pause", database_url, "mailer") == "paused: mailer\n"
    eventually(lambda: "mailer" in broker._groups.by_name["default"].paused)
    for number in range(1, 4):
        broker.publish("a.b.c", number, key="1").result(20)
    other.wait(4)
    broker.stop()
    broker.start()
    broker.publish("a.b.c", 4, key="1").result(20)
    eventually(lambda: 4 in [event.payload for event in other.events])
    assert len(paused.events) == 1
    assert cli("status", database_url).splitlines()[-1] == "paused: mailer of group default"
    assert broker.stats()[0].paused == ("mailer",)
    assert cli("resume", database_url, "mailer") == "resumed: mailer\n"
    paused.wait(5)
    assert "paused" not in cli("status", database_url)
    broker.stop()
    assert [event.payload for event in paused.events] == list(range(5))


def test_a_subscription_that_comes_later_is_paused_too(engine: sa.Engine) -> None:
    """By its name, in its group alone; an operator's pause outlives a deployment."""
    operator = Broker(Config.load(SETTINGS), engine)
    operator.subscribe("*", handler=Inbox(), name="mailer", group="a")
    operator.pause("mailer", "a", everywhere=True)
    with pytest.raises(ConfigError, match="no subscription 'nobody'"):
        operator.pause("nobody", "a", everywhere=True)
    broker, a, b = Broker(Config.load(SETTINGS), engine), Inbox(), Inbox()
    broker.subscribe("*", handler=a, name="mailer", group="a")
    broker.subscribe("*", handler=b, name="mailer", group="b")
    broker.start()
    broker.publish("a.b.c").result(20)
    b.wait(1)
    assert a.events == []
    broker.resume("mailer", "a", everywhere=True)
    a.wait(1)
    broker.stop()


def test_without_a_database_only_this_process_can_be_paused() -> None:
    """The error says what is missing."""
    broker = connect({"provider": "memory"})
    broker.subscribe("*", handler=Inbox(), name="h")
    with pytest.raises(ConfigError, match="no database"):
        broker.pause("h", everywhere=True)


def test_a_name_that_nobody_has_is_told_where_it_would_work(
    engine: sa.Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The command cannot know the names; a running process of the group does, and its log names them."""
    broker = Broker(Config.load(SETTINGS), engine)
    broker.subscribe("*", handler=Inbox(), name="mailer")
    cli("pause", database_url, "mialer")
    broker.start()
    eventually(lambda: "'mialer' of group 'default', which has no such subscription; there are: mailer" in caplog.text)
    broker.stop()

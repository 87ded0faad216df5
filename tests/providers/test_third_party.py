"""The provider of examples/, as a third party's package: found through its entry point, and it keeps the contract."""

from __future__ import annotations

import importlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from sqla_events import Config, ConfigError
from sqla_events.broker import Broker
from sqla_events.cli import main
from sqla_events.signals import Fact, Unavailable
from sqla_events.testing import ProviderConformance, Transport, configured
from tests.integration.shop import Inbox, eventually

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example as an installed distribution: what a wheel's metadata say, on the path."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / "queue_provider-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: queue-provider\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[sqla_events.providers]\nqueue = queue_provider:QueueProvider\n")
    added = [str(site), str(EXAMPLES)]
    sys.path[:0] = added
    importlib.invalidate_caches()
    yield
    for entry in added:
        sys.path.remove(entry)


@pytest.mark.conformance
class TestExample(ProviderConformance):
    @pytest.fixture
    def transport(self, installed: None, tmp_path: Path) -> Transport:
        return Transport(configured({"provider": f"queue:///{tmp_path}/queue.db"}))


def test_its_url_and_its_options_reach_it(installed: None, tmp_path: Path) -> None:
    """Whole: as YAML or by keyword."""
    url = f"queue:///{tmp_path}/queue.db?x=%20&y=1#z"
    config = Config.load(f"provider: {url!r}\noptions:\n  poll_interval: 0.5\n")
    assert (config.provider, config.provider_url, config.options) == ("queue", url, {"poll_interval": 0.5})


def test_a_broker_runs_on_it(installed: None, tmp_path: Path) -> None:
    """Published in one process that has no database, handled there."""
    broker, inbox = Broker(Config.load(f"queue:///{tmp_path}/queue.db")), Inbox()
    broker.subscribe("shop.*.*", handler=inbox)
    broker.start()
    broker.publish("shop.mail.sent", {"to": "Ann"}, key="1").result(20)
    (event,) = inbox.wait(1)
    broker.stop()
    assert (event.type, event.payload, event.key) == ("shop.mail.sent", {"to": "Ann"}, "1")


def test_its_dead_letters_and_replays_need_no_database(
    installed: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The command line asks the transport itself; a handler gets its events once more, but for one that is none."""
    url, broken = f"queue:///{tmp_path}/queue.db", [ValueError("no")]
    inbox = Inbox(fail=lambda event: broken[0] if broken else None)
    broker = Broker(Config.load(url, retry_policy={"max_retries": 0}))
    broker.subscribe("*", handler=inbox, name="mailer")
    broker.start()
    broker.publish("shop.mail.sent", 1).result(20)
    eventually(broker.dead_letters.list)
    broken.clear()
    letter = CliRunner().invoke(main, ["dead-letters", "list", url]).stdout.splitlines()[1].split()
    assert letter[:4] == ["1", "default", "mailer", "shop.mail.sent"]
    assert CliRunner().invoke(main, ["dead-letters", "redrive", url, "1"]).stdout == "redriven: 1\n"
    inbox.wait(1)
    assert CliRunner().invoke(main, ["replay", url, "shop.*.*", "--subscription", "mailer"]).stdout == "replayed: 1\n"
    inbox.wait(2)
    with sqlite3.connect(tmp_path / "queue.db") as link:
        link.execute("INSERT INTO messages SELECT NULL, at, 'odd', type, lane, x'00', headers FROM messages LIMIT 1")
    link.close()
    assert CliRunner().invoke(main, ["replay", url]).stdout == "replayed: 1\n"
    assert "message odd is not replayed: not an event" in caplog.text
    inbox.wait(3)
    broker.stop()
    assert [event.is_replay for event in inbox.events] == [False, True, True]
    assert len({event.id for event in inbox.events}) == 1


def test_a_transport_that_is_not_there_yet_is_waited_for(installed: None, tmp_path: Path) -> None:
    """The broker says so and goes on trying; when it is there, what was published meanwhile arrives."""
    seen: list[Fact] = []
    broker, inbox = Broker(Config.load(f"queue:///{tmp_path}/later/queue.db")), Inbox()
    broker.signals.subscribe(seen.append)
    broker.subscribe("*", handler=inbox)
    broker.start()
    receipt = broker.publish("shop.mail.sent")
    eventually(lambda: any(isinstance(fact, Unavailable) for fact in seen))
    (tmp_path / "later").mkdir()
    receipt.result(20)
    inbox.wait(1)
    broker.stop()


def test_a_provider_that_nobody_installed(tmp_path: Path) -> None:
    """The error names it and those that there are."""
    broker = Broker(Config.load("kafka://localhost"))
    with pytest.raises(ConfigError, match=r"provider is 'kafka'.*database.*memory.*nats.*redis"):
        broker.start()

"""What the pages about providers, dead letters and replay show works: every ``python`` block runs, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_events import Broker, install_crud_hooks
from tests.integration.shop import Base, Inbox, User, eventually

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def broker(sqlite_url: str) -> Iterator[Broker]:
    """A running one, with a dead letter of the subscription ``search-index``."""
    engine = sa.create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    broker, broken = install_crud_hooks(engine, {"retry_policy": {"max_retries": 0}}), [ValueError("no")]
    broker.subscribe("*", handler=Inbox(fail=lambda event: broken.pop() if broken else None), name="search-index")
    broker.start()
    with Session(engine) as session, session.begin():
        session.add(User(id=1, name="Ann"))
    eventually(broker.dead_letters.list)
    yield broker
    broker.uninstall()
    engine.dispose()


@pytest.mark.parametrize("page", ["providers", "memory", "database", "replay"])
def test_every_block_runs(page: str, broker: Broker, sqlite_url: str) -> None:
    """URLs of servers are replaced by one that is there; a page without a block is whole as it is."""
    text = (DOCS / f"{page}.md").read_text()
    namespace: dict[str, Any] = {"__name__": page, "broker": broker}
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 1
        code = block[1].replace("postgresql://app@db/shop", sqlite_url)
        exec(compile("\n" * line + code, f"{page}.md", "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Within the repository: the file is there, and has that heading."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text())
    assert [link for link, heading in links if not _has(page.parent / link if link else page, heading)] == []


def _has(page: Path, heading: str) -> bool:
    return page.exists() and (not heading or heading in map(_anchor, re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)))


def _anchor(heading: str) -> str:
    """What a heading is called in a link, by the rule of the usual renderers."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")

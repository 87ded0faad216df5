"""The schema version of captured events."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from sqla_events import ConfigError
from tests.capture.conftest import Stage


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_events_have_the_version_of_their_table(stage: Stage, rows: int) -> None:
    """``info["event_version"]`` of a Table; 1 without it. On each way that rows are written into the log."""
    metadata = sa.MetaData()
    plain = sa.Table("plain", metadata, sa.Column("id", sa.Integer, primary_key=True))
    changed = sa.Table("changed", metadata, sa.Column("id", sa.Integer, primary_key=True), info={"event_version": 3})
    metadata.create_all(stage.engine)
    stage.hook()
    with stage.engine.begin() as connection:
        connection.execute(plain.insert(), [{"id": number} for number in range(1, rows + 1)])
        connection.execute(changed.insert(), [{"id": number} for number in range(1, rows + 1)])
    assert {(event.entity, event.schema_version) for event in stage.events()} == {("plain", 1), ("changed", 3)}


@pytest.mark.parametrize("version", [0, True, "2"])
def test_what_is_no_version_is_refused(stage: Stage, version: object) -> None:
    """With the first write, which names the table."""
    odd = sa.Table("odd", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), info={"event_version": version})
    odd.create(stage.engine)
    stage.hook()
    with pytest.raises(ConfigError, match="of table odd is"), stage.engine.begin() as connection:
        connection.execute(odd.insert(), {"id": 1})

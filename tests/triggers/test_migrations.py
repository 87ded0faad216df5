"""Event triggers in an application's own Alembic history, and whether they still fit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from click.testing import CliRunner

from sqla_events import ConfigError, EventFilter, install_crud_hooks, triggers
from sqla_events.cli import main
from tests.migration.test_application import ENV, TEMPLATE, USERS, needs_plugins

EVENTS = """
from alembic import op
import sqla_events.alembic

revision, down_revision = "2", "1"

def upgrade():
    op.create_event_tables()

def downgrade():
    op.drop_event_tables()
"""

TRIGGERS = """
import sqlalchemy as sa
from alembic import op
import sqla_events.alembic

revision, down_revision = "3", "2"

def upgrade():
    op.create_event_trigger("users", redact_columns=["name"])

def downgrade():
    op.drop_event_trigger("users")
"""

LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "4", "3"

def upgrade():
    op.add_column("users", sa.Column("age", sa.Integer))
    op.create_event_trigger("users")

def downgrade():
    op.drop_event_trigger("users")
    op.drop_column("users", "age")
"""


def history(tmp_path: Path, url: str, **options: str) -> Config:
    """An application's Alembic history."""
    folder = tmp_path / "application"
    (folder / "versions").mkdir(parents=True)
    revisions = {f"versions/{number}.py": text for number, text in enumerate((USERS, EVENTS, TRIGGERS, LATER), 1)}
    for name, text in ({"env.py": ENV, "script.py.mako": TEMPLATE} | revisions).items():
        (folder / name).write_text(text)
    config = Config()
    for name, value in {"script_location": str(folder), "url": url, **options}.items():
        config.set_main_option(name, value)
    return config


def inserted(url: str, values: str) -> list[dict[str, object]]:
    """By a program that has nothing of ours."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO users VALUES ({values})")
    broker = install_crud_hooks(engine, {})
    found = [event.after for event in broker.list(EventFilter(pattern="public.users.create"))]
    broker.uninstall()
    engine.dispose()
    return found


def test_up_and_down(empty_database_url: str, tmp_path: Path) -> None:
    """At each point of the history the triggers fit the columns of that point, whatever the models have by now."""
    config = history(tmp_path, empty_database_url)
    command.upgrade(config, "3")
    assert inserted(empty_database_url, "1, 'Ann'") == [{"id": 1, "name": "[redacted]"}]
    command.upgrade(config, "4")
    assert inserted(empty_database_url, "2, 'Bob', 9")[1:] == [{"id": 2, "name": "Bob", "age": 9}]
    command.downgrade(config, "2")
    assert len(inserted(empty_database_url, "3, 'Cid'")) == 2
    command.downgrade(config, "base")
    engine = sa.create_engine(empty_database_url)
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version"}
    engine.dispose()


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_as_a_script(request: pytest.FixtureRequest, tmp_path: Path, dialect: str) -> None:
    """``alembic upgrade --sql``: run by somebody else, it makes the same."""
    url: str = request.getfixturevalue(f"empty_{'postgres' if dialect == 'postgresql' else dialect}_url")
    config = history(tmp_path, url, dialect=dialect)
    output = io.StringIO()
    config.output_buffer = output
    command.upgrade(config, "3", sql=True)
    engine = sa.create_engine(url)
    raw = engine.raw_connection()
    if dialect == "sqlite":
        raw.driver_connection.executescript(output.getvalue())
    else:
        raw.driver_connection.execute(output.getvalue())
    raw.commit()
    raw.close()
    engine.dispose()
    assert inserted(url, "1, 'Ann'") == [{"id": 1, "name": "[redacted]"}]


@needs_plugins
def test_autogenerate_proposes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    """Neither triggers, nor their function, nor SQLite's guard are anything that it sees."""
    config = history(tmp_path, empty_database_url)
    (tmp_path / "application" / "versions" / "4.py").unlink()
    command.upgrade(config, "head")
    command.check(config)


def test_a_table_that_has_changed(empty_database_url: str, tmp_path: Path) -> None:
    """The command says which table and column, and fails, until the triggers are made again."""
    config = history(tmp_path, empty_database_url)
    command.upgrade(config, "3")
    good = CliRunner().invoke(main, ["triggers", empty_database_url])
    assert (good.exit_code, good.output) == (0, "event triggers fit their tables: users\n")
    engine = sa.create_engine(empty_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE users ADD COLUMN age INTEGER")
        (said,) = triggers.drift(connection)
    assert "users has changed since its event trigger was made: age was added; make it again" in said
    bad = CliRunner().invoke(main, ["triggers", empty_database_url])
    assert bad.exit_code == 1
    assert "age was added" in bad.output
    with engine.begin() as connection:
        triggers.create(connection, sa.Table("users", sa.MetaData()))
        assert triggers.drift(connection) == []
    engine.dispose()


def test_a_type_that_has_changed(empty_postgres_url: str, tmp_path: Path) -> None:
    """PostgreSQL keeps the types, too."""
    config = history(tmp_path, empty_postgres_url)
    command.upgrade(config, "3")
    engine = sa.create_engine(empty_postgres_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE users ALTER COLUMN name TYPE varchar(20)")
        assert "name was text and is character varying(20)" in triggers.drift(connection)[0]
    engine.dispose()


def test_what_cannot_be_made(empty_database_url: str) -> None:
    """A table that is not there; a database that we do not know."""
    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection, pytest.raises(ConfigError, match="there is no table 'nowhere' in the database"):
        triggers.create(connection, sa.Table("nowhere", sa.MetaData()))
    engine.dispose()
    with pytest.raises(ConfigError, match="event triggers are made on postgresql and sqlite"):
        triggers.sql(sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer)), "mysql+pymysql")
    with pytest.raises(ConfigError, match="default_schema is ''; it must be the name of a schema, not empty"):
        triggers.sql(sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer)), "postgresql", default_schema="")
    with pytest.raises(ConfigError, match="has no columns"):
        triggers.sql(sa.Table("t", sa.MetaData()), "postgresql")

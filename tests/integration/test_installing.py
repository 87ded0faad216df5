"""Whose hooks are on which engine: one broker's at most, as long as the engine lives and not longer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from weakref import ref

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_events import Broker, ConfigError, alembic, install_crud_hooks
from tests.integration.shop import Base, User


@pytest.fixture
def make_engine(sqlite_url: str) -> Callable[[], sa.Engine]:
    def make() -> sa.Engine:
        engine = sa.create_engine(sqlite_url, poolclass=sa.NullPool)
        Base.metadata.create_all(engine)
        alembic.upgrade(engine)
        return engine

    return make


def hook(engine: sa.Engine, **settings: str) -> Broker:
    return install_crud_hooks(engine, {"provider": "memory", **settings})


def write_with(*engines: sa.Engine) -> int:
    """How many events there are when each has written a row."""
    for engine in engines:
        with Session(engine) as session:
            session.add(User(name="Ada"))
            session.commit()
    with engines[0].connect() as connection:
        return connection.scalar(sa.text("SELECT count(*) FROM events")) or 0


def test_an_engine_made_of_a_hooked_one_has_its_hooks(make_engine: Callable[[], sa.Engine]) -> None:
    """Made before or after them: each write is captured once."""
    engine = make_engine()
    before = engine.execution_options(number=1)
    broker = hook(engine)
    after = engine.execution_options(number=2)
    assert hook(before) is hook(after) is broker
    assert write_with(engine, before, after) == 3
    with pytest.raises(ConfigError, match="another configuration"):
        hook(after, instance_id="another")


def test_hooks_on_an_engine_of_which_another_has_them_are_refused(make_engine: Callable[[], sa.Engine]) -> None:
    engine = make_engine()
    made = engine.execution_options(number=1)
    of_it = hook(made)
    with pytest.raises(ConfigError, match="uninstall"):
        hook(engine)
    assert write_with(engine, made) == 1
    of_it.uninstall()
    hook(engine)
    assert write_with(engine, made) == 3


def test_engines_made_of_one_have_hooks_of_their_own(make_engine: Callable[[], sa.Engine]) -> None:
    engine = make_engine()
    one, other = engine.execution_options(number=1), engine.execution_options(number=2)
    assert hook(one) is not hook(other)
    assert write_with(engine, one, other) == 2


def test_a_broker_does_not_come_back_where_another_is(make_engine: Callable[[], sa.Engine]) -> None:
    engine = make_engine()
    first = hook(engine)
    first.uninstall()
    second = hook(engine)
    with pytest.raises(ConfigError, match="another broker"):
        first.install()
    assert not first.installed
    assert write_with(engine) == 1
    second.uninstall()
    assert first.install().installed
    assert hook(engine) is first
    assert write_with(engine) == 2


def test_hooks_that_are_refused_leave_the_engine_to_others(sqlite_url: str) -> None:
    engine = sa.create_engine(sqlite_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    for _ in range(2):
        with pytest.raises(ConfigError, match="AUTOCOMMIT"):
            hook(engine)


def test_what_was_captured_ends_when_nobody_has_it(make_engine: Callable[[], sa.Engine]) -> None:
    """Tenants come and go, and so do classes: the engine, its broker, a mapped class."""

    class Passing(DeclarativeBase):
        pass

    class Thing(Passing):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    engine = make_engine()
    Passing.metadata.create_all(engine)
    broker = hook(engine)
    with Session(engine) as session:
        session.add(Thing(id=1, name="a"))
        session.commit()
        session.get_one(Thing, 1).name = "b"
        session.commit()
        session.delete(session.get_one(Thing, 1))
        session.commit()
    broker.uninstall()
    Passing.registry.dispose()
    left = ref(engine), ref(broker), ref(Thing)
    del engine, broker, session, Passing, Thing
    gc.collect()
    assert [one() for one in left] == [None] * 3


def test_hooks_do_not_keep_an_engine(make_engine: Callable[[], sa.Engine]) -> None:
    """That nobody has used: with its compiled statements SQLAlchemy's mappers keep its dialect, for a while."""
    engine = make_engine()
    left = ref(engine), ref(hook(engine))
    del engine
    gc.collect()
    assert [one() for one in left] == [None, None]

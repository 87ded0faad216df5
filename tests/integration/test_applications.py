"""Applications that nobody here wrote, hooked as they are: their events rebuild their tables exactly.

Optuna writes through its RDB storage; JupyterHub's ORM has a richer model (many-to-many, cascades, tokens, roles,
database cascades). Not one line of theirs is changed; both are used through their own public API.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sqla_events import Event, EventFilter, install_crud_hooks
from sqla_events.capture.column import ColumnCodec
from sqla_events.testing import apply, differences

pytestmark = pytest.mark.filterwarnings("ignore")


@contextmanager
def hooked(engine: sa.Engine, metadata: sa.MetaData, folder: Path) -> Iterator[list[Event]]:
    """Hook an application's engine; afterwards replay its events on a copy of what was there, and compare."""
    copy = sa.create_engine(f"sqlite:///{folder / 'copy.db'}")
    metadata.create_all(copy)
    _copy_rows(engine, copy, metadata)
    broker = install_crud_hooks(engine, provider="memory")
    events: list[Event] = []
    try:
        yield events
        events += broker.list(EventFilter(limit=1_000_000))
        with _as_sqlite(engine, metadata, folder) as source, copy.begin() as target:
            apply(target, metadata, events)
            assert differences(source, target, metadata) == []
    finally:
        broker.uninstall()
        copy.dispose()


def _copy_rows(engine: sa.Engine, copy: sa.Engine, metadata: sa.MetaData) -> None:
    with engine.connect() as source, copy.begin() as target:
        for table in metadata.sorted_tables:
            kinds = {column.key: ColumnCodec(column, source.dialect).kind for column in table.columns}  # below the application's own types
            query = sa.select(*(sa.type_coerce(table.c[key], kind).label(key) for key, kind in kinds.items()))
            values = {key: sa.bindparam(f"v_{key}", type_=kind) for key, kind in kinds.items()}
            rows = [{f"v_{key}": value for key, value in row._asdict().items()} for row in source.execute(query)]
            if rows:
                target.execute(sa.insert(table).values(values), rows)


@contextmanager
def _as_sqlite(engine: sa.Engine, metadata: sa.MetaData, folder: Path) -> Iterator[sa.Connection]:
    """The application's tables; those of a server are copied first, so that both sides are stored alike."""
    source = engine
    if engine.dialect.name != "sqlite":
        source = sa.create_engine(f"sqlite:///{folder / 'source.db'}", poolclass=sa.NullPool)
        metadata.create_all(source)
        _copy_rows(engine, source, metadata)
    with source.connect() as connection:
        yield connection


def test_optuna(database_url: str, tmp_path: Path) -> None:
    """A study with parameters of every kind, pruned and failed trials, user and system attributes, a second study deleted."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from optuna.storages._rdb.models import BaseModel

    storage = optuna.storages.RDBStorage(database_url)
    with hooked(storage.engine, BaseModel.metadata, tmp_path) as events:
        study = optuna.create_study(storage=storage, study_name="one", directions=["minimize", "maximize"])
        study.set_user_attr("owner", {"name": "Ann", "tags": [1, 2.5, None]})
        study.optimize(_two_goals, n_trials=15, catch=(ValueError,))
        pruned = optuna.create_study(storage=storage, study_name="pruned")
        pruned.enqueue_trial({"x": 0.5})
        pruned.optimize(_pruned, n_trials=12)
        optuna.delete_study(study_name="pruned", storage=storage)
        optuna.create_study(storage=storage, study_name="three").optimize(_pruned, n_trials=5)
    storage.engine.dispose()
    assert {event.operation for event in events} == {"create", "update", "delete"}
    assert len(events) > 300


def _two_goals(trial: Any) -> tuple[float, float]:
    x = trial.suggest_float("x", -5, 5)
    kind = trial.suggest_categorical("kind", ["a", "b", None, 3])
    trial.set_user_attr("kind", kind)
    if trial.number == 7:
        raise ValueError("a trial that fails")
    return x**2, trial.suggest_int("n", 1, 10, log=True) + (1e300 if trial.number == 3 else 0)


def _pruned(trial: Any) -> float:
    import optuna

    x: float = trial.suggest_float("x", 0, 1)
    for step in range(4):
        trial.report(x + step, step)
    if trial.number % 3 == 0:
        raise optuna.TrialPruned
    return x


def test_jupyterhub(database_url: str, tmp_path: Path) -> None:
    """Users, groups, roles, services, servers and tokens, through the hub's ORM, also removed again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        orm = pytest.importorskip("jupyterhub.orm")
    factory = orm.new_session_factory(database_url)
    engine = factory.kw["bind"]
    with hooked(engine, orm.Base.metadata, tmp_path) as events:
        _hub(orm, factory)
    engine.dispose()
    entities = {event.entity for event in events}
    assert {
        "users",
        "groups",
        "user_group_map",
        "roles",
        "user_role_map",
        "services",
        "spawners",
        "servers",
        "api_tokens",
    } <= entities
    assert {event.operation for event in events} == {"create", "update", "delete"}


def _hub(orm: Any, factory: Any) -> None:
    from jupyterhub import roles

    db = factory()
    for role in roles.get_default_roles():
        roles.create_role(db, role)
    users = [orm.User(name=f"user-{number}", admin=number == 0) for number in range(6)]
    groups = [orm.Group(name=name) for name in ("staff", "students")]
    db.add_all([*users, *groups])
    db.commit()
    for number, user in enumerate(users):
        groups[number % 2].users.append(user)
        roles.grant_role(db, user, "user")
        user.state = {"auth": [number, {"ünï": "code"}]} if hasattr(user, "state") else None
    roles.grant_role(db, users[0], "admin")
    db.commit()
    _tokens_and_servers(orm, db, users)
    groups[0].users.remove(users[0])
    roles.strip_role(db, users[0], "admin")
    db.commit()
    db.delete(users[1])
    db.delete(groups[1])
    db.commit()
    db.add(orm.User(name="lost"))
    db.flush()
    db.rollback()
    db.close()


def _tokens_and_servers(orm: Any, db: Any, users: list[Any]) -> None:
    service = orm.Service(name="cull", url="http://127.0.0.1:1")
    db.add_all([service, orm.OAuthClient(identifier="jupyterhub", description="the hub itself")])
    db.commit()
    tokens = [user.new_api_token(note="a token", expires_in=60) for user in users[:3]]
    service.new_api_token(token="s" * 40)
    for user in users[:3]:
        spawner = orm.Spawner(name="", user=user, state={"pid": 7})
        db.add(spawner)
        spawner.server = orm.Server(ip="127.0.0.1", port=8000 + user.id, base_url=f"/user/{user.name}")
    db.commit()
    found = orm.APIToken.find(db, tokens[0])
    assert found is not None
    db.delete(found)
    users[2].orm_spawners[""].server = None
    db.commit()
    orm.APIToken.purge_expired(db)

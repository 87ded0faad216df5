"""Text SQL: what is read out of it is what the database does with it, and is told, or reported as a gap."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqla_events import CaptureError
from sqla_events.capture.text import read
from sqla_events.signals import Gap
from tests.capture.conftest import Stage
from tests.capture.model import Base, Tag

PARTS = ["UPDATE a SET n = 1", "DELETE FROM b", "; ROLLBACK", "WITH x AS (", ";", "'", '"', "`", "[", "]", "$$", "$t$", "\\", "--", "/*", "*/", "(", ")", "\n", " ", "e", "é"]  # fmt: skip
insides = st.lists(st.sampled_from(PARTS), max_size=5).map("".join)


def closed(opening: str, inside: str, closing: str) -> str | None:
    """What has this inside, if nothing of it closes it before its end."""
    return opening + inside + closing if (inside + closing).find(closing) == len(inside) else None


def of(*all_of: Any) -> Any:
    return st.builds(lambda *parts: parts[0] + parts[1] + parts[2], *all_of)


def these(make: Any) -> Any:
    return insides.map(make).filter(lambda one: one is not None)


def comments(postgres: bool) -> Any:
    lines = insides.map(lambda inside: "--" + inside.replace("\n", " ") + "\n")
    if not postgres:
        return lines | these(lambda inside: closed("/*", inside, "*/"))
    plain = these(lambda inside: None if "/*" in inside or inside[-1:] in ("*", "/") or "*/" in inside else f"/* {inside} */")
    return lines | plain | plain.map(lambda inner: f"/* {inner} x */")


def literals(postgres: bool) -> Any:
    found = insides.map(lambda inside: "'" + inside.replace("'", "''") + "'")
    if not postgres:
        return found
    escaped = insides.map(lambda inside: "E'" + inside.replace("\\", "\\\\").replace("'", "\\'") + "'")
    return found | escaped | these(lambda inside: closed("$$", inside, "$$")) | these(lambda inside: closed("$t$", inside, "$t$"))


def names(postgres: bool) -> Any:
    found = insides.map(lambda inside: '"x' + inside.replace('"', '""') + '"')
    if postgres:
        return found
    ticks = insides.map(lambda inside: "`x" + inside.replace("`", "``") + "`")
    return found | ticks | these(lambda inside: closed("[x", inside, "]"))


@st.composite
def statements(draw: Any, postgres: bool) -> tuple[str, set[str]]:
    """One statement, and what it writes."""
    between = st.lists(comments(postgres), max_size=2).map(lambda some: " ".join([" ", *some, " "]))
    table = draw(st.sampled_from("ab"))
    schema = "public" if postgres else "main"
    name = draw(st.sampled_from([table, table.upper(), f'"{table}"', f"{schema}.{table}", f'"{schema}" . {table}']))
    given = {"UPDATE": f"UPDATE {name} SET n = n + 1 WHERE LITERAL IS NOT NULL", "DELETE": f"DELETE FROM {name}"}
    given["INSERT"] = f"INSERT INTO {name} (n) SELECT 5 FROM a AS NAME WHERE LITERAL <> 'x'"
    given["SELECT"] = "SELECT LITERAL AS NAME, (1) AS n FROM a AS NAME"
    verb = draw(st.sampled_from([*given]))
    sql, wanted = given[verb], set() if verb == "SELECT" else {table}
    kind = draw(st.sampled_from(["", "WITH NAME AS (SELECT LITERAL AS x) ", *(["inside", "explained"] if postgres else [])]))
    if kind == "inside":
        sql = f"WITH NAME AS ( {sql} {'' if verb == 'SELECT' else 'RETURNING n'} ) UPDATE t SET n = 2 WHERE LITERAL IS NOT NULL"
        wanted = wanted | {"t"}
    else:
        sql = ("EXPLAIN (COSTS, ANALYZE) " if kind == "explained" else kind) + sql
    drawn = {"LITERAL": literals(postgres), "NAME": names(postgres)}
    one = draw(names(postgres))
    words = [one if word == "NAME" else draw(drawn[word]) if word in drawn else word for word in sql.split(" ")]
    return draw(between) + "".join(word + draw(between) for word in words), wanted


def changed(connection: sa.Connection) -> dict[str, Any]:
    return {name: connection.exec_driver_sql(f"SELECT count(*), sum(n) FROM {name}").one() for name in "abt"}


def test_what_is_read_out_of_a_text_is_what_the_database_does(stage: Stage) -> None:
    """Whatever stands in its literals, names and comments."""
    postgres = stage.engine.dialect.name == "postgresql"
    with stage.engine.begin() as connection:
        for name in "abt":
            connection.exec_driver_sql(f"CREATE TABLE {name} (n int)")
            connection.exec_driver_sql(f"INSERT INTO {name} VALUES (1)")

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(statements(postgres), min_size=1, max_size=3 if postgres else 1))
    def run(some: list[tuple[str, set[str]]]) -> None:
        sql = ";".join(one for one, _ in some)
        with stage.engine.connect() as connection:
            before = changed(connection)
            cursor = connection.connection.cursor()
            cursor.execute(sql)
            cursor.close()
            after = changed(connection)
        found = read(sql, stage.engine.dialect.name)
        assert {name for _, name, _ in found.writes} == {name for _, wanted in some for name in wanted}
        assert {name for name in before if before[name] != after[name]} <= {name for _, name, _ in found.writes}
        assert found.words == ()

    run()


WRITES = [
    "-- don't touch the others\nUPDATE tags SET name = 'b';",
    "/* nightly; see #12 */ UPDATE tags SET name = 'b'",
    "UPDATE /* report.py:12 */ tags SET name = 'b'",
    "WITH a AS (SELECT 1) -- don't\nUPDATE tags SET name = 'b'",
    "UPDATE TAGS SET name = 'b'",
]
OF_ONE = {
    "postgresql": ["WITH a AS (DELETE FROM seats RETURNING *) DELETE FROM tags", "TRUNCATE seats, tags", "UPDATE public.tags SET name = 'b'"],
    "sqlite": ["WITH a AS (SELECT 1) REPLACE INTO tags (id, name) VALUES (1, 'b')", 'UPDATE "TAGS" SET name = 1', "UPDATE main.tags SET name = 'b'"],
}


def test_none_passes_in_silence(stage: Stage) -> None:
    """Also where only some tables are captured."""
    stage.hook(on_gap="raise", include=["public.tags"])
    for sql in WRITES + OF_ONE[stage.engine.dialect.name]:
        with stage.engine.connect() as connection, pytest.raises(CaptureError, match=r"writes to '(?i:tags)'"):
            connection.execute(sa.text(sql))


def test_what_only_reads_is_no_gap(stage: Stage) -> None:
    """Nor is what makes something that will write."""
    broker = stage.hook()
    facts: list[Any] = []
    broker.signals.subscribe(facts.append, Gap)
    texts = ["/* x */\n" * 60 + "SELECT 1", "SELECT '; DELETE FROM tags' -- ; DELETE FROM tags"]
    if stage.engine.dialect.name == "sqlite":
        texts.append("CREATE TRIGGER t AFTER INSERT ON seats BEGIN UPDATE seats SET row = 'x'; DELETE FROM tags; END")
    else:
        texts.append("SELECT $$; DELETE FROM tags$$ /* /* */ ; DELETE FROM tags */")
    with stage.engine.connect() as connection:
        for sql in texts:
            connection.execute(sa.text(sql))
    assert facts == []


@pytest.mark.parametrize("name", ["TAGS", '"tags"', "Tags"])
def test_old_values_after_text_that_spells_the_table_otherwise(stage: Stage, name: str) -> None:
    """None is stale."""
    stage.hook(on_gap="ignore")
    with stage.session() as session:
        session.add(Tag(id=1, name="a"))
        session.commit()
        tag = session.get_one(Tag, 1)
        assert tag.name == "a"
        session.execute(sa.text(f"UPDATE {name} SET name = 'text'"))
        tag.name = "b"
        session.commit()
    assert [event.before for event in stage.events() if event.operation == "update"] == [{}]


@pytest.mark.parametrize("sql", ["ROLLBACK", "/* a */ ABORT", "SELECT 1; ROLLBACK", "SELECT ';'; SELECT 1; abort work;", "ROLLBACK; BEGIN; SAVEPOINT x"])
def test_a_rollback_wherever_it_stands(stage: Stage, sql: str) -> None:
    """Takes back the events of what it takes back."""
    if stage.engine.dialect.name == "sqlite" and sql != "ROLLBACK":
        pytest.skip("SQLite's driver executes one statement, and SQLite has no ABORT")
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.insert(Tag), [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
        connection.execute(sa.text(sql))
        connection.execute(sa.insert(Tag), [{"id": 3, "name": "a"}])
        connection.commit()
    assert [event.key for event in stage.check(Base.metadata)] == ["3"]


@pytest.mark.parametrize("sql", ["SELECT 1; COMMIT", "COMMIT; SELECT 1", "SELECT 1; SAVEPOINT One; SELECT 1; ROLLBACK TO one; COMMIT"])
def test_a_commit_wherever_it_stands(stage: Stage, sql: str) -> None:
    """Has the events of what it commits with it."""
    if stage.engine.dialect.name == "sqlite":
        pytest.skip("SQLite's driver executes one statement")
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.insert(Tag), [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
        connection.execute(sa.text(sql))
        connection.rollback()
    assert [event.key for event in stage.check()] == ["1", "2"]


def test_a_text_that_fails_behind_its_rollback(stage: Stage) -> None:
    """Nobody knows how far it came: its transaction does not commit what was before it."""
    if stage.engine.dialect.name == "sqlite":
        pytest.skip("SQLite's driver executes one statement")
    stage.hook()
    with stage.engine.connect() as connection:
        connection.execute(sa.insert(Tag), [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
        with pytest.raises(sa.exc.ProgrammingError):
            connection.execute(sa.text("ROLLBACK; SELECT * FROM nowhere"))
        with pytest.raises(CaptureError, match="cannot be committed"):
            connection.commit()
    assert stage.check() == []

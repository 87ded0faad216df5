"""What capture reads out of SQL that somebody has written as text, without a database (with one: tests/capture/test_text.py)."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sqla_events.capture.text import KEPT_LENGTH, read, tokens

DIALECTS = ["postgresql", "sqlite"]
dialects = st.sampled_from(DIALECTS)


def written(sql: str, dialect: str = "postgresql") -> list[str]:
    """Names of what a text writes."""
    return [name if schema is None else f"{schema}.{name}" for schema, name, _ in read(sql, dialect).writes]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("UPDATE items SET x = 1;", "items"),
        ("-- don't touch the others\nUPDATE items SET x = ';'", "items"),
        ("/* nightly; see #12 */ UPDATE/* it's */items SET x = 1", "items"),
        ("DELETE\n-- all of them\nFROM\n\n items", "items"),
        ("insert into Items values (1)", "items"),
        ('INSERT INTO "Items" VALUES (1)', "Items"),
        ('INSERT INTO "a ""b; --" VALUES (1)', 'a "b; --'),
        ('UPDATE one . "two" SET x = 1', "one.two"),
        ("UPDATE a.b.c SET x = 1", "b.c"),
        ("MERGE INTO items AS i USING other", "items"),
        ("WITH a AS (SELECT 1) -- don't\nUPDATE items SET x = 1", "items"),
        ("WITH a(x) AS (VALUES (1)), b AS (SELECT 1) INSERT INTO items SELECT * FROM a", "items"),
        ("UPDATE a SET x = 'UPDATE b'; SELECT 1; DELETE FROM c;;", "a c"),
        ("SELECT 1; DELETE FROM tags", "tags"),
        ("WITH update AS (SELECT 1) SELECT * FROM update", ""),
        ("WITH a AS (SELECT 1) SELECT count(*) delete FROM items", ""),
        ("WITH a AS (SELECT 1) SELECT * FROM items FOR UPDATE", ""),
        ("SELECT 'it''s'; SELECT '; UPDATE items SET x = 1'", ""),
        ('SELECT "; UPDATE items SET x = 1" FROM items; --', ""),
        ("EXPLAIN DELETE FROM items", ""),
        ("CREATE TABLE t (id int, x int GENERATED ALWAYS AS (update))", ""),
        ("CREATE TABLE x (begin int); UPDATE items SET x = 1", "items"),
        ("CREATE TABLE IF NOT EXISTS one.two AS SELECT 1 AS a", "one.two"),
        ("CREATE UNLOGGED TABLE a (x, y) AS VALUES (1, 2); EXPLAIN CREATE TABLE b AS SELECT 1", "a"),
        ("CREATE TABLE a AS (SELECT * FROM b) WITH NO DATA", ""),
        ("CREATE TEMPORARY TABLE a AS SELECT 1", ""),
        ("SELECT replace(a, b, c), (update) FROM items", ""),
        ("SELECT", ""),
        ("UPDATE", ""),
        ("", ""),
    ],
)
def test_what_is_written(sql: str, names: str, dialect: str) -> None:
    assert " ".join(written(sql, dialect)) == names


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("WITH moved AS (DELETE FROM items RETURNING *) INSERT INTO archive SELECT * FROM moved", "items archive"),
        ("WITH a AS MATERIALIZED (UPDATE x SET n = 1 RETURNING n), b AS (MERGE INTO y USING z) SELECT 1", "x y"),
        ("WITH a AS (WITH b AS (SELECT 1) DELETE FROM x RETURNING 1) SELECT 1", "x"),
        ("WITH RECURSIVE t AS (SELECT 1) SEARCH DEPTH FIRST BY id SET ord UPDATE items SET x = 1", "items"),
        ("(WITH a AS (DELETE FROM items RETURNING 1) SELECT 1)", "items"),
        ("CREATE TEMP TABLE t AS WITH a AS (DELETE FROM items RETURNING *) SELECT * FROM a", "items"),
        ("COPY (DELETE FROM items RETURNING *) TO '/dev/null'", "items"),
        ("COPY items (a, b) FROM STDIN", "items"),
        ("COPY items (a, b) TO STDOUT", ""),
        ("COPY BINARY items FROM '/tmp/items'", "items"),
        ("TRUNCATE archive, ONLY items, b.c *, d CASCADE", "archive items b.c d"),
        ("TRUNCATE TABLE ONLY (items)", "items"),
        ("UPDATE ONLY (items) SET x = 1; DELETE FROM ONLY b", "items b"),
        ("EXPLAIN (COSTS, ANALYZE) WITH a AS (DELETE FROM items RETURNING 1) SELECT 1", "items"),
        ("EXPLAIN ANALYZE VERBOSE UPDATE items SET x = 1", "items"),
        ("SELECT $$; UPDATE a SET x = 1;$$, $t$ $$; $t$; UPDATE items SET x = 1", "items"),
        ("SELECT $1, a$$b; UPDATE items SET x = $2", "items"),
        ("SELECT E'it\\'s; UPDATE a SET x = 1', 'back\\'; UPDATE items SET x = 1", "items"),
        ("SELECT E'a'\n  'b\\'; UPDATE a SET x = 1'", ""),
        ("SELECT 1 /* a /* b */; UPDATE a SET x = 1 */; UPDATE items SET x = 1", "items"),
        ("-- a\rUPDATE items SET x = 1", "items"),
        ("SELECT array[']', ']; UPDATE a SET x = 1']; UPDATE items SET x = a[1]", "items"),
        ('UPDATE U&"items" SET x = 1', "items"),
        ("CREATE FUNCTION f() RETURNS void BEGIN ATOMIC INSERT INTO a VALUES (1); UPDATE b SET x = 1; END; UPDATE c SET x = 1", "c"),
        ("CREATE RULE r AS ON UPDATE TO a DO ALSO (INSERT INTO b VALUES (1); UPDATE c SET x = 1)", ""),
        ("PREPARE p AS UPDATE items SET x = 1", ""),
        ("GRANT UPDATE ON items TO me", ""),
    ],
)
def test_what_is_postgresql_s(sql: str, names: str) -> None:
    assert " ".join(written(sql)) == names


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("UPDATE OR REPLACE items SET x = 1", "items"),
        ("INSERT OR IGNORE INTO items VALUES (1)", "items"),
        ("REPLACE INTO items VALUES (1)", "items"),
        ("WITH a AS (SELECT 1) INSERT OR REPLACE INTO items VALUES (1)", "items"),
        ("WITH a AS (SELECT 1) REPLACE INTO items VALUES (1)", "items"),
        ("UPDATE [The Items] SET x = 1", "The Items"),
        ("UPDATE `a``b` SET x = 1", "a`b"),
        ("UPDATE 'it''s' SET x = 1", "it's"),
        ("SELECT [it's; DELETE FROM a], `it's; DELETE FROM b`; UPDATE items SET x = 1", "items"),
        ("SELECT 'back\\'; UPDATE items SET x = $$; DELETE FROM b", "items b"),
        ("SELECT :update, @delete FROM items; DELETE FROM /* /* */ items", "items"),
        ("CREATE TRIGGER t AFTER UPDATE ON a BEGIN UPDATE b SET x = CASE 1 WHEN 1 THEN 2 END; DELETE FROM c; END", ""),
        ("EXPLAIN QUERY PLAN DELETE FROM items", ""),
    ],
)
def test_what_is_sqlite_s(sql: str, names: str) -> None:
    assert " ".join(written(sql, "sqlite")) == names


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("COMMIT; END WORK; RELEASE SAVEPOINT a; PREPARE TRANSACTION 'x'", [("commit", None)] * 4),
        ("/* a */ ROLLBACK -- b", [("rollback", None)]),
        ("ABORT", [("rollback", None)]),
        ("SELECT 1; ROLLBACK AND CHAIN;", [("rollback", None)]),
        ("SAVEPOINT One; ROLLBACK TO one", [("savepoint", "one"), ("rollback_savepoint", "one")]),
        ('ROLLBACK WORK TO SAVEPOINT "One"', [("rollback_savepoint", "One")]),
        ("SELECT CASE a WHEN 1 THEN 2 END, '; ROLLBACK' FROM t -- ; COMMIT", []),
        ("DO $$ BEGIN COMMIT; END $$", []),
    ],
)
def test_transactions(sql: str, words: list[tuple[str, str | None]]) -> None:
    assert list(read(sql, "postgresql").words) == words


FRAGMENTS = [
    "/* x */\n", "-- x\n", "--", "/*", "*/", "'", "''", "'\n", "' ", '"', '""', "`", "[", "]", "$", "$$", "$a$", "$ab", "E'", "\\", "(", ")", ";", ",", ".",
    " ", "\n", "x", "1", "WITH a AS (", "AS (", "UPDATE ", "DELETE FROM ", "COPY a (", "TRUNCATE a, ", "EXPLAIN ANALYZE ", "EXPLAIN (", "CREATE TABLE ",
    "CREATE TRIGGER BEGIN ", "END;", "BEGIN ATOMIC ", "a.", "ROLLBACK TO ", "é", "U&",
]  # fmt: skip
fragments = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4).map("".join)


@given(fragments, fragments, fragments, dialects)
@example("", "/* x */\n", "SELECT 1", "postgresql")
def test_the_time_grows_with_the_text_and_not_faster(first: str, often: str, last: str, dialect: str) -> None:
    """Whatever is repeated in it."""
    sql = first + often * (2 * KEPT_LENGTH // len(often)) + last
    begun = time.process_time()
    read(sql, dialect)
    assert time.process_time() - begun < 0.5


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3)).map("".join), dialects)
def test_any_text_can_be_read(sql: str, dialect: str) -> None:
    """It has no empty words."""
    read(sql, dialect)
    assert all(tokens(sql, dialect))

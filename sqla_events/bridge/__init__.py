"""Where sync meets async, and the only package that knows: database calls, loop threads, doorbells, signals.

Everything about SQL is a plain function of a SQLAlchemy Connection; :class:`Database` calls it through
``AsyncConnection.run_sync`` for an AsyncEngine and on a thread for an Engine. So there is one asyncio implementation of
relay and consumer, and no function exists twice.

Why a pool of our own: it is made from the application's (``Pool.recreate``: same creator, same connect listeners), so the
relay cannot starve the application of connections, an asyncpg engine can be served from another event loop than the
application's, and what we write is never taken for the application's writes.

Why READ COMMITTED whatever the engine says: each statement must see what was committed before it. Under REPEATABLE READ
a position's commit would fail whenever anybody touched its row, under AUTOCOMMIT no outbox keeps its promise.
"""

from .bells import Doorbell, Ear
from .database import Database, Held, database_url, engine_of, pinned
from .failures import in_memory, is_locked, refuse_autocommit, translated
from .loops import LoopThread, Runnable, answer, in_coroutine, in_thread, run_until_signal, wait_for

__all__ = [
    "Database",
    "Doorbell",
    "Ear",
    "Held",
    "LoopThread",
    "Runnable",
    "answer",
    "database_url",
    "engine_of",
    "in_coroutine",
    "in_memory",
    "in_thread",
    "is_locked",
    "pinned",
    "refuse_autocommit",
    "run_until_signal",
    "translated",
    "wait_for",
]

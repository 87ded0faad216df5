"""``sqla-events demo``: a small shop whose every committed change becomes an event, and a count that none is lost.

shop.py is an application as anybody's, handlers.py what listens to it, worker.py a consumer that gets killed, tally.py
the count, story.py what happens in which order.
"""

from .story import run

__all__ = ["run"]

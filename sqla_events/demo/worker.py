"""A consumer process of the shop's group: ``python -m sqla_events.demo.worker TALLY``, the URL in SHOP_URL.

The URL is in the environment because everybody may read a command line, and there may be a password in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sqlalchemy import create_engine

from ..broker import Broker
from ..config import Config
from .handlers import SETTINGS, Handlers
from .tally import Tally


def main() -> None:
    """Consume, slowly, until somebody ends it."""
    broker = Broker(Config.load(SETTINGS), create_engine(os.environ["SHOP_URL"]))
    Handlers(Tally(Path(sys.argv[1])), lambda _: None, pause=0.01).subscribe(broker)
    broker.run()


if __name__ == "__main__":
    main()

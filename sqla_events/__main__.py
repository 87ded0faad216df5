"""``python -m sqla_events``: the same as the command ``sqla-events``."""

from .cli import main

main(prog_name="python -m sqla_events")

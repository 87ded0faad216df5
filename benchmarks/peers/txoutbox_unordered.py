"""txoutbox at its fastest: no order among the events of a row."""

from __future__ import annotations

from functools import partial

from harness import main
from txoutbox_ordered import drain, prepare

if __name__ == "__main__":
    main(prepare, partial(drain, strict=False))

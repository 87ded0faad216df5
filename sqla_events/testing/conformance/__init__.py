"""The contract of a provider as tests: ours pass them, and a third party's class inherits them.

::

    class TestMine(ProviderConformance):
        @pytest.fixture
        def transport(self) -> Transport:
            return Transport(configured({"provider": "mine://…"}))

``Features`` choose: what a provider does not promise is skipped, with the name of the promise. Needs pytest and
pytest-asyncio. Nothing here is timed: a slow machine makes the suite slow and nothing else.
"""

from __future__ import annotations

import pytest

from ..transport import Transport
from .again import Again
from .arriving import Arriving
from .failing import Failing
from .settling import Settling
from .sharing import Sharing


@pytest.mark.asyncio
class ProviderConformance(Arriving, Sharing, Settling, Again, Failing):
    """Inherit it, and override the fixture :meth:`transport`."""

    @pytest.fixture
    def transport(self) -> Transport:
        """A transport without any events or groups."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture 'transport'")

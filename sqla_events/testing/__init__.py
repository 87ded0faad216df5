"""For the tests of applications and providers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .replay import apply, differences
from .transport import Transport, configured

if TYPE_CHECKING:
    from .conformance import ProviderConformance

__all__ = ["ProviderConformance", "Transport", "apply", "configured", "differences"]


def __getattr__(name: str) -> Any:
    """The suite needs pytest, which an application has in its tests only."""
    if name != "ProviderConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(f"{__name__}.conformance")
    from .conformance import ProviderConformance

    return ProviderConformance

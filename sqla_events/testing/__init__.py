"""For the tests of applications and providers."""

from .replay import apply, differences

__all__ = ["apply", "differences"]

"""A captured database with tables of every kind, from capture's tests."""

from tests.capture.conftest import stage

__all__ = ["stage"]

"""Benchmarks: `make bench-capture`, `make bench-relay`."""

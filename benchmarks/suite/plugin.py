"""A pytest plugin for SQLAlchemy's own tests: hooks on every engine, replay after every transaction, a record of each test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import pytest

from benchmarks.suite.proof import Report

current = Report()
"""Of the test that runs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sqla_events")
    group.addoption("--suite-record", help="folder for the record of each test")
    group.addoption("--suite-hooks", action="store_true", help="install the hooks on every engine")
    group.addoption("--suite-unseen", action="store_true", help="no listener sees the SELECTs of the hooks")
    group.addoption("--suite-only", help="a file with the names of the tests to run, a line each")
    group.addoption("--suite-mutant", help="damage the events: see mutants.py")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("suite_hooks"):
        from benchmarks.suite import hooks

        hooks.install(config.getoption("suite_mutant"), lambda: current)
        if config.getoption("suite_unseen"):
            hooks.select_unseen()
        config.pluginmanager.register(_Proving(hooks), "sqla_events_proving")
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker is not None or not config.getoption("numprocesses", None):
        path = Path(config.getoption("suite_record")) / f"{worker or 'main'}.jsonl"
        config.pluginmanager.register(_Recording(path.open("w")), "sqla_events_recording")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """SQLAlchemy's tests cannot be chosen by name on the command line: it makes their classes while they are collected."""
    if file := config.getoption("suite_only"):
        wanted = set(Path(file).read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in wanted]


class _Proving:
    def __init__(self, hooks: Any) -> None:
        self._hooks = hooks

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._hooks.listen_again()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        self._hooks.check_all()
        return (yield)


class _Recording:
    """A line of JSON for each test."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._outcome, self._text = "passed", ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        global current
        current = Report()
        self._outcome, self._text = "passed", ""
        result = yield
        record = {"test": item.nodeid, "outcome": self._outcome, "text": self._text, **asdict(current)}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self._outcome == "passed":
            self._outcome = "failed" if report.when == "call" else f"error in {report.when}"
            self._text = str(report.longrepr)[-6000:]
        elif report.skipped:
            self._outcome = "xfailed" if hasattr(report, "wasxfail") else "skipped"

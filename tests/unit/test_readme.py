"""What the README shows works: every ``python`` block runs, in order, in one namespace, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A block that fails is reported with its line in the README. A later block may use what an earlier one defined.

    What a comment says that a line prints (``# prints: …``) is printed. The first block stops its broker, and the text
    below it says that the others start it again.
    """
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(README), "exec", dont_inherit=True), namespace)
        namespace["broker"].start()
    namespace["broker"].uninstall()
    namespace["engine"].dispose()
    printed = capsys.readouterr().out
    promised = re.findall(r"# prints: (.*)$", text, re.MULTILINE)
    assert promised
    assert [line for line in promised if line not in printed] == []

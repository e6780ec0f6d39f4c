"""The pages that people read, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")],
)
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """Contents of the fenced blocks in these languages."""
    return [content for language, content in _BLOCK.findall(text) if language in languages]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return _BLOCK.sub("", text)


def section(text: str, title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def first_column(text: str) -> list[str]:
    """First cells of the rows of the tables in a text, headings left out."""
    rows = re.findall(r"^\|(.*?)\|", text, re.MULTILINE)
    cells = [row.strip() for row in rows]
    return [
        cell
        for cell, following in zip(cells, [*cells[1:], ""], strict=True)
        if not set(cell) <= {"-"} and not (following and set(following) <= {"-"})
    ]

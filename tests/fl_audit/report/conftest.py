"""What a browser makes of a page, and texts that try to break out of it."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from fl_audit.report.html import render_html
from fl_audit.report.model import AuditReport


class Page(HTMLParser):
    """What a browser makes of a page: its elements, their attributes, and its text."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[str]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []  # every element is closed, in order
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, [name for name, _ in attrs]))
        self.attributes += [(name, value or "") for name, value in attrs]
        self.open += [tag] if tag not in self.VOID else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += [data] if self.open[-1:] != ["style"] else []

    def values(self, attribute: str) -> list[str]:
        return [value for name, value in self.attributes if name == attribute]


CHOSEN = {  # not free
    *("kind", "state", "who", "activity", "algorithm", "factory", "scores_file", "access", "task"),
    *("unit", "check"),
}
TABLES = {"settings", "versions", "strategy", "defence", "adversary", "data", "refused"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></svg><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u2066 \x1b[31mred\x00\x07",
    "$\\frac{$ _hidden %s",
    "A" * 1_000_000,
    "<" * 1_000_000,
]


def spoil(node: Any, text: str, name: str = "") -> Any:
    """The same tree with every free text, and a key of every free table, replaced."""
    if isinstance(node, dict):
        extra = {text: text} if name in TABLES else {}
        return {k: spoil(v, text, k) for k, v in node.items()} | extra
    if isinstance(node, list):
        return [spoil(item, text, name) for item in node]
    return text if isinstance(node, str) and name not in CHOSEN else node


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    """A page, read as a browser would."""
    return Page


@pytest.fixture
def text_of() -> Callable[[AuditReport], str]:
    """The text of a report's page."""
    return lambda report: Page(render_html(report)).text


@pytest.fixture(name="spoil", scope="session")
def spoil_fixture() -> Callable[[Any, str], Any]:
    """Puts a text in the place of every free text."""
    return spoil


@pytest.fixture(params=HOSTILE, ids=range(len(HOSTILE)))
def hostile(request: pytest.FixtureRequest) -> str:
    """A text that tries to break out."""
    text: str = request.param
    return text

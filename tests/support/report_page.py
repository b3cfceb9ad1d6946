"""A page as tests read it."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, text outside styles, tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        here = self._inside[-1] if self._inside else ""
        if here != "style":
            self.text += data
        if here in {"td", "th"}:
            self.rows[-1][-1] += data

    @property
    def charts(self) -> list[str | None]:
        """What each chart is called by who reads the page aloud."""
        return [attrs["aria-label"] for _, attrs in self.tags if attrs.get("role") == "img"]

    def row(self, *start: str) -> list[str]:
        (found,) = (row for row in self.rows if tuple(row[: len(start)]) == start)
        return found

"""What a parser and a browser find in a page."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=60000",
)  # fmt: skip
VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use"}


@dataclass
class Element:
    tag: str
    attrs: dict[str, str | None]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = (c if isinstance(c, str) else c.text for c in self.children)
        return " ".join("".join(parts).split())

    def all(self, *tags: str) -> list["Element"]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if not tags or child.tag in tags:
                    found.append(child)
                found += child.all(*tags)
        return found

    def by_id(self, name: str) -> "Element":
        (found,) = [e for e in self.all() if e.attrs.get("id") == name]
        return found

    def has(self, name: str) -> bool:
        return any(e.attrs.get("id") == name for e in self.all())


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
            self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    """Parse a page whose every element is closed where it was opened."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1, f"<{parser.open[-1].tag}> is not closed"
    return parser.root


def table_rows(table: Element) -> list[dict[str, str]]:
    """Return the rows of a table's body by the names of its columns."""
    (head,) = table.all("thead")
    names = [cell.text for cell in head.all("th")]
    (body,) = table.all("tbody")
    rows = [[cell.text for cell in row.all("th", "td")] for row in body.all("tr")]
    return [dict(zip(names, row, strict=True)) for row in rows]


def table_named(root: Element, caption: str) -> Element:
    (found,) = [t for t in root.all("table") if any(caption in c.text for c in t.all("caption"))]
    return found


@dataclass
class Opened:
    """A page after its scripts have run."""

    html: str
    log: str

    def drawn(self) -> list[str]:
        """Return the ids of the plots that hold something drawn."""
        return re.findall(r'<div id="(plot-\w+)" class="plot js-plotly-plot"', self.html)


def open_in_browser(path: Path, scratch: Path) -> Opened:
    """Open a page in a headless browser; skip, saying so, where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser to open the report with: none of {', '.join(BROWSERS)} is there")
    command = [browser, *FLAGS, f"--user-data-dir={scratch / 'browser'}", "--dump-dom"]
    done = subprocess.run(
        [*command, path.absolute().as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "HOME": str(scratch)},
    )
    assert done.returncode == 0, done.stderr
    return Opened(done.stdout, done.stderr)

"""The HTML version of the guide: built without a warning, every link leads somewhere, the search finds pages."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chromium import open_chromium
from paths import ROOT

from lmm_gpu.cli.guide import TOPICS

pytest.importorskip("sphinx", reason='needs pip install ".[docs]"')
pytest.importorskip("myst_parser", reason='needs pip install ".[docs]"')
pytest.importorskip("furo", reason='needs pip install ".[docs]"')
SOURCE = ROOT / ".sphinx"
if not SOURCE.exists():
    pytest.skip("the source distribution has no .sphinx", allow_module_level=True)


class Links(HTMLParser):
    """Targets and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value for name, value in attributes if value}
        self.targets += [named[name] for name in ("href", "src", "srcset") if name in named]
        self.anchors |= {named["id"]} if "id" in named else set()


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(SOURCE), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_topic_is_a_page(html):
    assert {f"{topic}.html" for topic in TOPICS} <= {path.name for path in html.glob("*.html")}
    assert "GPU status" in (html / "index.html").read_text(encoding="utf-8")


def test_links_and_anchors_exist(html):
    pages = {path.name: Links(path.read_text(encoding="utf-8")) for path in html.glob("*.html")}
    broken = [
        f"{name}: {target}"
        for name, page in pages.items()
        for target in page.targets
        if not urlsplit(target).scheme and not _exists(html, pages, name, target)
    ]
    assert not broken


def _exists(html: Path, pages: dict[str, Links], name: str, target: str) -> bool:
    parts = urlsplit(target)
    file = unquote(parts.path) or name
    return (html / file).exists() and (not parts.fragment or file not in pages or parts.fragment in pages[file].anchors)


def test_search_finds_a_page_and_phone_width_fits(html):
    with open_chromium(width=380) as browser:
        browser.get(f"{(html / 'search.html').as_uri()}?q=Kenward")
        browser.implicitly_wait(10)
        assert browser.find_elements("css selector", "#search-results li a")
        for topic in ("index", "df", "api"):
            browser.get((html / f"{topic}.html").as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 380, topic

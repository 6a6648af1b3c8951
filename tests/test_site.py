"""The documentation site: it is whole, strict, and fetches nothing from anywhere else."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.browser import browser, chromium
from tools import site


class Page(HTMLParser):
    """What a page has the browser fetch, where it leads, and what one can lead to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.fetched += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if "id" in given:
            self.anchors.add(given["id"])
        if "href" in given:
            (self.links if tag == "a" else self.fetched).append(given["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "html"
    assert site.build(out) == 0, "the site cannot be built without warnings: see above, or run: make site"
    return out


@pytest.fixture(scope="module")
def html(built: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in built.rglob("*.html")}


def test_the_site_fetches_nothing_from_other_hosts(built: Path, html: dict[Path, Page]) -> None:
    assert html
    for path, page in html.items():
        for address in page.fetched:
            assert not re.match(r"(https?:)?//", address), f"{path.relative_to(built)} fetches {address}"
    for path in [*built.rglob("*.css"), *built.rglob("*.js")]:
        text = path.read_text(encoding="utf-8")
        fetches = r"""(?:url\(|@import\s|\bfetch\(|\bimport\()\s*['"]?((?:https?:)?//[^'")\s]+)"""
        assert not re.findall(fetches, text), path.relative_to(built)


def test_links_inside_of_the_site_lead_to_pages_and_anchors(built: Path, html: dict[Path, Page]) -> None:
    followed = 0
    for path, page in html.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.is_file(), f"{path.relative_to(built)}: {address}"
            if parts.fragment and there in html:
                assert unquote(parts.fragment) in html[there].anchors, f"{path.relative_to(built)}: {address}"
            followed += 1
    assert followed > 1000


def test_every_page_is_in_the_tables_of_the_readme_and_in_the_navigation(
    built: Path, html: dict[Path, Page]
) -> None:
    readme = (site.ROOT / "README.md").read_text(encoding="utf-8")
    listed = [page for _, inside in site.navigation(readme) for page in inside]
    assert len(listed) == len(set(listed))
    top = {page for page in site.pages(site.ROOT) if not page.startswith("benchmarks/")}
    assert {page for page in listed if not page.startswith("benchmarks/")} == top
    linked = {(built / urlsplit(link).path).resolve() for link in html[built / "index.html"].links}
    for page in listed:
        assert (built / page).with_suffix(".html") in linked


@pytest.mark.skipif(chromium() is None, reason="there is no Chromium here (Debian: apt install chromium)")
def test_the_site_can_be_searched_without_a_server_and_asks_nobody_else(built: Path) -> None:
    asked: list[str] = []
    with browser() as chrome:
        page = chrome.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{built.as_uri()}/search.html?q=autovacuum")
        page.wait_for_selector("#search-results li a")
        page.click("#search-results li a:has-text('Operations')")
        page.wait_for_selector("h2:has-text('Autovacuum')")
    assert asked
    assert all(url.startswith("file:") for url in asked), asked


@pytest.mark.parametrize("broken", ["[gone](gone.md)", "[gone](b.md#gone)", "![gone](gone.png)"])
def test_a_link_that_leads_nowhere_fails_the_build(broken: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "LICENSE").touch()
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n")
    rows = "| [a](docs/a.md) | |\n| [b](docs/b.md) | |\n"
    (tmp_path / "README.md").write_text(f"# All\n\n## Read on\n\n### Use it\n\n| | |\n|---|---|\n{rows}")
    (tmp_path / "docs/a.md").write_text("# A\n\n[b](b.md#there)\n")
    (tmp_path / "docs/b.md").write_text("# B\n\n## There\n\n[changes](../CHANGELOG.md)\n")
    page = tmp_path / "docs/a.md"
    if "gone.md" in broken:  # once is enough
        assert site.build(tmp_path / "good", tmp_path) == 0
    page.write_text(page.read_text() + f"\n{broken}\n")
    assert site.build(tmp_path / "bad", tmp_path) != 0


def test_links_to_other_hosts_are_listed_and_encrypted() -> None:
    found = site.external_links()
    assert "README.md" not in found
    assert all(address.startswith("https://") for address in found)
    assert found["https://www.rfc-editor.org/rfc/rfc7396"] == ["docs/python.md"]

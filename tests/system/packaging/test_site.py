"""The documents as a site: built with no warning, every link leads somewhere, and no page asks another host for anything."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.checkout import ROOT, TOOLS


class Page(HTMLParser):
    """What one page refers to: `links` are followed when somebody clicks, `resources` when the page is shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.classes.update((given.get("class") or "").split())
        self.anchors.update(filter(None, [given.get("id"), given.get("name")]))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif given.get("src") or (tag == "link" and given.get("href")):
            self.resources.append(given.get("src") or given["href"])


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def source(tmp_path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    return tmp_path


@pytest.fixture
def site(source) -> dict[Path, Page]:
    done = build(source)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in (source / "build" / "site").rglob("*.html")}


def test_every_document_is_a_page_that_can_be_read_offline(site, source):
    folder = source / "build" / "site"
    expected = {path.relative_to(source / "docs").with_suffix(".html") for path in (source / "docs").rglob("*.md")}
    renamed = {path.with_name("index.html") if path.stem == "README" else path for path in expected}
    assert renamed <= {path.relative_to(folder) for path in site}
    for path, page in site.items():
        assert "mermaid" not in page.classes, "diagrams are drawn by a script of another host"
        for target in page.resources:
            address = urlsplit(target)
            assert (address.scheme, address.netloc) == ("", ""), f"{path.name} fetches {target}"
    for style in folder.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "url(http" not in text, style
        assert "url(//" not in text, style


def test_every_link_of_the_site_leads_somewhere(site):
    checked = 0
    for path, page in site.items():
        if path.name == "404.html":
            continue  # it may be served from any folder
        for target in page.links:
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            file = (path.parent / unquote(address.path)).resolve() if address.path else path
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{path.name}: {target}"
            if address.fragment:
                assert address.fragment in site[file].anchors, f"{path.name}: {target}"
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("link", ["nothing.md", "glossary.md#nothing"])
def test_a_broken_link_fails_the_build(source, link):
    with (source / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n[broken]({link})\n")
    assert build(source).returncode != 0

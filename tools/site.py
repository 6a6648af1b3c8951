"""Build the documentation site from README.md and docs/: ``make site``.

The pages are plain Markdown, as one reads them in the repository. This stages a copy of them, with the
README as the first page and its tables of documents as the navigation, and has Sphinx make HTML of it. Any
warning (a link or an anchor that leads nowhere, a page that is in no table) fails the build. The site fetches
nothing from other hosts.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pgfifo

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
NOT_PAGES = ("sql.preface.md",)  # the beginning of sql.md, which is made of it

# A link outside of code: [text](target). Code spans and blocks are left alone by `outside_code`.
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)

# Output of commands is wide; the theme's column is not.
STYLE = ".content { width: 64em; }\n"

CONF = """\
project = "pgfifo"
copyright = "the pgfifo authors"
version = release = {version!r}
extensions = ["myst_parser"]
myst_heading_anchors = 5
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = "pgfifo"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "text"
nitpicky = True
"""


def pages(root: Path) -> list[str]:
    """Return the pages of the site, relative to docs/."""
    found = sorted(path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md"))
    return [page for page in found if page not in NOT_PAGES]


def outside_code(text: str, change: "re.Pattern[str]", to: str) -> str:
    """Substitute in what is not code."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change.sub(to, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change.sub(to, text[end:])])


def navigation(readme: str) -> list[tuple[str, list[str]]]:
    """Return the parts of the navigation and their pages: the tables under "Read on" in the README."""
    tables = readme.partition("\n## Read on\n")[2]
    parts = re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", tables, re.MULTILINE | re.DOTALL)
    return [
        (name, re.findall(r"^\| \[[^]]+\]\(docs/([^)#]+\.md)\)", rows, re.MULTILINE)) for name, rows in parts
    ]


def toctree(caption: str, entries: list[str]) -> str:
    """Return a part of the navigation in MyST's words."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])


def stage(root: Path, folder: Path) -> None:
    """Copy the pages, with what only Sphinx needs."""
    shutil.copytree(root / "docs", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_PAGES))
    for name in ("CHANGELOG.md", "LICENSE"):
        shutil.copy(root / name, folder)
    readme = (root / "README.md").read_text(encoding="utf-8")
    trees = [
        toctree(part, [page.removesuffix(".md") for page in inside]) for part, inside in navigation(readme)
    ]
    index = outside_code(readme, re.compile(r"(\]\(|src=\"|srcset=\")docs/"), r"\1") + "".join(trees)
    (folder / "index.md").write_text(index + toctree("Project", ["CHANGELOG"]), encoding="utf-8")
    for page in pages(root):
        text = (folder / page).read_text(encoding="utf-8")
        text = outside_code(text, re.compile(r"\]\((?:\.\./)+(CHANGELOG\.md|LICENSE)\)"), r"](/\1)")
        text = outside_code(text, re.compile(r"\]\((?:\.\./)+README\.md"), "](/index.md")
        text = re.sub(
            r"^```mermaid$", "```text", text, flags=re.MULTILINE
        )  # would be drawn by a script from elsewhere
        text = re.sub(r"^```(\w+) .*$", r"```\1", text, flags=re.MULTILINE)  # what tests are told of a block
        text = re.sub(r"^```sql$", "```postgresql", text, flags=re.MULTILINE)  # it knows $$
        if page == "benchmarks/README.md":
            text += toctree("", ["*", "soak/soak"]).replace(":caption: \n", ":glob:\n")
        (folder / page).write_text(text, encoding="utf-8")
    (folder / "_static").mkdir()
    (folder / "_static/site.css").write_text(STYLE, encoding="utf-8")
    (folder / "conf.py").write_text(CONF.format(version=pgfifo.__version__), encoding="utf-8")


def external_links(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the addresses that the pages lead to elsewhere, with the pages."""
    found: dict[str, list[str]] = {}
    for page in ("README.md", "CHANGELOG.md", *(f"docs/{page}" for page in pages(root))):
        prose = CODE.sub("", (root / page).read_text(encoding="utf-8"))
        for address in sorted({target for _, target, _ in LINK.findall(prose) if "://" in target}):
            found.setdefault(address, []).append(page)
    return dict(sorted(found.items()))


def build(out: Path, root: Path = ROOT) -> int:
    """Build the site of a checkout; return Sphinx's exit status."""
    with tempfile.TemporaryDirectory(prefix="pgfifo-site-") as temporary:
        source = Path(temporary) / "source"
        stage(root, source)
        arguments = ["-q", "-W", "--keep-going", "-E", "-b", "html", "-d", f"{temporary}/doctrees"]
        return subprocess.run(
            [sys.executable, "-m", "sphinx", *arguments, source, out], check=False
        ).returncode


def main() -> None:
    """Build it, or list the links that lead elsewhere."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=SITE, help="the folder to write to")
    parser.add_argument(
        "--external", action="store_true", help="only list the links that lead to other hosts"
    )
    options = parser.parse_args()
    if options.external:
        for address, where in external_links().items():
            print(address, "in", ", ".join(where))
        return
    shutil.rmtree(options.out, ignore_errors=True)
    if failed := build(options.out):
        sys.exit(failed)
    print(f"{options.out}/index.html")


if __name__ == "__main__":
    main()

"""What mkdocs is told beyond mkdocs.yml: README.md is the home page, links to code become names,
nothing is loaded from another host, and the pages of docs/schemes stand in the navigation by
themselves.

The pages are written to be read in the repository, too, where links to source files and to
README.md lead somewhere; on the site there are only the pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the tests read the navigation where mkdocs is not installed
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

# The theme's search loads it where pages are opened as files; iframe-worker.js does the same.
_SHIM, _OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "iframe-worker.js"
HOME, README = "index.md", "README.md"
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the schemes to the navigation."""
    config.nav = with_schemes(config.nav or [], Path(config.docs_dir))
    return config


def with_schemes(nav: list[Any], docs: Path) -> list[Any]:
    """Return a navigation whose entry "Schemes" goes on with all other pages of that folder.

    They stand in the order of the overview, then those that it does not name; each is called as it
    is headed, up to a colon.
    """
    folder = docs / "schemes"
    overview = (folder / README).read_text(encoding="utf-8")
    named = re.findall(r"^\| \[`\w+`\]\(([\w-]+)\.md\)", overview, re.MULTILINE)
    others = sorted(path.stem for path in folder.glob("*.md") if path.name != README)
    pages = [
        {_title(folder / f"{page}.md"): f"schemes/{page}.md"}
        for page in dict.fromkeys([*named, *others])
    ]
    return [_with_pages(entry, pages) for entry in nav]


def _with_pages(entry: Any, pages: list[Any]) -> Any:
    """Return an entry of the navigation with the pages under "Schemes", however deep that is."""
    if not isinstance(entry, dict):
        return entry
    return {
        name: [_with_pages(each, pages) for each in below] + (pages if name == "Schemes" else [])
        if isinstance(below, list)
        else below
        for name, below in entry.items()
    }


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(":")[0]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as the home page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, HOME, abs_src_path=_root(config) + "/" + README))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Point links at pages of the site; where there is none, keep the text alone."""
    uri = page.file.src_uri
    folder = posixpath.dirname("README.md" if uri == HOME else f"docs/{uri}")
    known = set(files.src_uris)

    def site_link(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match["target"].partition("#")
        if not target or ":" in target:
            return match[0]
        found = _on_site(posixpath.normpath(posixpath.join(folder, target)), known)
        if found is None:
            return match["text"]
        relative = posixpath.relpath(found, posixpath.dirname(uri) or ".")
        return f"{match['image']}[{match['text']}]({relative}{hash_sign}{anchor})"

    return _LINK.sub(site_link, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Load the search's stand-in for workers from the site itself."""
    own = posixpath.relpath(_OWN_SHIM, posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace(_SHIM, own)


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same in the page for addresses that there are not."""
    return output_content.replace(_SHIM, _OWN_SHIM)


def _on_site(path: str, known: set[str]) -> str | None:
    """Return the page or file of the site for a path in the repository."""
    if path == README:
        return HOME
    inside = path.removeprefix("docs/")
    return inside if path != inside and inside in known else None


def _root(config: MkDocsConfig) -> str:
    return posixpath.dirname(config.config_file_path)

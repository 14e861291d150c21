"""mkdocs hook: adds pages from outside docs/ to the site and rewrites links to and from them.

In the repository every link is relative to the page's own place.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/README.md": "figures.md",
    "recipes/README.md": "recipes.md",
}
"""Path in the repository: name in the site."""
_HOMES = {name: path for path, name in PAGES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links relative to the site instead of the repository."""
    home = posixpath.dirname(_HOMES.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(home, link["path"]))
        return f"]({PAGES.get(target, target.removeprefix('docs/'))}{link['place']})"

    return re.sub(r"\]\((?!\w+:)(?P<path>[^)#]+)(?P<place>(?:#[^)]*)?)\)", moved, markdown)

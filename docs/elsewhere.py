"""Pages of the site that lie outside of docs/, for mkdocs: the links between all stay right.

In the repository they are read where they lie, so every link is written as it is right there.
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
"""Paths in the repository, and what the pages are called in the site."""
_HOMES = {name: path for path, name in PAGES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them: from where the page lies to where its target lies."""
    home = posixpath.dirname(_HOMES.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(home, link["path"]))
        return f"]({PAGES.get(target, target.removeprefix('docs/'))}{link['place']})"

    return re.sub(r"\]\((?!\w+:)(?P<path>[^)#]+)(?P<place>(?:#[^)]*)?)\)", moved, markdown)

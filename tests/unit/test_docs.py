"""The documentation: its site, and what it links to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_the_site(tmp_path: Path) -> None:
    """Each page is in the navigation, and each link and anchor in it leads somewhere."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        build,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= {
        page.parent.name for page in tmp_path.glob("*/index.html")
    }


def test_links_to_files() -> None:
    """Also those that lead out of docs/, which the site does not have."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = {
        (page, link)
        for page in pages
        for link in LINK.findall(page.read_text())
        if "://" not in link
    }
    assert len(links) > 50
    assert [link for page, link in links if not (page.parent / link).exists()] == []

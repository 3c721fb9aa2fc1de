"""Static HTML of the guide and the API reference: `sphinx-build .sphinx html`.

The pages are those of `lmm-gpu guide`: README.md as the first page, lmm_gpu/guide/*.md, the reference that is generated
from the docstrings, the benchmarks and CONTRIBUTING.md. They are copied beside this file, where git ignores them.
"""

import re
import shutil
from pathlib import Path

import lmm_gpu
from lmm_gpu.cli.guide import FOLDER, TOPICS, page

ROOT = Path(__file__).parents[1]
PAGES = Path(__file__).parent
#: Pages outside the guide, by the name of their HTML page.
OTHERS = {
    "index": ROOT / "README.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "benchmarks": ROOT / "benchmarks" / "README.md",
}
#: Links of the repository, and the same in the folder of pages.
LINKS = {
    "lmm_gpu/guide/": "",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "results/growth.png": "growth.png",
}
_FENCE = re.compile(r"^```(python|sh|r|text|pycon)\b[^\n]*$", re.MULTILINE)


def staged(text: str) -> str:
    """Text of a page as Sphinx reads it: links between the pages, and fences with the language alone."""
    text = _FENCE.sub(r"```\1", text)
    return re.sub(r"\]\(([^)]+)\)|srcset=\"([^\"]+)\"|src=\"([^\"]+)\"", _relinked, text)


def _relinked(match: re.Match[str]) -> str:
    found = match[0]
    for before, after in LINKS.items():
        found = found.replace(before, after)
    return found


def stage() -> None:
    """Write the pages into the folder that Sphinx reads."""
    for old in PAGES.glob("*.md"):
        old.unlink()
    texts = {name: path.read_text(encoding="utf-8") for name, path in OTHERS.items()} | {
        one: page(one) for one in TOPICS
    }
    texts["index"] += "\n".join(["\n```{toctree}", ":hidden:", *TOPICS, "benchmarks", "contributing", "```\n"])
    for name, text in texts.items():
        (PAGES / f"{name}.md").write_text(staged(text), encoding="utf-8")
    shutil.copy(ROOT / "benchmarks/results/growth.png", PAGES)


stage()

project, author, copyright = "lmm_gpu", "the lmm_gpu developers", "2026, the lmm_gpu developers"
version = release = lmm_gpu.__version__
extensions = ["myst_parser"]
include_patterns = ["*.md"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"lmm_gpu {version}"
html_extra_path = [str(path) for path in FOLDER.glob("overview-*.svg")]
html_show_sourcelink = False

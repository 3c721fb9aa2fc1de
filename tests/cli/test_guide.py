"""Every block of code in README.md and in the guide runs and prints the output shown.

A fence says what it holds: `python` and `sh` are run, in the order of the page, in a folder of their own that holds
the cells that the first block of start.md makes; `text` after a block is all that it prints (with `...` for what
differs between machines). `python warns` warns, all others do not; `sh refused` ends with exit code 2. `no-run` marks
what needs a cluster, a GPU, R or a package registry; how many of these a page may have is counted here.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("typer", reason='the guide uses all of: pip install ".[all]"')
pytest.importorskip("rich", reason='the guide uses all of: pip install ".[all]"')
pytest.importorskip("anndata", reason='the guide uses all of: pip install ".[all]"')
pytest.importorskip("matplotlib", reason='the guide uses all of: pip install ".[all]"')
pytest.importorskip("adjustText", reason='the guide uses all of: pip install ".[all]"')
pytest.importorskip("dask", reason='the guide uses all of: pip install ".[all]"')
pytest.importorskip("distributed", reason='the guide uses all of: pip install ".[all]"')

from paths import ROOT

from lmm_gpu.cli import app
from lmm_gpu.cli.guide import FOLDER, TOPICS, page

PAGES = {"README": ROOT / "README.md"} | {topic: FOLDER / f"{topic}.md" for topic in TOPICS if topic != "api"}
#: Blocks of each page that are not run here.
NOT_RUN = {"README": 1, "lme4": 1, "flashmm": 1, "scanpy": 2, "gpu": 5, "distributed": 3}
KINDS = {"python", "python warns", "sh", "sh refused", "text", "python no-run", "sh no-run", "r no-run"}
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SCANPY = "the page uses scanpy and decoupler: pip install '.[test]'"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page and its line."""

    kind: str
    code: str
    line: int
    output: str | None = None


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a page, each with the `text` block that follows as its output."""
    found: list[Block] = []
    for match in FENCE.finditer(text):
        block = Block(match["kind"], match["code"], text[: match.start()].count("\n") + 2)
        if block.kind == "text":
            assert found and found[-1].output is None, f"line {block.line}: output of no block"
            found[-1] = Block(found[-1].kind, found[-1].code, found[-1].line, block.code)
        else:
            found.append(block)
    return found


def run_python(block: Block, namespace: dict, name: str) -> str:
    code = compile("\n" * (block.line - 1) + block.code, str(PAGES.get(name, name)), "exec")
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        exec(code, namespace)
    # dask warns if another program has the port of its dashboard
    ours = [str(one.message) for one in said if one.category is UserWarning and "Port 8787" not in str(one.message)]
    assert bool(ours) == (block.kind == "python warns"), f"{name}, line {block.line}, warns: {ours}"
    return printed.getvalue()


def run_shell(block: Block, folder: Path, name: str) -> str:
    commands = folder / "bin" / "lmm-gpu"
    commands.parent.mkdir(exist_ok=True)
    commands.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lmm_gpu "$@"\n')
    commands.chmod(0o755)
    env = os.environ | {"PATH": f"{commands.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    shell = ["bash", "-euo", "pipefail", "-c", block.code]
    done = subprocess.run(shell, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    wanted = 2 if block.kind == "sh refused" else 0
    assert done.returncode == wanted, f"{name}, line {block.line}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout + done.stderr


def run_page(name: str, text: str, folder: Path) -> int:
    """Run the blocks of a page in `folder`; return the number of blocks that were not run."""
    namespace, skipped, checker = {"__name__": "page"}, 0, doctest.OutputChecker()
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block in blocks_of(text):
        assert block.kind in KINDS, f"{name}, line {block.line}: ```{block.kind}, wanted one of {sorted(KINDS)}"
        if block.kind.endswith("no-run"):
            skipped += 1
            continue
        python = block.kind.startswith("python")
        got = run_python(block, namespace, name) if python else run_shell(block, folder, name)
        if block.output is not None:
            message = f"{name}, line {block.line}, wanted\n{block.output}\ngot\n{got}"
            assert checker.check_output(block.output, got, options), message
    return skipped


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """A folder with the cells file of the guide."""
    folder = tmp_path_factory.mktemp("guide")
    with contextlib.chdir(folder):
        run_python(blocks_of(page("start"))[0], {}, "start")
    return folder


@pytest.fixture
def folder(cells, tmp_path, monkeypatch) -> Path:
    shutil.copytree(cells, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.parametrize("name", PAGES)
def test_code_of_a_page_runs_and_prints_its_output(name, folder):
    if name == "scanpy":
        pytest.importorskip("scanpy", reason=SCANPY)
        pytest.importorskip("decoupler", reason=SCANPY)
    assert run_page(name, PAGES[name].read_text(encoding="utf-8"), folder) == NOT_RUN.get(name, 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nimport lmm_gpu\nlmm_gpu.fitt()\n```", "fitt"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```", "line 2, wanted"),
        ("```python\nimport warnings\nwarnings.warn('few donors')\n```", "few donors"),
        ("```python warns\nprint(1)\n```", "warns"),
        ("```sh\nlmm-gpu fti cells.h5ad\n```", "No such command 'fti'"),
        ("```sh refused\ntrue\n```", "exit code 0"),
        ("```bash\ntrue\n```", "wanted one of"),
        ("```\ntrue\n```", "wanted one of"),
    ],
)
def test_wrong_pages_fail(text, complaint, folder):
    with pytest.raises((AssertionError, AttributeError), match=re.escape(complaint)):
        run_page("wrong", text, folder)


def test_blocks_that_are_not_run_are_counted(folder):
    assert run_page("page", "```sh no-run\nfalse\n```\n\n```r no-run\nstop()\n```", folder) == 2


def test_links_between_pages_exist():
    for name, path in PAGES.items():
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{name} links to {link}"


# --- the command ----------------------------------------------------------------------------------


def called(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        app.main(["guide", *arguments])
    code = end.value.code
    return int(code or 0), *capsys.readouterr()


def test_every_file_is_a_topic_with_a_title():
    assert sorted({*TOPICS} - {"api"}) == sorted(path.stem for path in FOLDER.glob("*.md"))
    assert all(re.match(r"# \w", page(topic)) for topic in TOPICS)


def test_topics_are_listed_with_their_titles(capsys):
    code, out, _ = called(capsys)
    assert code == 0
    for topic in TOPICS:
        title = page(topic).splitlines()[0].removeprefix("# ")
        assert re.search(rf"{topic}\b.*{re.escape(title)}", out), topic


def test_piped_page_is_markdown(capsys):
    assert called(capsys, "df") == (0, page("df"), "")


def test_page_is_formatted_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    code, out, _ = called(capsys, "df")
    assert code == 0 and "\x1b[" in out and "# Choosing" not in out and "Choosing degrees of freedom" in out


@pytest.mark.parametrize(("topic", "hint"), [("dff", "df"), ("scampy", "scanpy"), ("zebra", "start, worked")])
def test_unknown_topic_is_refused_with_suggestions(topic, hint, capsys):
    code, out, err = called(capsys, topic)
    assert code == 2 and not out and hint in err and len(err.splitlines()) == 1


# --- the API reference ----------------------------------------------------------------------------


def test_reference_has_every_public_name_with_its_parameters():
    import lmm_gpu

    text = page("api")
    titles = re.findall(r"^### `([A-Za-z_.0-9]+)", text, re.MULTILINE)
    assert len(titles) == len(set(titles))
    wanted = {name for name in lmm_gpu.__all__ if name not in ("__version__", "pl", "tl")}
    wanted |= {f"pl.{name}" for name in lmm_gpu.pl.__all__} | {f"tl.{name}" for name in lmm_gpu.tl.__all__}
    wanted |= {"LMMFit.test", "LMMFit.variance_partition", "LMMFit.theta", "SummaryStats.load"}
    assert wanted <= set(titles)
    for name in ("bounds", "cells", "checkpoint"):
        assert re.search(rf"^- `{name}` : ", text, re.MULTILINE), name
    assert "```pycon\n>>> " in text and not re.search(r"^-{4,}$", text, re.MULTILINE)

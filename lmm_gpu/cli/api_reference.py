"""API reference in Markdown, generated from the docstrings of the public names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import lmm_gpu

#: Sections of the page: title and public names; what is left follows under "More".
_SECTIONS = {
    "Fitting and testing": ("fit", "summarize", "LMMFit", "SummaryStats", "Status", "report"),
    "AnnData": ("tl", "to_wide"),
    "Pseudobulk and bulk data": ("pseudobulk", "voom", "dream", "tmm_factors"),
    "Plots": ("pl",),
    "FLASHMM's functions": ("lmmfit", "lmm", "sslmm", "lmmtest", "contrast_matrix", "flashmm", "simuRNAseq"),
}
#: A section title of numpydoc: a line and its underline.
_TITLE = re.compile(r"^([A-Z][A-Za-z ]+)\n-+$", re.MULTILINE)


def api_reference() -> str:
    """Return the reference of all public functions, classes and methods as a page of Markdown."""
    parts = [
        "# API reference",
        f"Generated from the docstrings of lmm_gpu {lmm_gpu.__version__}; `help(lmm_gpu.fit)` shows the same. Arrays: "
        "n cells, m genes, p fixed effects, q random effects, k variance components.",
    ]
    left = [name for name in lmm_gpu.__all__ if not name.startswith("_")]
    for title, names in _SECTIONS.items():
        parts.append(f"## {title}")
        for name in names:
            if name in left:
                left.remove(name)
                parts += _entries(name, getattr(lmm_gpu, name))
    if left:
        parts.append("## More")
        for name in left:
            parts += _entries(name, getattr(lmm_gpu, name))
    return "\n\n".join(parts) + "\n"


def _entries(name: str, found: Any) -> Iterator[str]:
    """Entries of a function, of a class with its members, or of the functions of a module."""
    if inspect.ismodule(found):
        for inner in found.__all__:
            yield from _entries(f"{name}.{inner}", getattr(found, inner))
        return
    yield _entry(name, found)
    if inspect.isclass(found):
        for inner in sorted(one for one in vars(found) | _inherited(found) if not one.startswith("_")):
            member = inspect.getattr_static(found, inner)
            if isinstance(member, property):
                yield _entry(f"{name}.{inner}", member.fget, signature=False)
            elif inspect.isfunction(member) or isinstance(member, classmethod | staticmethod):
                yield _entry(f"{name}.{inner}", getattr(found, inner))


def _inherited(found: type) -> dict[str, Any]:
    """Members that a class inherits from other classes of the package."""
    members: dict[str, Any] = {}
    for base in found.__mro__[1:]:
        if base.__module__.startswith("lmm_gpu"):
            members |= vars(base)
    return members


def _entry(name: str, found: Any, *, signature: bool = True) -> str:
    doc = inspect.getdoc(found) or ""
    head, *sections = _TITLE.split(doc)
    pairs = list(zip(sections[::2], sections[1::2], strict=True))
    body = "\n\n".join([head.strip(), *(f"**{title}**\n\n{_section(title, text)}" for title, text in pairs)])
    shown = f"`{name}{_signature(found)}`" if signature else f"`{name}`"
    return f"### {shown}\n\n{body.strip()}"


def _signature(found: Any) -> str:
    try:
        signature = inspect.signature(found)
        bare = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
        return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    except (TypeError, ValueError):
        return ""


def _section(title: str, text: str) -> str:
    """Text of a section: examples as code, lists of parameters as Markdown lists."""
    if title == "Examples":
        return f"```pycon\n{text.strip()}\n```"
    if title not in ("Parameters", "Returns", "Raises", "Warns", "Attributes", "See Also"):
        return text.strip()
    lines = []
    for line in text.strip("\n").splitlines():
        lines.append(line.strip() if line.startswith("    ") else _item(line))
    return re.sub(r"\n([^-\n])", r"\n  \1", "\n".join(lines))


def _item(line: str) -> str:
    """List item of a parameter or a returned value; its type keeps the backquotes of the docstring."""
    name, colon, kind = line.partition(" : ")
    if not line.strip():
        return ""
    return f"- `{name}` : {kind}" if colon else f"- {line}" if "`" in line else f"- `{line}`"

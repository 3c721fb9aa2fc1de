"""Summary statistics as arrays, labels and attributes of a file, and back."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.arrays import indices, to_numpy
from ..backend.late_imports import scipy
from ..backend.sparse import is_sparse
from ..design.terms import terms_from_json, terms_to_json
from ..io.archive import Content
from .centring import Centred
from .within import Within

if TYPE_CHECKING:
    from .summary_stats import SummaryStats

_ARRAYS = ("XX", "XY", "ZX", "ZY", "ZZ", "Ynorm")
_LABELS = ("features", "fixed_names", "random_names", "component_names")
_ATTRIBUTES = ("n", "formula", "transform")
_CENTRED, _WITHIN = "centred/", "within/"
_SPARSE, _COMPRESSED = "sparse_ZZ/", ("data", "indices", "indptr")
_ABOUT_CENTRE = ("centre", "constant", "XY", "ZY", "Ynorm", "Ysum")


def to_content(ss: SummaryStats) -> Content:
    """Arrays, labels and attributes of statistics."""
    arrays = {name: to_numpy(getattr(ss, name)) for name in _ARRAYS if not is_sparse(getattr(ss, name))}
    if is_sparse(ss.ZZ):
        ZZ = ss.ZZ.tocsr()
        arrays |= {f"{_SPARSE}{name}": getattr(ZZ, name).astype(float) for name in _COMPRESSED}
    arrays["d"] = to_numpy(indices(ss.d, arrays["XX"]))
    if ss.Ysum is not None:
        arrays["Ysum"] = to_numpy(ss.Ysum)
    if ss.centred is not None:
        arrays |= {f"{_CENTRED}{name}": to_numpy(getattr(ss.centred, name)) for name in _ABOUT_CENTRE}
    if ss.within is not None:
        arrays |= {f"{_WITHIN}{name}": to_numpy(getattr(ss.within, name)) for name in ("centre", "XY", "ZY", "Ynorm")}
    labels = {name: list(getattr(ss, name)) for name in _LABELS}
    attributes: dict[str, Any] = {name: getattr(ss, name) for name in (*_ATTRIBUTES, "fingerprint")}
    attributes["terms"] = ss.terms and terms_to_json(ss.terms)
    attributes["random_terms"] = ss.random_terms and json.dumps(ss.random_terms)
    attributes["parts"] = json.dumps(ss.parts) if ss.parts else None
    if ss.total_weight is not None:
        attributes |= {"total_weight": ss.total_weight, "log_weights": ss.log_weights}
    return arrays, labels, attributes


def fields_of(content: Content) -> dict[str, Any]:
    """Fields of `SummaryStats` from the content of a file, which may hold more."""
    arrays, labels, attributes = content
    fields: dict[str, Any] = {name: arrays[name] for name in _ARRAYS if name in arrays or name != "ZZ"}
    if "ZZ" not in fields and f"{_SPARSE}data" in arrays:
        data, places, starts = (arrays[f"{_SPARSE}{name}"] for name in _COMPRESSED)
        shape = (len(labels["random_names"]),) * 2
        fields["ZZ"] = scipy.sparse.csr_array((data, places.astype(np.int64), starts.astype(np.int64)), shape=shape)
    fields |= {name: tuple(labels[name]) for name in _LABELS}
    fields |= {name: attributes.get(name) for name in _ATTRIBUTES}
    inside = {name.removeprefix(_WITHIN): A for name, A in arrays.items() if name.startswith(_WITHIN)}
    about = {name.removeprefix(_CENTRED): A for name, A in arrays.items() if name.startswith(_CENTRED)}
    random_terms = json.loads(attributes.get("random_terms") or "[]")
    return fields | {
        "d": tuple(arrays["d"].tolist()),
        "Ysum": arrays.get("Ysum"),
        "centred": Centred(**about) if about else None,
        "within": Within(**inside, Ysum=None) if inside else None,
        "terms": terms_from_json(attributes.get("terms") or "[]") or None,
        "random_terms": tuple((name, tuple(effects)) for name, effects in random_terms) or None,
        "parts": tuple(json.loads(attributes.get("parts") or "[]")),
        "total_weight": attributes.get("total_weight"),
        "log_weights": attributes.get("log_weights", 0.0),
    }


def fingerprint(ss: SummaryStats) -> str:
    """Short hash of the model: the same for statistics that may be added."""
    model = (ss.formula, ss.fixed_names, ss.component_names, ss.transform)
    return hashlib.sha256(json.dumps(model).encode()).hexdigest()[:12]


def identity_of(ss: SummaryStats) -> str:
    """Short hash of the sums themselves: the same for the same cells, whatever the order of genes and levels."""
    ends = np.cumsum(ss.d).tolist()
    levels = [sorted(ss.random_names[end - width : end]) for end, width in zip(ends, ss.d, strict=True)]
    digest = hashlib.sha256(json.dumps([ss.n, levels]).encode())
    for A in (np.diagonal(to_numpy(ss.XX)), to_numpy(ss.XX).sum(axis=0), to_numpy(ss.ZX).sum(axis=1), ss.Ynorm):
        digest.update(np.sort(to_numpy(A)).astype("<f8").tobytes())
    return digest.hexdigest()[:16]


def joined_parts(a: SummaryStats, b: SummaryStats) -> tuple[str, ...]:
    """Identities of the parts of both statistics.

    Raises
    ------
    ValueError
        If a part is in both: its cells would be counted twice.
    """
    ours, theirs = (ss.parts or ((identity_of(ss),) if ss.n else ()) for ss in (a, b))
    both = sorted(set(ours) & set(theirs))
    if both:
        raise ValueError(
            f"cannot add summary statistics: {len(both)} part(s) are on both sides ({', '.join(both[:3])}), so that "
            "their cells would count twice; add each part once"
        )
    return (*ours, *theirs)

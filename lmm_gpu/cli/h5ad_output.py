"""Write AnnData to .h5ad with a mark by which lmm-gpu recognises its own files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..backend.optional import require
from ..io.files import replacing
from .output_files import MARK

if TYPE_CHECKING:
    from anndata import AnnData


def write_h5ad(adata: AnnData, path: Path, command: str) -> None:
    """Write `adata`, replacing the file only once all of it is written.

    Parameters
    ----------
    adata : AnnData
    path : Path
    command : str
        Command that writes, such as "demo".

    Raises
    ------
    ValueError
        If h5py is not installed, or `path` is no regular file.
    """
    h5py = require("h5py", "writing .h5ad")
    with replacing(path) as part:
        adata.write_h5ad(part, compression="lzf")
        with h5py.File(part, "r+") as file:
            file.attrs[MARK] = f"lmm_gpu {command}"

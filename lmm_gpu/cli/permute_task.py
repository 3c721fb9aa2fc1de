"""Task of the command `permute`: permutation p-values of a saved fit, and their plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import pl
from ..reporting.canvas import check_plot_path
from .contrast_options import contrasts_of, with_names_of_run
from .file_tasks import write_table_of_fit
from .output_files import check_output

if TYPE_CHECKING:
    import pandas as pd

    from ..results.lmm_fit import LMMFit
    from ..results.permutations import Permutation


def write_permutation(
    fitted: Path,
    contrast: str,
    path: Path,
    plot: Path | None,
    *,
    n: int,
    seed: int,
    df: str,
    strata: str | None,
    force: bool,
) -> tuple[dict[str, Any], str]:
    """Write the table of permutation p-values, and the plot if asked for; return a description and a text.

    Raises
    ------
    ValueError, OSError
        For anything that cannot be used; nothing is written then.
    """
    if plot is not None:
        check_plot_path(plot)
        check_output(plot, [fitted], force=force)
    kept: list[Permutation] = []

    def make(fit: LMMFit) -> pd.DataFrame:
        names = fit.summary.fixed_names
        hypothesis = contrasts_of(with_names_of_run([contrast], fitted, names), names)
        found = fit.permutation(hypothesis, n, seed, df=df, strata=_strata(strata))
        kept.append(found)
        return found.table

    write_table_of_fit(fitted, path, make, force=force)
    found, written = kept[0], [str(path)]
    if plot is not None:
        pl.save(pl.permutation(found), plot)
        written.append(str(plot))
    record = {"contrast": found.contrast, "df": df, "scheme": found.scheme, "relabellings": found.n}
    calibration = found.calibration.to_dict(orient="records")
    return record | {"calibration": calibration, "lambda": found.inflation, "written": written}, repr(found)


def _strata(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text == "none" else [name.strip() for name in text.split(",")]

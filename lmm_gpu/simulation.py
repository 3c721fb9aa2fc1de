"""Simulated single-cell counts: several samples, cell types and treatments, negative binomial within a cell type."""

from __future__ import annotations

import logging
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

logger = logging.getLogger("lmm_gpu")
_LARGEST_RATE = 2e9  # a Poisson count of this rate still fits 32 bits: its standard deviation is 45,000
_GENES_AT_ONCE = 64


@dataclass(frozen=True)
class SimulatedCounts:
    """Result of `simuRNAseq`; its parts are attributes, and items as in an R list.

    Attributes
    ----------
    ref_mean_dispersion : DataFrame, genes of the reference x (mu, dispersion)
        Moment estimates; the variance of a gene is mu + mu^2 / dispersion.
    metadata : DataFrame, cells x (sam, cls, trt, libsize)
        The simulated cells. The library sizes are those of the reference cells.
    counts : DataFrame of int32, genes x cells
        The simulated counts.
    DEgenes : DataFrame, differentially expressed genes x (gene, beta, cluster)
        Indexed by the rows of the genes in `counts`; beta is the log-fold change in that cell type.
    treatment : str
        The condition that is treated.
    """

    ref_mean_dispersion: pd.DataFrame
    metadata: pd.DataFrame
    counts: pd.DataFrame
    DEgenes: pd.DataFrame
    treatment: str

    def keys(self) -> list[str]:
        """Names of the parts."""
        return [field.name for field in fields(self)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(f"got {name!r}, expected one of {self.keys()}")
        return getattr(self, name)


def simuRNAseq(
    counts: Any = None,
    nGenes: int | None = None,
    nCells: int | None = None,
    metadata: pd.DataFrame | None = None,
    samples_nested: bool = True,
    nsam: int = 25,
    ncls: int = 10,
    ntrt: int = 2,
    trt: str | None = None,
    nDEgenes: int | None = None,
    nDEgenesType: Mapping[str, int] | Sequence[int] | None = None,
    pDEgenesType: Mapping[str, float] | Sequence[float] | None = None,
    adjust_library_size: bool = True,
    direction: str = "both",
    minbeta: float = 0.25,
    maxbeta: float = 1.0,
    var_randomeffects: float = 0.1,
    *,
    seed: int | np.random.Generator | None = None,
) -> SimulatedCounts:
    """Simulate multi-sample, multi-cell-type counts from the moments of a reference, as R's ``simuRNAseq``.

    A count of gene g in cell c of sample s is negative binomial with the gene's dispersion and a mean of
    ``mu[g] * exp(b[g, s] + beta[g]) * libsize[c] / (geometric mean of libsize)``: b is normal with variance
    `var_randomeffects`; beta is zero but for a differentially expressed (DE) gene in treated cells of its cell type.

    Parameters
    ----------
    counts : DataFrame, array or sparse matrix, genes x cells, optional
        Reference counts. By default they are drawn: negative binomial, mean and dispersion 1 + Poisson(1) by gene.
    nGenes, nCells : int, optional
        Numbers to simulate: by default each gene of the reference whose variance exceeds its mean, and each cell.
        Another number is sampled from those, with replacement if it is larger. `nGenes` is needed without
        `counts`, and `nCells` too without `metadata`.
    metadata : DataFrame, cells x (sam, cls, trt), optional
        Sample, cell type (cluster) and treatment of the reference cells; by default drawn uniformly. A fourth column,
        libsize, gives the library sizes; by default they are the totals of the cells in the reference.
    samples_nested : bool
        Assign each drawn sample to one treatment: one sample per treatment, and the others at random.
    nsam, ncls, ntrt : int
        Number of samples, cell types and treatments to draw when there is no `metadata`.
    trt : str, optional
        The condition that is treated; by default the last one in sorted order.
    nDEgenes : int, optional
        Number of DE genes; by default as many as cell types. They are the last genes.
    nDEgenesType : dict or sequence of int, optional
        Number of DE genes of each cell type, by name or in sorted order; overrides `nDEgenes`. By default drawn.
    pDEgenesType : dict or sequence of float, optional
        Proportion of the DE genes in each cell type for that draw; by default equal.
    adjust_library_size : bool
        False gives every cell the mean library size.
    direction : {"both", "up", "down"}
        Sign of the effects; "both" flips each drawn effect with probability one half.
    minbeta, maxbeta : float
        Bounds of the uniform log-fold changes: of one sign for "both", positive for "up", negative for "down".
    var_randomeffects : float
        Variance of the sample effects on the log scale.
    seed : int or Generator, optional
        The same seed gives the same counts.

    Returns
    -------
    SimulatedCounts
        Its parts are ref_mean_dispersion, metadata, counts, DEgenes and treatment.

    Raises
    ------
    ValueError
        If numbers or bounds are impossible, `counts` and `metadata` do not match, or no gene can be simulated.

    References
    ----------
    ``simuRNAseq`` of the R package FLASHMM, https://cran.r-project.org/package=FLASHMM

    Examples
    --------
    >>> dat = simuRNAseq(nGenes=50, nCells=1000, ncls=4, nDEgenes=6, seed=2412)
    >>> dat.counts.shape, len(dat["DEgenes"]), dat.treatment
    ((50, 1000), 6, 'B')
    """
    _check_effects(direction, minbeta, maxbeta, var_randomeffects)
    _check_whole(1, nGenes=nGenes, nCells=nCells, nsam=nsam, ncls=ncls, ntrt=ntrt)
    _check_whole(0, nDEgenes=nDEgenes)
    rng = np.random.default_rng(seed)
    reference = _reference(counts, metadata, nGenes, nCells, rng)
    moments, totals = _moments(reference)
    if metadata is None:
        metadata = _drawn_metadata(reference.columns, samples_nested, nsam, ncls, ntrt, rng)
    metadata = _with_library_size(_checked_metadata(metadata, reference.columns), totals, adjust_library_size)
    treatment = _treatment(metadata["trt"], trt)
    genes = _sampled(_overdispersed(moments), nGenes, rng)
    cells = _sampled(metadata, nCells, rng)
    per_type = _DE_genes_per_type(cells["cls"], nDEgenes, nDEgenesType, pDEgenesType, rng)
    DEgenes = _DE_genes(genes.index, per_type, direction, minbeta, maxbeta, rng)
    simulated = _draw_counts(genes, cells, DEgenes, treatment, var_randomeffects, rng)
    return SimulatedCounts(moments, cells, simulated, DEgenes, treatment)


def _check_effects(direction: str, minbeta: float, maxbeta: float, var_randomeffects: float) -> None:
    rules = {
        "both": (minbeta * maxbeta > 0, "both of one sign (direction='both' flips the drawn effects at random)"),
        "up": (minbeta > 0, "minbeta > 0 (direction='up')"),
        "down": (maxbeta < 0, "maxbeta < 0 (direction='down')"),
    }
    if direction not in rules:
        raise ValueError(f"got direction={direction!r}, expected 'both', 'up' or 'down'")
    for met, rule in ((minbeta < maxbeta, "minbeta < maxbeta"), rules[direction]):
        if not met:
            raise ValueError(f"got minbeta={minbeta} and maxbeta={maxbeta}, expected {rule}")
    if not 0 <= var_randomeffects < np.inf:
        raise ValueError(f"got var_randomeffects={var_randomeffects}, expected a variance: zero or more")


def _check_whole(at_least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and (not isinstance(number, (int, np.integer)) or number < at_least):
            raise ValueError(f"got {name}={number}, expected a whole number of at least {at_least}")


def _reference(
    counts: Any, metadata: pd.DataFrame | None, nGenes: int | None, nCells: int | None, rng: np.random.Generator
) -> pd.DataFrame:
    """Return the given counts, labelled, or draw reference counts."""
    if counts is None:
        n_cells = nCells if metadata is None else len(metadata)
        if nGenes is None or n_cells is None:
            raise ValueError(f"got no counts, nGenes={nGenes} and nCells={nCells}: pass both numbers, or the counts")
        counts = _drawn_reference(nGenes, n_cells, rng)
    if hasattr(counts, "toarray"):
        counts = counts.toarray()
    if np.ndim(counts) != 2 or np.shape(counts)[0] < 1 or np.shape(counts)[1] < 2:
        raise ValueError(f"got reference counts of shape {np.shape(counts)}, expected genes x cells, at least 1 x 2")
    if isinstance(counts, pd.DataFrame):
        return counts.set_axis(counts.index.astype(str)).set_axis(counts.columns.astype(str), axis=1)
    n_genes, n_cells = np.shape(counts)
    cells = [f"Cell{cell}" for cell in range(1, n_cells + 1)]
    if metadata is not None and len(metadata) == n_cells:
        cells = list(metadata.index.astype(str))
    return pd.DataFrame(counts, [f"Gene{gene}" for gene in range(1, n_genes + 1)], cells)


def _drawn_reference(n_genes: int, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Draw counts of mean and dispersion 1 + Poisson(1), gene by gene.

    All cells of a gene have the same distribution, so the numbers of cells with 0, 1, 2, ... counts are one multinomial
    draw, shuffled over the cells: exact, and three times as fast as one draw per cell.
    """
    means, dispersions = 1 + rng.poisson(1.0, (2, n_genes))
    values = np.arange(1024, dtype=np.int32)  # larger counts have probabilities below rounding error
    counts = np.empty((n_genes, n_cells), np.int32)
    for gene, (mean, dispersion) in enumerate(zip(means, dispersions, strict=True)):
        zero = dispersion / (dispersion + mean)
        ratios = (1 - zero) * (values[1:] + dispersion - 1) / values[1:]
        probabilities = zero**dispersion * np.cumprod(np.append(1.0, ratios))  # (1024,)
        counts[gene] = np.repeat(values, rng.multinomial(n_cells, probabilities))
    return rng.permuted(counts, axis=1, out=counts)


def _moments(reference: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the mean and dispersion of each gene, by the method of moments, and the total of each cell."""
    values = reference.to_numpy()
    means, variances, totals = np.empty(len(values)), np.empty(len(values)), np.zeros(values.shape[1])
    for start in range(0, len(values), _GENES_AT_ONCE):
        genes = slice(start, start + _GENES_AT_ONCE)
        block = values[genes].astype(np.float64)
        if not (np.isfinite(block).all() and block.min() >= 0):
            raise ValueError(
                "got reference counts that are negative, NaN or infinite, expected counts: raw, not scaled"
            )
        means[genes], variances[genes] = block.mean(axis=1), block.var(axis=1, ddof=1)
        totals += block.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # genes without overdispersion are removed later
        dispersions = means**2 / (variances - means)
    return pd.DataFrame({"mu": means, "dispersion": dispersions}, index=reference.index), totals


def _overdispersed(moments: pd.DataFrame) -> pd.DataFrame:
    """Return the genes that a negative binomial can describe: a positive mean, and a variance above it."""
    expressed = moments["mu"] > 0
    possible = expressed & (moments["dispersion"] > 0) & np.isfinite(moments["dispersion"])
    if not possible.any():
        raise ValueError(
            f"none of {len(moments)} reference genes has a variance above its mean: pass more cells or genes"
        )
    if not expressed.all():
        logger.info("removing %d gene(s) of zero mean", (~expressed).sum())
    if possible.sum() < expressed.sum():
        logger.info("removing %d gene(s) whose variance is not above the mean", expressed.sum() - possible.sum())
    kept: pd.DataFrame = moments[possible]
    return kept


def _drawn_metadata(
    cells: pd.Index, samples_nested: bool, nsam: int, ncls: int, ntrt: int, rng: np.random.Generator
) -> pd.DataFrame:
    if ntrt > len(string.ascii_uppercase):
        raise ValueError(f"got ntrt={ntrt}, expected at most 26: treatments are called A to Z")
    if samples_nested and nsam < ntrt:
        raise ValueError(f"got nsam={nsam} and ntrt={ntrt}, expected a sample per treatment, or samples_nested=False")
    treatment = rng.integers(ntrt, size=len(cells))
    letter = np.array(list(string.ascii_uppercase))[treatment]
    n_samples, prefix = np.full(ntrt, nsam), np.full(len(cells), "S")
    if samples_nested:
        n_samples, prefix = 1 + rng.multinomial(nsam - ntrt, np.full(ntrt, 1 / ntrt)), letter  # (ntrt,), (n,)
    sample = np.char.add(prefix, (1 + rng.integers(n_samples[treatment])).astype(str))
    cluster = (1 + rng.integers(ncls, size=len(cells))).astype(str)
    return pd.DataFrame({"sam": sample, "cls": cluster, "trt": letter}, index=cells)


def _checked_metadata(metadata: pd.DataFrame, cells: pd.Index) -> pd.DataFrame:
    if lacking := [name for name in ("sam", "cls", "trt") if name not in metadata.columns]:
        raise ValueError(f"got metadata with the columns {list(metadata.columns)}, expected {lacking} too: add them")
    if not metadata.index.astype(str).equals(cells):
        raise ValueError(
            f"got metadata of {len(metadata)} cells for counts of {len(cells)} cells, expected the same cells in the "
            "same order: try metadata.loc[counts.columns]"
        )
    labels = metadata[["sam", "cls", "trt"]]
    if missing := labels.isna().to_numpy().sum():
        raise ValueError(f"got metadata with {missing} missing labels, expected none: drop those cells")
    checked: pd.DataFrame = metadata.assign(**labels.astype(str)).set_axis(cells)
    return checked


def _with_library_size(metadata: pd.DataFrame, totals: np.ndarray, adjust_library_size: bool) -> pd.DataFrame:
    if "libsize" not in metadata.columns:
        if empty := (totals == 0).sum():
            logger.info("%d cell(s) without counts get the library size 1", empty)
        metadata = metadata.assign(libsize=np.maximum(totals, 1))
    elif not ((metadata["libsize"] > 0) & np.isfinite(metadata["libsize"])).all():
        raise ValueError("got metadata with a libsize that is not a positive number, expected totals: drop empty cells")
    return metadata if adjust_library_size else metadata.assign(libsize=metadata["libsize"].mean())


def _treatment(conditions: pd.Series, trt: str | None) -> str:
    known = sorted(conditions.unique())
    treatment = known[-1] if trt is None else str(trt)
    if treatment not in known:
        raise ValueError(f"got trt={trt!r}, expected one of the conditions in the metadata: {known}")
    if len(known) == 1:
        logger.info("there is only one condition, so all cells are treated")
    elif len(known) > 2:
        logger.info("there are %d conditions, of which one is treated", len(known))
    logger.info("the condition %s is treated", treatment)
    return treatment


def _sampled(rows: pd.DataFrame, size: int | None, rng: np.random.Generator) -> pd.DataFrame:
    """Return the rows, or a random sample of them, with replacement if `size` is larger than their number."""
    if size is not None and size != len(rows):
        rows = rows.iloc[rng.choice(len(rows), size, replace=size > len(rows))]
    labels = rows.index
    while labels.has_duplicates:  # repeated, as a gene may already have the name of a copy
        copy = labels.to_series().groupby(labels).cumcount().to_numpy()
        labels = labels.where(copy == 0, labels + "." + copy.astype(str))
    return rows.set_axis(labels)


def _DE_genes_per_type(
    clusters: pd.Series, nDEgenes: int | None, nDEgenesType: Any, pDEgenesType: Any, rng: np.random.Generator
) -> pd.Series:
    """Return the number of DE genes of each cell type."""
    names = sorted(clusters.unique())
    if nDEgenesType is None:
        shares = np.ones(len(names)) if pDEgenesType is None else _per_type(pDEgenesType, names, "pDEgenesType")
        if not shares.any():
            raise ValueError("got a pDEgenesType of zeros, expected a share for at least one cell type")
        total = len(names) if nDEgenes is None else nDEgenes
        return pd.Series(rng.multinomial(total, shares / shares.sum()), index=names)
    if not isinstance(nDEgenesType, (Mapping, pd.Series)):
        logger.info("nDEgenesType is taken in the order of the cell types: %s", names)
    numbers = _per_type(nDEgenesType, names, "nDEgenesType")
    if (numbers % 1).any():
        raise ValueError(f"got nDEgenesType={numbers.tolist()}, expected whole numbers")
    per_type = pd.Series(numbers.astype(int), index=names)
    if nDEgenes is not None and nDEgenes != per_type.sum():
        logger.info("the number of DE genes is changed to %d, the sum of nDEgenesType", per_type.sum())
    return per_type


def _per_type(values: Any, names: list[str], what: str) -> np.ndarray:
    """Return one number per cell type in the order of `names`."""
    if isinstance(values, (Mapping, pd.Series)):
        by_name = {str(name): value for name, value in values.items()}
        if by_name.keys() != set(names):
            raise ValueError(f"got {what} for the cell types {list(by_name)}, expected one for each of {names}")
        values = [by_name[name] for name in names]
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(names),):
        raise ValueError(f"got {what} of shape {numbers.shape}, expected {(len(names),)}: one for each of {names}")
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        raise ValueError(f"got {what}={numbers.tolist()}, expected numbers of zero or more")
    return numbers


def _DE_genes(
    genes: pd.Index, per_type: pd.Series, direction: str, minbeta: float, maxbeta: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Return the effects of the DE genes: the last genes, one cell type after the other."""
    total = int(per_type.sum())
    if total > len(genes):
        raise ValueError(f"got {total} DE genes for {len(genes)} genes, expected at most as many: raise nGenes")
    beta = rng.uniform(minbeta, maxbeta, total)  # (nDEgenes,)
    if direction == "both":
        beta *= rng.choice([-1.0, 1.0], total)
    first = len(genes) - total
    columns = {"gene": genes[first:], "beta": beta, "cluster": np.repeat(per_type.index, per_type)}
    return pd.DataFrame(columns, index=range(first, len(genes)))


def _draw_counts(
    genes: pd.DataFrame,
    cells: pd.DataFrame,
    DEgenes: pd.DataFrame,
    treatment: str,
    var_randomeffects: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Draw gamma-Poisson counts gene by gene, so that only the result has genes x cells elements."""
    log_libsize = np.log(cells["libsize"].to_numpy(np.float64))
    library = np.exp(log_libsize - log_libsize.mean())  # (n,)
    sample, samples = pd.factorize(cells["sam"])
    types = pd.Index(cells["cls"].unique())
    treated_type = types.get_indexer(pd.Index(cells["cls"].where(cells["trt"] == treatment)))  # -1: untreated
    folds = np.ones((len(genes), len(types) + 1))  # the last column, index -1, is for untreated cells
    folds[DEgenes.index, types.get_indexer(pd.Index(DEgenes["cluster"]))] = np.exp(DEgenes["beta"])
    counts = np.empty((len(genes), len(cells)), np.int32)
    for gene, (mu, dispersion) in enumerate(genes[["mu", "dispersion"]].to_numpy()):
        of_sample = mu * np.exp(rng.normal(0.0, np.sqrt(var_randomeffects), len(samples)))
        mean = of_sample[sample] * folds[gene, treated_type] * library  # (n,)
        rate = rng.standard_gamma(dispersion, len(cells)) * (mean / dispersion)  # (n,)
        if not rate.max() < _LARGEST_RATE:
            raise ValueError(f"got a mean of {mean.max():g} counts, expected fewer: lower maxbeta or var_randomeffects")
        counts[gene] = rng.poisson(rate)
    return pd.DataFrame(counts, genes.index, cells.index)

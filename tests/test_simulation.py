"""Simulated counts against the theory of the model that they are drawn from; bounds are five standard errors."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lmm_gpu.simulation import simuRNAseq

SIGMAS = 5.0
SMALL = {"nGenes": 30, "nCells": 400, "ncls": 3}


def model_of(dat):
    """Mean without sample effects (genes x cells) and dispersion, from what the simulation says of itself."""
    parameters = dat.ref_mean_dispersion.loc[dat.counts.index]
    log_libsize = np.log(dat.metadata["libsize"].to_numpy())
    mean = parameters["mu"].to_numpy()[:, None] * np.exp(log_libsize - log_libsize.mean())
    return mean, parameters["dispersion"].to_numpy()[:, None]


def assert_mean(values, expected):
    """The mean of independent values is as expected, within their own standard error."""
    values = np.ravel(values)
    assert abs(values.mean() - expected) < SIGMAS * values.std() / np.sqrt(values.size)


@pytest.fixture(scope="module")
def reference():
    return simuRNAseq(nGenes=60, nCells=3000, nsam=12, ncls=4, seed=1)


@pytest.fixture(scope="module")
def without_effects():
    return simuRNAseq(nGenes=300, nCells=2000, nDEgenes=0, var_randomeffects=0, seed=2)


def test_parts_and_labels(reference):
    assert reference.keys() == ["ref_mean_dispersion", "metadata", "counts", "DEgenes", "treatment"]
    assert all(reference[name] is getattr(reference, name) for name in reference)
    assert dict(reference)["treatment"] == "B"
    with pytest.raises(KeyError, match=r"got 'count', expected one of \['ref_mean"):
        reference["count"]
    assert reference.counts.shape == (60, 3000)
    assert set(reference.counts.dtypes) == {np.dtype(np.int32)}
    assert list(reference.counts.index[:2]) == ["Gene1", "Gene2"]
    assert list(reference.counts.columns[:2]) == ["Cell1", "Cell2"]
    assert reference.counts.columns.equals(reference.metadata.index)
    assert list(reference.metadata.columns) == ["sam", "cls", "trt", "libsize"]
    assert list(reference.DEgenes.columns) == ["gene", "beta", "cluster"]
    assert set(reference.metadata["cls"]) == {"1", "2", "3", "4"}


def test_the_drawn_reference_has_whole_means_and_dispersions():
    moments = simuRNAseq(nGenes=500, nCells=20_000, seed=3).ref_mean_dispersion
    mean, dispersion = moments["mu"].round(), moments["dispersion"].round()
    z = (moments["mu"] - mean) / np.sqrt((mean + mean**2 / dispersion) / 20_000)
    assert np.abs(z).max() < SIGMAS
    assert_mean(z**2, 1)
    assert_mean(mean, 2)  # 1 + Poisson(1)
    assert_mean(dispersion, 2)


def test_each_gene_has_its_mean(without_effects):
    mean, dispersion = model_of(without_effects)
    error = (without_effects.counts.to_numpy() - mean).sum(axis=1)
    z = error / np.sqrt((mean + mean**2 / dispersion).sum(axis=1))
    assert np.abs(z).max() < SIGMAS
    assert_mean(z**2, 1)


def test_the_counts_have_the_variance_and_the_zeros_of_a_negative_binomial(without_effects):
    mean, dispersion = model_of(without_effects)
    counts = without_effects.counts.to_numpy()
    assert_mean((counts - mean) ** 2 / (mean + mean**2 / dispersion), 1)
    zero = (dispersion / (dispersion + mean)) ** dispersion
    assert abs((counts == 0).sum() - zero.sum()) < SIGMAS * np.sqrt((zero * (1 - zero)).sum())


def test_a_cell_has_counts_in_proportion_to_its_library_size(reference):
    metadata = reference.metadata.assign(libsize=np.geomspace(50, 5000, 3000))
    dat = simuRNAseq(reference.counts, metadata=metadata, nDEgenes=0, var_randomeffects=0, seed=24)
    mean, dispersion = model_of(dat)
    z = (dat.counts.to_numpy() - mean).sum(axis=0) / np.sqrt((mean + mean**2 / dispersion).sum(axis=0))
    assert_mean(z, 0)
    assert_mean(z**2, 1)


def test_sample_effects_are_lognormal_by_gene_and_sample():
    variance = 0.2
    dat = simuRNAseq(nGenes=80, nCells=8000, nsam=200, nDEgenes=0, var_randomeffects=variance, seed=4)
    mean, _ = model_of(dat)
    # Two halves of the cells of a sample share their effect and nothing else.
    half = dat.metadata.groupby("sam").cumcount().to_numpy() % 2
    groups = dat.metadata["sam"] + "/" + half.astype(str)
    ratio = (
        dat.counts.T.groupby(groups.to_numpy()).sum() / pd.DataFrame(mean.T).groupby(groups.to_numpy()).sum().to_numpy()
    )
    first, second = ratio[ratio.index.str.endswith("/0")].to_numpy(), ratio[ratio.index.str.endswith("/1")].to_numpy()
    assert_mean((first + second) / 2, np.exp(variance / 2))
    assert_mean(first * second, np.exp(2 * variance))
    other_sample, other_gene = np.roll(second, 1, axis=0), np.roll(second, 1, axis=1)
    assert_mean(first * other_sample, np.exp(variance))
    assert_mean(first * other_gene, np.exp(variance))


@pytest.mark.parametrize(
    ("direction", "bounds", "allowed"),
    [
        ("both", (0.25, 1), (-1, 1)),
        ("both", (-1, -0.25), (-1, 1)),
        ("up", (0.5, 2), (0.5, 2)),
        ("down", (-2, -1), (-2, -1)),
    ],
)
def test_effects_are_found_in_treated_cells_of_their_cell_type_and_nowhere_else(direction, bounds, allowed):
    dat = simuRNAseq(
        nGenes=60, nCells=6000, ncls=3, nDEgenes=30, var_randomeffects=0, seed=5,
        direction=direction, minbeta=bounds[0], maxbeta=bounds[1],
    )  # fmt: skip
    assert dat.DEgenes["beta"].between(*allowed).all()
    assert (dat.DEgenes["beta"].abs() >= min(np.abs(bounds))).all()
    assert dat.DEgenes["beta"].lt(0).nunique() == (2 if direction == "both" else 1)
    assert list(dat.DEgenes["gene"]) == list(dat.counts.index[dat.DEgenes.index]) == list(dat.counts.index[-30:])
    beta = pd.DataFrame(0.0, dat.counts.index, ["1", "2", "3"])
    for gene, effect, cluster in dat.DEgenes.itertuples(index=False):
        beta.loc[gene, cluster] = effect
    mean, dispersion = model_of(dat)
    for cluster in beta.columns:
        for treated in (True, False):
            cells = ((dat.metadata["cls"] == cluster) & ((dat.metadata["trt"] == dat.treatment) == treated)).to_numpy()
            expected = mean[:, cells] * np.exp(beta[[cluster]].to_numpy() * treated)
            error = (dat.counts.to_numpy()[:, cells] - expected).sum(axis=1)
            assert np.abs(error / np.sqrt((expected + expected**2 / dispersion).sum(axis=1))).max() < SIGMAS


def test_a_cell_type_without_treated_cells_keeps_its_genes_unchanged(reference):
    counts = reference.counts
    treatment = np.where(reference.metadata["cls"] == "2", "A", reference.metadata["trt"])
    metadata = reference.metadata.assign(trt=treatment)
    dat = simuRNAseq(counts, metadata=metadata, nDEgenesType={"1": 0, "2": 20, "3": 0, "4": 0}, direction="up",
                     minbeta=4, maxbeta=5, var_randomeffects=0, seed=6)  # fmt: skip
    mean, dispersion = model_of(dat)
    z = (dat.counts.to_numpy() - mean).sum(axis=1) / np.sqrt((mean + mean**2 / dispersion).sum(axis=1))
    assert set(dat.DEgenes["cluster"]) == {"2"}
    assert np.abs(z).max() < SIGMAS


def test_nested_samples_belong_to_one_treatment(reference):
    assert (reference.metadata.groupby("sam")["trt"].nunique() == 1).all()
    assert (reference.metadata["sam"].str[0] == reference.metadata["trt"]).all()
    assert reference.metadata["sam"].nunique() == 12
    crossed = simuRNAseq(nGenes=10, nCells=1000, nsam=5, samples_nested=False, seed=7).metadata
    assert set(crossed["sam"]) == {"S1", "S2", "S3", "S4", "S5"}
    assert (crossed.groupby("sam")["trt"].nunique() == 2).all()


def test_every_treatment_has_a_sample():
    metadata = simuRNAseq(nGenes=10, nCells=2000, nsam=26, ntrt=26, nDEgenes=2, seed=8).metadata
    assert (metadata.groupby("trt")["sam"].unique().str.len() == 1).all()
    assert metadata["trt"].nunique() == 26


def test_a_seed_repeats_everything():
    first, same, other = (simuRNAseq(**SMALL, seed=seed) for seed in (9, 9, 10))
    for name in ("ref_mean_dispersion", "metadata", "counts", "DEgenes"):
        pd.testing.assert_frame_equal(first[name], same[name])
    assert not first.counts.equals(other.counts)
    pd.testing.assert_frame_equal(first.counts, simuRNAseq(**SMALL, seed=np.random.default_rng(9)).counts)


def test_a_reference_keeps_its_labels_moments_and_library_sizes(reference):
    dat = simuRNAseq(reference.counts, seed=11)
    counts = reference.counts
    assert dat.counts.index.equals(counts.index)
    assert dat.counts.columns.equals(counts.columns)
    np.testing.assert_array_equal(dat.metadata["libsize"], counts.sum())
    mean, variance = counts.mean(axis=1), counts.var(axis=1)
    np.testing.assert_allclose(dat.ref_mean_dispersion["mu"], mean)
    np.testing.assert_allclose(dat.ref_mean_dispersion["dispersion"], mean**2 / (variance - mean))


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_arrays_and_sparse_matrices_are_references_too(reference, kind):
    metadata = reference.metadata.drop(columns="libsize")
    found = simuRNAseq(kind(reference.counts.to_numpy()), metadata=metadata, seed=12)
    pd.testing.assert_frame_equal(
        found.counts, simuRNAseq(reference.counts, metadata=metadata, seed=12).counts, check_names=False
    )


def test_library_sizes_given_computed_or_level(reference):
    counts, given = reference.counts, reference.metadata
    assert simuRNAseq(counts, metadata=given, seed=13).metadata["libsize"].equals(given["libsize"])
    computed = simuRNAseq(counts, metadata=given.drop(columns="libsize"), seed=13).metadata["libsize"]
    np.testing.assert_array_equal(computed, counts.sum())
    level = simuRNAseq(counts, metadata=given, adjust_library_size=False, seed=13)
    np.testing.assert_allclose(level.metadata["libsize"], given["libsize"].mean())


def test_metadata_alone_is_enough_for_the_cells(reference):
    dat = simuRNAseq(nGenes=20, metadata=reference.metadata, seed=14)
    pd.testing.assert_frame_equal(dat.metadata, reference.metadata)
    assert dat.counts.shape == (20, 3000)


def test_labels_that_are_numbers_or_categories_become_text(reference):
    metadata = reference.metadata.assign(
        cls=reference.metadata["cls"].astype(int), trt=reference.metadata["trt"].astype("category"), batch=7
    )
    dat = simuRNAseq(reference.counts, metadata=metadata, trt="A", nDEgenesType={1: 2, 2: 0, 3: 1, 4: 0}, seed=15)
    assert list(dat.DEgenes["cluster"]) == ["1", "1", "3"]
    assert dat.treatment == "A"
    assert (dat.metadata["batch"] == 7).all()


def test_more_genes_and_cells_than_the_reference_get_new_names(reference):
    counts = reference.counts.iloc[:3].set_axis(["a", "a.1", "b"])
    dat = simuRNAseq(counts, nGenes=40, nCells=4000, nDEgenes=2, seed=16)
    assert dat.counts.shape == (40, 4000)
    assert dat.counts.index.is_unique
    assert dat.counts.columns.is_unique
    assert {label.split(".")[0] for label in dat.counts.index} == {"a", "b"}


def test_fewer_cells_are_a_sample_of_the_reference(reference):
    dat = simuRNAseq(reference.counts, metadata=reference.metadata, nGenes=20, nCells=500, seed=17)
    assert dat.counts.shape == (20, 500)
    pd.testing.assert_frame_equal(dat.metadata, reference.metadata.loc[dat.counts.columns])
    assert dat.counts.index.isin(reference.counts.index).all()


def test_genes_that_no_negative_binomial_has_are_removed_and_said(reference, caplog):
    counts = reference.counts.copy()
    counts.loc["Gene1"] = 0
    counts.loc["Gene2"] = 5
    with caplog.at_level(logging.INFO, logger="lmm_gpu"):
        dat = simuRNAseq(counts, seed=18)
    assert list(dat.counts.index) == list(counts.index[2:])
    assert list(dat.ref_mean_dispersion.index) == list(counts.index)
    assert "removing 1 gene(s) of zero mean" in caplog.text
    assert "removing 1 gene(s) whose variance is not above the mean" in caplog.text
    assert "the condition B is treated" in caplog.text


def test_numbers_of_de_genes(caplog):
    with caplog.at_level(logging.INFO, logger="lmm_gpu"):
        changed = simuRNAseq(**SMALL, nDEgenes=4, nDEgenesType=[0, 5, 2], seed=19)
    assert "the number of DE genes is changed to 7" in caplog.text
    assert "in the order of the cell types: ['1', '2', '3']" in caplog.text
    assert list(changed.DEgenes["cluster"]) == ["2"] * 5 + ["3"] * 2
    assert len(simuRNAseq(**SMALL, seed=19).DEgenes) == 3
    assert len(simuRNAseq(**SMALL, nDEgenes=0, seed=19).DEgenes) == 0
    skewed = simuRNAseq(**SMALL, nDEgenes=9, pDEgenesType={"1": 0, "2": 3.0, "3": 0}, seed=19)
    assert list(skewed.DEgenes["cluster"]) == ["2"] * 9


@pytest.mark.parametrize(("ntrt", "message"), [(1, "only one condition"), (3, "there are 3 conditions")])
def test_other_than_two_conditions_are_said(ntrt, message, caplog):
    with caplog.at_level(logging.INFO, logger="lmm_gpu"):
        simuRNAseq(**SMALL, ntrt=ntrt, seed=20)
    assert message in caplog.text


def test_an_empty_cell_has_the_library_size_one(reference):
    counts = reference.counts.copy()
    counts["Cell3"] = 0
    assert simuRNAseq(counts, seed=21).metadata.at["Cell3", "libsize"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nGenes": None}, "got no counts, nGenes=None and nCells=400: pass both"),
        ({"nCells": None}, "nCells=None: pass both"),
        ({"nGenes": 0}, "got nGenes=0, expected a whole number of at least 1"),
        ({"nCells": 10.5}, "got nCells=10.5, expected a whole number"),
        ({"nCells": 1}, r"got reference counts of shape \(30, 1\), expected genes x cells"),
        ({"nsam": 0}, "got nsam=0"),
        ({"ntrt": 27, "nsam": 30}, "got ntrt=27, expected at most 26"),
        ({"nsam": 1}, "got nsam=1 and ntrt=2, expected a sample per treatment"),
        ({"nDEgenes": -1}, "got nDEgenes=-1, expected a whole number of at least 0"),
        ({"nDEgenes": 31}, "got 31 DE genes for 30 genes, expected at most as many"),
        ({"nDEgenesType": [1, 2]}, r"got nDEgenesType of shape \(2,\), expected \(3,\)"),
        ({"nDEgenesType": [1, 2, -1]}, r"got nDEgenesType=\[1.0, 2.0, -1.0\], expected numbers of zero or more"),
        ({"nDEgenesType": [1, 2, 0.5]}, "expected whole numbers"),
        ({"nDEgenesType": {"1": 1, "2": 1, "T": 1}}, r"cell types \['1', '2', 'T'\], expected one for each of"),
        ({"pDEgenesType": [0.5, 0.5]}, r"got pDEgenesType of shape \(2,\), expected \(3,\)"),
        ({"pDEgenesType": [0, 0, 0]}, "got a pDEgenesType of zeros"),
        ({"trt": "C"}, r"got trt='C', expected one of the conditions in the metadata: \['A', 'B'\]"),
        ({"direction": "left"}, "got direction='left', expected 'both', 'up' or 'down'"),
        ({"minbeta": 1, "maxbeta": 1}, "got minbeta=1 and maxbeta=1, expected minbeta < maxbeta"),
        ({"minbeta": -1}, "got minbeta=-1 and maxbeta=1.0, expected both of one sign"),
        ({"minbeta": 0, "direction": "up"}, "expected minbeta > 0"),
        ({"direction": "down"}, "expected maxbeta < 0"),
        ({"var_randomeffects": -0.1}, "got var_randomeffects=-0.1, expected a variance"),
        ({"minbeta": 30, "maxbeta": 31, "direction": "up"}, "expected fewer: lower maxbeta or var_randomeffects"),
    ],
)
def test_impossible_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        simuRNAseq(**(SMALL | wrong), seed=22)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda counts, metadata: (counts, metadata.drop(columns="cls")), r"expected \['cls'\] too: add them"),
        (lambda counts, metadata: (counts, metadata[::-1]), r"same order: try metadata.loc\[counts.columns\]"),
        (lambda counts, metadata: (counts, metadata[:-1]), "got metadata of 2999 cells for counts of 3000 cells"),
        (lambda counts, metadata: (counts.to_numpy(), metadata[:-1]), "got metadata of 2999 cells for counts of 3000"),
        (lambda counts, metadata: (counts, metadata.replace({"sam": "A1"}, None)), "missing labels, expected none"),
        (lambda counts, metadata: (counts, metadata.assign(libsize=0)), "a libsize that is not a positive number"),
        (lambda counts, metadata: (counts - 1, metadata), "counts that are negative, NaN or infinite"),
        (lambda counts, metadata: (counts * np.nan, metadata), "counts that are negative, NaN or infinite"),
        (
            lambda counts, metadata: (counts * 0 + 3, metadata),
            "none of 60 reference genes has a variance above its mean",
        ),
        (lambda counts, metadata: (counts.iloc[0], None), r"shape \(3000,\), expected genes x cells"),
    ],
)
def test_an_impossible_reference_is_refused(reference, change, message):
    counts, metadata = change(reference.counts, reference.metadata)
    with pytest.raises(ValueError, match=message):
        simuRNAseq(counts, metadata=metadata, seed=23)

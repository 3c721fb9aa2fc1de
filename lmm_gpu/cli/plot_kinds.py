"""Kinds of plots of `lmm-gpu plot`, and the options of each."""

KINDS = {
    "volcano": ("contrast", "labels", "fdr", "min_change"),
    "ma": ("contrast", "labels", "fdr", "min_change"),
    "qq": ("contrast",),
    "pvalue-hist": ("contrast",),
    "variance": (),
    "variance-partition": (),
    "convergence": (),
    "gene": ("gene", "by", "facet", "component"),
}

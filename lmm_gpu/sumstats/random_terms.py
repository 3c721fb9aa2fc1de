"""Random terms: which components have a covariance matrix together, and the names of their variances."""

from __future__ import annotations

from collections.abc import Sequence

#: Grouping and effects of each random term; the next components, one for each effect, belong to it.
RandomTerms = tuple[tuple[str, tuple[str, ...]], ...]


def sizes_of_terms(components: int, terms: RandomTerms | None) -> tuple[int, ...]:
    """Number of correlated effects, which are components, of each random term; without terms every component is one.

    >>> sizes_of_terms(3, (("donor", ("Intercept", "x")), ("batch", ("Intercept",))))
    (2, 1)
    """
    return (1,) * components if terms is None else tuple(len(effects) for _, effects in terms)


def names_of_variances(components: Sequence[str], terms: RandomTerms | None) -> tuple[str, ...]:
    """Labels of the rows of theta: variances, then covariances, of each random term, and the residual.

    >>> names_of_variances(("donor", "donor.x"), (("donor", ("Intercept", "x")),))
    ('donor', 'donor.x', 'donor.cov(Intercept,x)', 'residual')
    """
    residual = "residual" if "residual" not in components else "residual_error"
    names: list[str] = []
    at = 0
    for term, size in enumerate(sizes_of_terms(len(components), terms)):
        names += components[at : at + size]
        if terms is not None:
            group, effects = terms[term]
            names += [f"{group}.cov({effects[a]},{effects[b]})" for b in range(size) for a in range(b)]
        at += size
    return (*names, residual)


def terms_without(terms: RandomTerms | None, component: int) -> RandomTerms | None:
    """Random terms without one of their effects.

    >>> terms_without((("donor", ("Intercept", "x")), ("batch", ("Intercept",))), 2)
    (('donor', ('Intercept', 'x')),)
    """
    if terms is None:
        return None
    kept, at = [], 0
    for group, effects in terms:
        left = tuple(effect for i, effect in enumerate(effects, start=at) if i != component)
        kept += [(group, left)] if left else []
        at += len(effects)
    return tuple(kept)

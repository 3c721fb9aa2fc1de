"""Statuses of genes at the end of estimation."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Status of one gene at the end of estimation.

    Examples
    --------
    >>> Status(3).word, Status.NO_VARIANCE.word
    ('boundary', 'no_variance')
    """

    RUNNING = 0
    CONVERGED = 1  #: max |score| <= epsilon
    CONVERGED_AT_ROUNDING = 2  #: no step changes the log-likelihood beyond rounding
    BOUNDARY = 3  #: converged with a variance component held at zero
    MAX_ITER = 4  #: stopped by max_iter
    NO_VARIANCE = 5  #: the gene does not vary once X is taken out
    FAILED = 6  #: no valid estimate
    OUTSIDE_TABLE = 7  #: the ratios left the tables: to be maximised without them
    ILL_CONDITIONED = 8  #: the residual variance is lost in the rounding error of the sums

    @property
    def word(self) -> str:
        """Lower-case name, as results show it."""
        return self.name.lower()


#: Statuses of a gene whose estimate is an optimum of the likelihood.
OPTIMUM = (Status.CONVERGED, Status.CONVERGED_AT_ROUNDING, Status.BOUNDARY)

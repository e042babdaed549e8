"""Rates with their confidence intervals, and odds ratios over several strata."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z = 1.959964  # the 97.5 % quantile of the normal distribution: intervals of 95 %


@dataclass(frozen=True)
class Rate:
    """`hits` of `cases`, with the 95 % interval of Wilson (1927)."""

    hits: int
    cases: int

    @property
    def share(self) -> float:
        return self.hits / self.cases if self.cases else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        if not self.cases:
            return 0.0, 1.0
        square = Z * Z / self.cases
        middle = (self.share + square / 2) / (1 + square)
        spread = math.sqrt(self.share * (1 - self.share) + square / 4) * Z / math.sqrt(self.cases)
        half = spread / (1 + square)
        return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class Stratum:
    """A group and its complement, among cases that are alike otherwise."""

    group: Rate
    others: Rate


@dataclass(frozen=True)
class OddsRatio:
    """The odds of a hit in a group, divided by those in its complement, with a 95 % interval."""

    value: float
    low: float
    high: float


def mantel_haenszel(strata: Iterable[Stratum]) -> OddsRatio | None:
    """Return the odds ratio of all `strata` together; None if there are no hits on one side.

    Mantel and Haenszel, "Statistical Aspects of the Analysis of Data from Retrospective Studies",
    1959; the variance of its logarithm is that of Robins, Breslow and Greenland, "Estimators of the
    Mantel-Haenszel Variance Consistent in Both Sparse Data and Large-Strata Limiting Models", 1986.
    """
    agreeing = opposing = 0.0
    both_agreeing = mixed = both_opposing = 0.0
    for stratum in strata:
        total = stratum.group.cases + stratum.others.cases
        if not stratum.group.cases or not stratum.others.cases:
            continue
        hits, other_hits = stratum.group.hits, stratum.others.hits
        misses, other_misses = stratum.group.cases - hits, stratum.others.cases - other_hits
        agrees, opposes = hits * other_misses / total, misses * other_hits / total
        agreeing_share = (hits + other_misses) / total
        agreeing += agrees
        opposing += opposes
        both_agreeing += agreeing_share * agrees
        mixed += agreeing_share * opposes + (1 - agreeing_share) * agrees
        both_opposing += (1 - agreeing_share) * opposes
    if not agreeing or not opposing:
        return None
    variance = (
        both_agreeing / (2 * agreeing**2)
        + mixed / (2 * agreeing * opposing)
        + both_opposing / (2 * opposing**2)
    )
    value, factor = agreeing / opposing, math.exp(Z * math.sqrt(variance))
    return OddsRatio(value, value / factor, value * factor)

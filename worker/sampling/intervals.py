"""Confidence intervals of rates in a random sample, by Clopper and Pearson.

C. J. Clopper and E. S. Pearson, Biometrika 26 (1934): an interval that covers the truth at least as
often as it says, for every rate and every size of the sample. For rates of faces, which come in
pictures, E. L. Korn and B. I. Graubard, Survey Methodology 24 (1998), replace the number of faces
by an effective one. tests/unit/worker/sampling/test_intervals.py simulates archives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
MAX_PICTURES = 10_000_000  # of a sample that is proposed
BISECTIONS = 50  # halve an interval to 1e-15
# Pictures with the property from which its variance can be estimated.
MIN_VARIED = 20
MAX_TERMS = 10_000  # of the continued fraction, which needs about the square root of its arguments
SMALLEST = 1e-300
PRECISION = 1e-13


@dataclass(frozen=True)
class Rate:
    """A share of a population, as a sample shows it: the estimate and its interval.

    `found` of `of` had the property. `upper_bound` is one-sided: with CONFIDENCE the share is at
    most this. `low` and `high` are both ends of the interval.
    """

    found: int
    of: int
    estimate: float | None
    low: float
    high: float
    upper_bound: float


def rate(found: int, of: int, confidence: float = CONFIDENCE) -> Rate:
    """Return the rate of pictures with a property: `found` of `of` pictures, drawn at random."""
    return _rate(found, of, float(found), float(of), confidence)


def exact_rate(found: int, of: int) -> Rate:
    """Return the rate in a population of which every member was looked at."""
    if of == 0:
        return rate(0, 0)
    share = found / of
    return Rate(found, of, share, share, share, share)


def rate_in_clusters(
    found: Sequence[int], sizes: Sequence[int], confidence: float = CONFIDENCE
) -> Rate:
    """Return the rate of faces with a property: `found` of `sizes` faces in each drawn picture.

    The faces of a picture are alike, so they tell less than as many faces of different pictures.
    The effective number of faces is that which would have the same variance if they were drawn one
    by one. It is estimated from the pictures in which the property was found; as long as these are
    few, it is at most the number that is left if all faces of a picture are alike.
    """
    total, count = sum(found), sum(sizes)
    if count == 0:
        return _rate(0, 0, 0.0, 0.0, confidence)
    effective = _effective_count(found, sizes, confidence)
    return _rate(total, count, total / count * effective, effective, confidence)


def pictures_needed(share: float, misses: int = 0, confidence: float = CONFIDENCE) -> int | None:
    """Return how many pictures show with `confidence` that fewer than `share` have the property.

    So many are enough if `misses` of them have it. None stands for more than MAX_PICTURES.
    """
    low, high = misses, MAX_PICTURES
    if _upper(misses, high, 1 - confidence) > share:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if _upper(misses, middle, 1 - confidence) <= share:
            high = middle
        else:
            low = middle
    return high


def student(degrees: float, confidence: float) -> float:
    """Return the two-sided quantile of Student's distribution with `degrees` of freedom."""
    share = beta_quantile(1 - confidence, degrees / 2, 0.5)
    return math.sqrt(degrees * (1 - share) / share)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the quantile of the beta distribution with the parameters `a` and `b`."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if beta_share(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2 if low else 0.0


def beta_share(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function: the distribution function of the beta
    distribution at `x`, by the continued fraction 26.5.8 of Abramowitz and Stegun.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # The fraction converges fast on the other side.
        return 1 - beta_share(1 - x, b, a)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    logarithm += a * math.log(x) + b * math.log1p(-x)
    return math.exp(logarithm) / a * _fraction(x, a, b)


def _effective_count(found: Sequence[int], sizes: Sequence[int], confidence: float) -> float:
    """Return the number of faces, drawn one by one, whose rate would vary as much."""
    total, count = sum(found), sum(sizes)
    share = total / count
    if_all_alike = count**2 / sum(size**2 for size in sizes)
    varied = sum(part > 0 for part in found)
    pictures = len(sizes)
    squares = sum((part - share * size) ** 2 for part, size in zip(found, sizes, strict=True))
    if total in (0, count) or not squares or pictures < 2:
        return if_all_alike
    variance = squares * pictures / (pictures - 1) / count**2
    estimated = min(count, share * (1 - share) / variance)
    if varied < MIN_VARIED:
        return min(estimated, if_all_alike)
    # The variance is itself an estimate, from the pictures in which the property was found.
    return estimated * (student(count, confidence) / student(varied - 1, confidence)) ** 2


def _rate(found: int, of: int, part: float, whole: float, confidence: float) -> Rate:
    """Return the rate whose interval is that of `part` in `whole`, which may be fractions."""
    if of == 0:
        return Rate(0, 0, None, 0.0, 1.0, 1.0)
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, part, whole - part + 1) if found else 0.0
    upper_bound = _upper(part, whole, 1 - confidence) if found < of else 1.0
    high = _upper(part, whole, tail) if found < of else 1.0
    return Rate(found, of, found / of, low, high, upper_bound)


def _upper(part: float, whole: float, tail: float) -> float:
    """Return the rate above which so few are found with the probability `tail` only."""
    if part >= whole:
        return 1.0
    return beta_quantile(1 - tail, part + 1, whole - part)


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function, by the method of Lentz."""
    above = 1.0
    below = 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = below
    for m in range(1, MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            below = 1 / _not_zero(1 + term * below)
            above = _not_zero(1 + term / above)
            change = below * above
            value *= change
        if abs(change - 1) < PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > SMALLEST else SMALLEST

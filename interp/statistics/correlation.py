"""Statistics of scatter plots."""

from __future__ import annotations

from statistics import fmean

from interp.claims import Number, statistics
from interp.series import Group, Scatter


@statistics("correlation")
def correlation(points: Scatter | Group) -> dict[str, Number]:
    """Pearson's r, its interval, the slope and n of the measured points of a scatter plot or one group.

    Of a scatter plot also the mean and the least r of its measured groups, where each has a correlation.
    """
    found = points.correlation
    values: dict[str, Number] = {"r": found.r, "slope": found.slope, "n": found.n}
    if found.low is not None and found.high is not None:
        values |= {"r_low": found.low, "r_high": found.high}
    if isinstance(points, Scatter) and all(len(group.points) > 2 for group in points.measured):
        own = [group.correlation.r for group in points.measured]
        values |= {"mean_group_r": fmean(own), "least_group_r": min(own)}
    return values

"""Section ``[server.secure_aggregation]``; free of heavy imports."""

from pydantic import Field

from medfusion.options import Options


class SecureAggregationOptions(Options):
    """The coordinator learns sums of updates only (`medfusion.transport.secagg`).

    Attributes
    ----------
    threshold
        Fewest sites whose sum may be learned: more than half of the run's. More than two thirds
        where up to a third might deviate together with the coordinator. A round goes on while
        as many sites are there.
    update_range
        Largest entry of a site's update in a round; a site with a larger one sends nothing. The
        sum is exact to ``update_range * 2**-29`` a site, times all patients over those that
        answered.
    """

    threshold: int = Field(ge=2)
    update_range: float = Field(default=8.0, gt=0, lt=2.0**20)

"""What may stand between a site's update and the strategy, and the model and the sites, in order.

==  =================================  ==========  ================================================
    transform                          where       what must follow it
==  =================================  ==========  ================================================
1   a strategy's corrections           site        none: part of training
2   compression, with what it lost     both        single updates in clear
3   local selection's fill             server      single updates in clear
4   masks (``secure_aggregation``)     both        a strategy that needs nothing but the mean
5   whole sites' DP (``client_dp``)    server      clips single updates; a strategy of the mean
6   compression of the model's way     both        anything: all sites get the same model, which is
    down, with what it lost                        that of the run (`server.downlink`)
==  =================================  ==========  ================================================

Masks hide single updates, so nothing that looks at one can come after them.
"""

# Strategies that need nothing but the mean of the sites' models.
OF_THE_MEAN = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")


def illegal_pair(
    *, strategy: str, selection: str, masked: bool, client_dp: bool, compressed: bool
) -> str | None:
    """Return what is wrong with a combination of transforms, in words; None if it is legal."""
    if (masked or client_dp) and strategy not in OF_THE_MEAN:
        which = "server.secure_aggregation" if masked else "server.client_dp"
        return (
            f"strategy.name = {strategy!r} looks at single sites' updates, which {which} hides: "
            f"expected one of {', '.join(OF_THE_MEAN)}"
        )
    if client_dp and selection != "none":
        return (
            f"selection.method = {selection!r} tells of single sites beside their updates, which "
            "server.client_dp does not cover: expected 'none'"
        )
    if masked and client_dp:
        return (
            "server.client_dp clips single sites' updates, which server.secure_aggregation hides: "
            "expected one of the two"
        )
    if masked and compressed:
        return (
            "compression gives each site's update a scale and places of its own, which masks of "
            "server.secure_aggregation hide: expected compression.level = 'none'"
        )
    if masked and selection == "local":
        return (
            "selection.method = 'local' averages single sites' rows, which "
            "server.secure_aggregation hides: expected 'federated' or 'none'"
        )
    return None

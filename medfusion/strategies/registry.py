"""What a site does for the run's strategy, by name."""

from medfusion.strategies.feddyn import FedDynSite
from medfusion.strategies.rule_names import SiteRuleName
from medfusion.strategies.scaffold import ScaffoldSite
from medfusion.strategies.site_rules import SiteRule


def site_rule(name: SiteRuleName) -> SiteRule | None:
    """Return the rule; None where a site remembers nothing."""
    rules: dict[str, SiteRule] = {"scaffold": ScaffoldSite(), "feddyn": FedDynSite()}
    return rules.get(name)

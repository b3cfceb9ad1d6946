"""What a finished run claims about each site, as its folder tells it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medfusion.errors import DataError
from medfusion.privacy.plan import DpPlan

_ROUNDING = 1.001  # accountants of two releases differ by less


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One plan, the sites that followed it, and what they were told that it costs.

    Attributes
    ----------
    epsilon
        The claimed epsilon, at the plan's delta.
    accounted
        The epsilon of the whole plan as this installation computes it.
    """

    sites: tuple[str, ...]
    plan: DpPlan
    epsilon: float
    accounted: float

    @property
    def understated(self) -> bool:
        """Whether the plan costs more than is claimed, before anything is attacked."""
        return self.accounted > _ROUNDING * self.epsilon


def read_claims(card: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Claim]:
    """Return the claims of a run, one for each pair of plan and epsilon, by first site.

    Parameters
    ----------
    card
        ``model/model.json``, which holds each site's plan.
    summary
        ``summary.json``, which holds each site's epsilon.

    Raises
    ------
    DataError
        If the run had no privacy, or a plan or an epsilon is missing or cannot be.
    """
    if not card:
        raise DataError("expected the run's model/model.json, which holds its plans; found none")
    privacy = card.get("privacy") or {}
    if not privacy.get("enabled"):
        raise DataError(
            "expected a run with privacy.enabled = true: this one claims no epsilon, so there "
            "is nothing to audit"
        )
    sites: dict[tuple[DpPlan, float], list[str]] = {}
    for name, recorded in sorted((privacy.get("sites") or {}).items()):
        claimed = (summary["sites"].get(name) or {}).get("epsilon")
        if not isinstance(claimed, float | int) or not claimed > 0:
            raise DataError(f"summary.json: sites.{name}.epsilon: expected a positive number")
        plan = DpPlan.from_card(recorded, site=name)
        sites.setdefault((plan, float(claimed)), []).append(name)
    if not sites:
        raise DataError("model.json: privacy.sites: expected the plan of at least one site")
    return [
        Claim(sites=tuple(names), plan=plan, epsilon=epsilon, accounted=plan.epsilon())
        for (plan, epsilon), names in sites.items()
    ]

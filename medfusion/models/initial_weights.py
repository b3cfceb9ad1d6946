"""Where a model's initial weights came from, for ``model.json`` and the report.

What was trained before says something of whomever it was trained on, and the epsilon of the run
that goes on from there does not count it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Kind = Literal["torchvision", "medfusion", "tensors"]


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The source of initial weights, without any path of this machine.

    Attributes
    ----------
    kind
        ``torchvision`` (a network in torchvision's format), ``medfusion`` (a model folder of a
        run) or ``tensors`` (weights without a description).
    sha256
        Of the file of weights.
    epsilon, delta
        The largest privacy cost at a site that a MedFusion model declares for its own run; None
        where it declares none.
    simulated
        Whether that cost is a simulated one, whose noise protects nobody.
    initial_weights
        What a MedFusion model itself began from, in the words of its ``model.json``.
    """

    kind: Kind
    sha256: str
    epsilon: float | None = None
    delta: float | None = None
    simulated: bool = False
    initial_weights: dict[str, Any] | None = None

    @classmethod
    def of_model(cls, card: Mapping[str, Any], sha256: str) -> Self:
        """Read what a MedFusion model's card declares.

        Raises
        ------
        TypeError, ValueError, KeyError, AttributeError
            If it is not what a run writes, or could not be written again.
        """
        privacy = card.get("privacy") or {}
        plans = list((privacy.get("sites") or {}).values())
        dearest = max(plans, key=lambda plan: float(plan["epsilon"]), default=None)
        earlier = card.get("initial_weights")
        found = cls(
            kind="medfusion",
            sha256=sha256,
            epsilon=float(dearest["epsilon"]) if dearest else None,
            delta=float(dearest["delta"]) if dearest else None,
            simulated=bool(privacy.get("simulated")) if dearest else False,
            initial_weights=dict(earlier) if earlier else None,
        )
        json.dumps(asdict(found), allow_nan=False)  # refused now, not after the training
        return found

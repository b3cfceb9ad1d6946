"""The paid releases of one private run, with Flower's replies as the bytes that a ledger keeps."""

import hashlib
from collections.abc import Callable

from flwr.app import RecordDict

from medfusion.data.site import PolicyOptions
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.plan_costs import PlanCosts, ReleaseKind
from medfusion.privacy.renyi_filter import Gate
from medfusion.transport.packing import from_bytes, to_bytes
from medfusion.transport.requests import RunSettings


class PaidReleases:
    """What a run may release; its whole plan is reserved at once.

    The same release may be asked for again (a reply was lost): it is answered with the stored
    reply. A second, different one is refused.

    Raises
    ------
    FederationError
        If the plan does not fit into what the site has left.
    """

    def __init__(
        self, ledger: Ledger, settings: RunSettings, plan: DpPlan, policy: PolicyOptions
    ) -> None:
        self._ledger = ledger
        self._reservation = ledger.reserve(
            settings.run_id,
            settings_sha256=hashlib.sha256(settings.model_dump_json().encode()).hexdigest(),
            costs=PlanCosts.of(plan),
            gate=Gate(max_epsilon=policy.max_epsilon, delta=policy.delta),
        )

    def reply(
        self, kind: ReleaseKind, number: int, content: str, compute: Callable[[], RecordDict]
    ) -> RecordDict:
        """Charge, compute and store a reply, or return the stored one.

        Parameters
        ----------
        number
            The round, 0 before the first one.
        content
            Hash of everything that the reply depends on.

        Raises
        ------
        FederationError
            If the plan pays for no further release, or the round had a different one.
        """
        data = self._ledger.release(
            self._reservation, kind, number, content, lambda: to_bytes(compute())
        )
        return from_bytes(data)

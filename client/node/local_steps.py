"""What a run's strategy adds to the steps of one round at the site."""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord
from torch import Tensor

from client.node.strategy_memory import StrategyMemory
from medfusion.errors import FederationError
from medfusion.strategies.registry import site_rule
from medfusion.strategies.site_rules import Round, SiteRule, travel_of
from medfusion.transport.arrays import check_matches, from_record
from medfusion.transport.requests import Received, RunSettings


@dataclass(frozen=True, eq=False)
class LocalSteps:
    """A strategy's part in one round: what it adds, and what is to be remembered of it.

    ``shift`` is added to every gradient, None for nothing.
    """

    shift: Mapping[str, Tensor] | None
    _rule: SiteRule | None
    _own: Mapping[str, Tensor]
    _given: Round | None
    _memory: StrategyMemory
    _number: int
    _counted: int

    @classmethod
    def of(
        cls,
        request: Received,
        settings: RunSettings,
        received: Mapping[str, Tensor],
        memory: StrategyMemory,
        *,
        patients_public: int,
    ) -> "LocalSteps":
        """Return what a round's request comes to.

        Raises
        ------
        FederationError
            If the site does not hold the memory that the request goes on from, or what came
            beside the model does not fit it.
        """
        number, counted = request.round, request.counted
        rule = site_rule(settings.site_rule)
        if rule is None:
            return cls(None, None, {}, None, memory, number, counted)
        if not 0 <= counted < number:
            raise FederationError(
                f"round {number} goes on from round {counted}: expected an earlier one"
            )
        guide = {} if request.guide is None else from_record(request.guide)
        if settings.site_rule == "scaffold":
            check_matches(guide, received)
        given = Round(
            received=received,
            guide=guide,
            proximal_mu=request.proximal_mu,
            travel=travel_of(settings.training, patients_public),
        )
        own = memory.after(counted, received)
        return cls(rule.shift(own, given), rule, own, given, memory, number, counted)

    def remember(self, reply: ArrayRecord) -> None:
        """Keep what follows from the reply, which alone tells what the round led to."""
        if self._rule is not None and self._given is not None:
            after = self._rule.next_memory(self._own, self._given, from_record(reply))
            self._memory.keep(self._number, after, counted=self._counted)

"""What a run cost each hospital: reserved, released and left, from the plans and the answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medfusion.evaluation.report.privacy import plans
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.table import Table, table
from medfusion.evaluation.report.wording import counted, epsilon
from medfusion.privacy.accounting import composed_epsilon, merged
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.plan_costs import PlanCosts, ReleaseKind

_POINTS = 6  # of a curve: each is a composition of its own
_GRID = 400  # grid cells to the run's epsilon; errs high, by less than the page shows
_KINDS: dict[ReleaseKind, str] = {
    "select": "Selection alone",
    "train": "Training alone",
    "evaluate": "Metrics alone",
}


@dataclass(frozen=True)
class Budget:
    """One hospital's epsilons in a run.

    Attributes
    ----------
    reserved
        Of the whole plan, its releases composed jointly.
    alone
        Of each kind of release by itself; they do not add up to ``reserved``.
    spent
        After each of some rounds (0: before the first), of what had been received by then.
    ceiling
        The hospital's ``max_epsilon``; None where the run did not record it.
    """

    site: str
    delta: float
    reserved: float
    alone: Mapping[ReleaseKind, float]
    spent: Mapping[int, float]
    ceiling: float | None

    @property
    def released(self) -> float:
        """Of all that was received."""
        return self.spent[max(self.spent)]

    @property
    def left(self) -> float | None:
        """What the run leaves of the ceiling."""
        return None if self.ceiling is None else max(self.ceiling - self.reserved, 0.0)


def budgets(run: Run) -> list[Budget]:
    """Return the budget of each hospital with a plan, by name; none without privacy."""
    return [_budget(run, name, plan) for name, plan in plans(run).items()]


def _budget(run: Run, name: str, card: Mapping[str, Any]) -> Budget:
    plan = DpPlan.from_card(card, site=name)
    costs = PlanCosts.of(plan)
    reserved: float = card["epsilon"]

    def cost(releases: Mapping[ReleaseKind, int]) -> float:
        events = merged(e for kind, n in releases.items() for e in costs.of_kind(kind, n))
        coarse = composed_epsilon(events, delta=plan.delta, interval=reserved / _GRID)
        return min(coarse, reserved)

    whole = {kind: part.releases for kind, part in costs.paid.items()}
    answered = {
        number: {kind: min(n, whole[kind]) for kind, n in found.items() if kind in whole}
        for number, found in _received(run, name).items()
    }
    return Budget(
        site=name,
        delta=plan.delta,
        reserved=reserved,
        alone={kind: cost({kind: count}) for kind, count in whole.items()},
        spent={n: reserved if c == whole else cost(c) for n, c in answered.items()},
        ceiling=run.summary["sites"].get(name, {}).get("max_epsilon"),
    )


def _received(run: Run, name: str) -> dict[int, dict[ReleaseKind, int]]:
    """Return how many releases of each kind had come from a site after some of the rounds."""
    # Under local selection the histograms stay, and are paid for before the first round.
    selected = name in run.summary.get("selected", ()) or (
        run.card.get("selection_method") == "local"
        and any(line["sites"].get(name, {}).get("status") == "ok" for line in run.rounds)
    )
    counts: dict[ReleaseKind, int] = {"select": int(selected)} if selected else {}
    found = {0: dict(counts)}
    for line in run.rounds:
        if line["sites"].get(name, {}).get("status") == "ok":
            counts["train"] = counts.get("train", 0) + 1
        if name in line.get("evaluated", ()):
            counts["evaluate"] = counts.get("evaluate", 0) + 1
        found[line["round"]] = dict(counts)
    return {number: found[number] for number in _spread(sorted(found))}


def _spread(numbers: list[int]) -> list[int]:
    """Return at most `_POINTS` of the numbers, the first and the last among them."""
    step = max(1, -(-(len(numbers) - 1) // (_POINTS - 1)))
    return sorted({*numbers[::step], numbers[-1]})


def budget_table(found: list[Budget]) -> Table:
    """Return each hospital's epsilons: by kind, together, released, and what is left."""
    head = ("Hospital", *_KINDS.values(), "Together (reserved)", "Released", "Ceiling", "Left")
    rows = tuple(
        (
            one.site,
            *(epsilon(one.alone.get(kind)) for kind in _KINDS),
            epsilon(one.reserved),
            epsilon(one.released),
            epsilon(one.ceiling),
            epsilon(one.left),
        )
        for one in found
    )
    return table("Epsilon of each hospital", head, rows, words=1)


def client_dp_in_words(run: Run) -> str:
    """Say what the privacy of whole sites cost; empty without it."""
    spent = run.summary.get("client_dp")
    if not spent:
        return ""
    simulated = " The noise is simulated as well." if run.privacy.get("simulated") else ""
    return (
        "The coordinator also clipped and noised whole hospitals' updates: epsilon "
        f"{spent['epsilon']:.2f} at delta {spent['delta']:g} for each hospital, over "
        f"{counted(spent['releases'], 'model')} (noise {spent['noise_multiplier']:g} times the "
        f"clip norm {spent['clip']:g}, {counted(spent['sites'], 'hospital')}). It covers the "
        "models that others receive, not the metrics, nor what the coordinator sees." + simulated
    )

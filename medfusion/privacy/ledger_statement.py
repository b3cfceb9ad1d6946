"""What a ledger says to the people of its hospital: spent, reserved, left, release by release."""

from math import isfinite
from typing import Any

from medfusion.privacy.accounting import Events, composed_epsilon, merged
from medfusion.privacy.ledger_book import Book, Charge, Reservation
from medfusion.privacy.plan_costs import PlanCosts, ReleaseKind
from medfusion.privacy.renyi_filter import Gate


def statement(book: Book, gate: Gate, *, site: str) -> dict[str, Any]:
    """Return plain JSON data; figures about a ledger hold no patient's.

    ``epsilon`` is what the gate counts for everything reserved, and ``remaining`` the rest of
    ``max_epsilon``. The two figures ``fixed_in_advance`` are tighter and hold if no plan was
    chosen in view of an earlier one's releases: ``released`` of what has been charged so far,
    ``reserved`` of all plans.
    """
    plans = book.plans()
    epsilon = gate.epsilon(plans)
    return {
        "schema": 1,
        "site": site,
        "uuid": book.uuid or None,
        "epsilon": _finite(epsilon),
        "delta": gate.delta,
        "max_epsilon": gate.max_epsilon,
        "remaining": max(gate.max_epsilon - epsilon, 0.0),
        "fixed_in_advance": {
            "released": _cost(book.released(), gate),
            "reserved": _cost(merged(event for plan in plans for event in plan), gate),
        },
        "runs": [_run(book, run, gate) for run in book.reservations.values()],
        "releases": [_release(book, charge, gate) for charge in book.charges.values()],
    }


def _run(book: Book, run: Reservation, gate: Gate) -> dict[str, Any]:
    """Tell a run's plan and, kind by kind, what each costs alone and how much was charged."""
    return {
        "run": run.run,
        "reserved": run.at,
        "epsilon": _cost(run.costs.events(), gate),
        "rounds": run.costs.rounds,
        "kinds": {
            kind: {
                "releases": paid.releases,
                "charged": _charged(book, run, kind),
                "epsilon": _cost(run.costs.of_kind(kind), gate),
            }
            for kind, paid in run.costs.paid.items()
        },
    }


def _charged(book: Book, run: Reservation, kind: ReleaseKind) -> int:
    return sum(slot[:2] == (run.number, kind) for slot in book.slots)


def _release(book: Book, charge: Charge, gate: Gate) -> dict[str, Any]:
    reservation, kind, number = charge.slot
    return {
        "row": charge.number,
        "at": charge.at,
        "run": book.reservations[reservation].run,
        "kind": kind,
        "round": number,
        "epsilon": _cost((book.cost(charge),), gate),
        "stored": charge.reply_sha256 is not None,
    }


def _cost(events: Events, gate: Gate) -> float | None:
    return _finite(composed_epsilon(events, delta=gate.delta))


def _finite(epsilon: float) -> float | None:
    """Return None for what a site's delta, made smaller since, no longer bounds."""
    return epsilon if isfinite(epsilon) else None


def planned(book: Book, gate: Gate, costs: PlanCosts, *, run: str) -> dict[str, Any]:
    """Return how many rounds of a run that is planned would fit beside those reserved."""
    fit = gate.rounds_that_fit(book.plans(), costs)
    return {"run": run, "rounds": costs.rounds, "rounds_that_fit": fit}

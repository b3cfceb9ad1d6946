"""What the entries of a ledger add up to: plans reserved, releases charged, replies stored."""

from dataclasses import dataclass, field
from typing import Any

from medfusion.errors import FederationError
from medfusion.privacy.accounting import Events, NoisedSums, merged
from medfusion.privacy.ledger_chain import EMPTY, Entry, Head
from medfusion.privacy.plan_costs import PlanCosts, ReleaseKind

Slot = tuple[int, ReleaseKind, int]
"""What is released at most once: of a reservation, a kind, in a round."""


@dataclass(frozen=True)
class Reservation:
    """A plan that was admitted; ``number`` is that of its entry."""

    number: int
    at: str
    run: str
    settings_sha256: str
    costs: PlanCosts


@dataclass
class Charge:
    """A release that was paid for; ``reply_sha256`` is None until it was stored."""

    number: int
    at: str
    slot: Slot
    content: str
    reply_sha256: str | None = None


@dataclass
class Book:
    """The history up to ``head``, which `add` takes further."""

    uuid: str = ""
    site: str = ""
    head: Head = EMPTY
    hashes: list[str] = field(default_factory=lambda: [EMPTY.hash])
    reservations: dict[int, Reservation] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)
    slots: dict[Slot, Charge] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take in an entry, which `check_chain` has let pass."""
        facts = entry.facts
        match entry.kind:
            case "create":
                self.uuid, self.site = facts["uuid"], facts["site"]
            case "reserve":
                self.reservations[entry.number] = Reservation(
                    entry.number,
                    entry.at,
                    facts["run"],
                    facts["settings_sha256"],
                    PlanCosts.from_json(facts["costs"]),
                )
            case "charge":
                self._charge(entry, facts)
            case "store":
                self.charges[facts["charge"]].reply_sha256 = facts["reply_sha256"]
        self.head = Head(entry.number, entry.hash)
        self.hashes.append(entry.hash)

    def holds(self, head: Head) -> bool:
        """Whether the history went through ``head``."""
        return head.count < len(self.hashes) and self.hashes[head.count] == head.hash

    def plans(self) -> list[Events]:
        """Return what each reserved plan pays for, in the order of the reservations."""
        return [reservation.costs.events() for reservation in self.reservations.values()]

    def reservation_of(self, settings_sha256: str) -> Reservation | None:
        """Return the reservation of a run's settings."""
        for reservation in self.reservations.values():
            if reservation.settings_sha256 == settings_sha256:
                return reservation
        return None

    def cost(self, charge: Charge) -> NoisedSums:
        """Return what a charge paid."""
        reservation, kind, _ = charge.slot
        return self.reservations[reservation].costs.paid[kind].each

    def released(self) -> Events:
        """Everything that was charged, merged."""
        return merged(self.cost(charge) for charge in self.charges.values())

    def check_slot(self, slot: Slot) -> None:
        """Refuse a release that no reserved plan pays for.

        Raises
        ------
        FederationError
        """
        reservation, kind, _ = slot
        paid = self.reservations[reservation].costs.paid.get(kind)
        limit = paid.releases if paid else 0
        if sum(seen[:2] == slot[:2] for seen in self.slots) >= limit:
            raise FederationError(
                f"the run's plan pays for {limit} releases of kind {kind!r}; refused"
            )

    def _charge(self, entry: Entry, facts: dict[str, Any]) -> None:
        slot: Slot = (facts["reservation"], facts["kind"], facts["round"])
        charge = Charge(entry.number, entry.at, slot, facts["content"])
        self.charges[entry.number] = self.slots[slot] = charge

"""What the coordinator says, asked at Flower's own Fleet API over TLS."""

import datetime
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from fleet_server import OWNER, fleet_server, public_key

from client.doctor import coordinator as asked
from client.doctor.checks import Check
from client.doctor.coordinator import (
    Coordinator,
    check_admission,
    check_clock,
    clock_difference,
)
from client.link.fleet import Fleet
from medfusion.federation.kit import SiteKit
from medfusion.federation.node_key import NodeKey

INTERVAL = 30.0


@pytest.fixture
def flower(ward: Any) -> Iterator[Any]:
    with fleet_server(ward.server) as state:
        yield state


def coordinator(kit: SiteKit) -> Coordinator:
    key = NodeKey.read(kit.node_key).private
    return Coordinator(kit.address, ca=kit.ca.read_bytes(), key=key)


def admission(kit: SiteKit, *, known_as: int = 0, ahead: float = 0.0) -> Check:
    return check_admission(coordinator(kit), ahead=ahead, known_as=known_as)


def admit(flower: Any, kit: SiteKit) -> int:
    return int(flower.create_node(OWNER, OWNER, public_key(kit), INTERVAL))


def test_admitted_not_yet_and_not_any_more(ward: Any, flower: Any) -> None:
    kit = ward.kit()
    found = admission(kit)
    assert (found.status, found.found.split(":")[0]) == ("failed", "not admitted")
    node = admit(flower, kit)
    assert admission(kit, known_as=node).status == "ok"
    assert admission(ward.kit("east")).status == "failed"
    flower.delete_node(OWNER, node)
    found = admission(kit, known_as=node)
    assert found.status == "failed"
    assert f"not admitted any more: it was, as node {node}" in found.found


def test_asking_neither_activates_a_node_nor_disturbs_its_link(ward: Any, flower: Any) -> None:
    kit = ward.kit()
    node = admit(flower, kit)

    def info() -> Any:
        (found,) = flower.get_node_info(node_ids=[node])
        return found.status, found.last_activated_at, found.online_until

    before = info()
    assert admission(kit).status == "ok"
    check_clock(coordinator(kit))
    assert info() == before
    link = Fleet(
        kit.address, ca=kit.ca.read_bytes(), key=NodeKey.read(kit.node_key).private, patience=60
    )
    link.join(0)
    before = info()
    assert admission(kit, known_as=node).status == "ok"
    check_clock(coordinator(kit))
    assert info() == before
    assert before[0] == "online"
    assert link.beat()
    link.close()


@pytest.mark.parametrize(
    ("off", "status", "text"),
    [
        (0.0, "ok", ""),
        (200.0, "warning", "200."),
        (4.0, "warning", "ahead of"),
        (3600.0, "failed", "behind the coordinator's"),
        (-3600.0, "failed", "ahead of the coordinator's"),
        (200_000.0, "failed", "more than a day"),
    ],
)
def test_a_wrong_clock_is_measured_and_does_not_hide_the_admission(
    ward: Any,
    flower: Any,
    monkeypatch: pytest.MonkeyPatch,
    off: float,
    status: str,
    text: str,
) -> None:
    off = -off if text == "ahead of" else off  # our clock is ahead where the other's is behind
    kit = ward.kit()
    admit(flower, kit)
    true_now = asked.now
    monkeypatch.setattr(asked, "now", lambda: true_now() - datetime.timedelta(seconds=off))
    monkeypatch.setattr(asked, "_FARTHEST", 7200.0)
    ahead, found = check_clock(coordinator(kit))
    assert found.status == status, found
    assert text in found.found
    if abs(off) < 7200:
        assert ahead == pytest.approx(off, abs=1.0)
        assert admission(kit, ahead=ahead).status == "ok"


@pytest.mark.parametrize("true", [-40_000.0, -310.0, -5.1, -4.9, 0.0, 304.0, 306.0, 86_000.0])
def test_clock_difference_by_the_edges_of_what_is_accepted(true: float) -> None:
    found = clock_difference(lambda ahead: -5 < true - ahead < 305)
    assert found == pytest.approx(true, abs=0.25)


def test_a_clock_beyond_a_day_is_not_found() -> None:
    assert clock_difference(lambda ahead: -5 < 100_000 - ahead < 305) is None


def test_a_server_that_is_gone_is_told(ward: Any) -> None:
    kit = ward.kit()
    ahead, found = check_clock(coordinator(kit))
    assert (ahead, found.status) == (0.0, "failed")
    assert grpc.StatusCode.UNAVAILABLE.name in found.found
    assert admission(kit).status == "failed"

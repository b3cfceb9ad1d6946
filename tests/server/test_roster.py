"""Who takes part in a run: the roll call, and the sites that strategies draw from."""

import json
import time

import pytest
from fake_federation import NAMES, PATIENTS, Federation

from medfusion.errors import ConfigError, DataError, FederationError, MedFusionError
from medfusion.transport.requests import error_reply
from server.admitted import Admitted
from server.roster_grid import RosterGrid


def test_strategies_count_and_draw_from_one_list(federation):
    roster = federation.roll()
    view = RosterGrid(federation.grid, roster, quorum=2, timeout=0.2)
    assert list(view.get_node_ids()) == [3, 5, 7]
    federation.grid.sites.pop(5)
    assert list(view.get_node_ids()) == [3, 5, 7]
    fresh = RosterGrid(federation.grid, roster, quorum=2, timeout=0.2)
    assert list(fresh.get_node_ids()) == [3, 7]


def test_a_draw_of_sites_does_not_depend_on_the_order_of_connection(tmp_path):
    drawn = []
    for turn in range(4):
        part = Federation(tmp_path / str(turn), "strategy.fraction_train=0.4", "server.min_sites=1")
        part.run()
        drawn.append({name: part.trained(name) for name in PATIENTS})
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]
    assert sum(map(len, drawn[0].values())) == 3


def test_a_silent_node_is_left_out_with_a_warning(federation):
    federation.grid.silent.add(5)
    roster = federation.roll()
    assert list(roster.sites) == ["east", "west"]
    assert roster.nodes == [3, 7]
    assert len(federation.warnings) == 1
    assert "node 5 is left out" in federation.warnings[0]
    federation.grid.silent.add(3)
    with pytest.raises(FederationError, match="expected at least 2"):
        federation.roll()


def test_an_answered_error_ends_the_roll_call_at_once(tmp_path):
    federation = Federation(tmp_path, "server.round_timeout=120.0")
    federation.grid.silent.add(3)
    federation.sites["north"].describe = lambda content, number: error_reply(DataError("row 5"))
    begin = time.monotonic()
    with pytest.raises(DataError, match="node 5: row 5"):
        federation.roll()
    assert time.monotonic() - begin < 60


def test_a_site_with_the_features_in_another_order_is_refused(federation):
    task = federation.task.to_json()
    task["features"] = dict(reversed(task["features"].items()))
    federation.sites["north"].task = task
    with pytest.raises(
        FederationError, match=r"site 'north'.*differs from the run's in \[features\] "
    ):
        federation.roll()


def test_two_sites_of_one_name_are_refused(federation):
    federation.sites["north"].name = "east"
    with pytest.raises(FederationError, match="two called 'east'"):
        federation.roll()


def test_more_epsilon_than_a_site_allows_is_refused(tmp_path):
    federation = Federation(tmp_path, "privacy.enabled=true", "privacy.target_epsilon=9")
    with pytest.raises(ConfigError, match="allows at most 8"):
        federation.roll()


@pytest.mark.parametrize("left", [2, 1])
def test_a_deployed_run_leaves_out_what_fails_or_does_not_fit(federation, left):
    federation.simulated = False
    federation.sites["north"].describe = lambda content, number: error_reply(DataError("row 5"))
    if left == 2:
        assert list(federation.roll().sites) == ["east", "west"]
        assert "node 5 is left out for now: row 5" in federation.warnings[0]
        return
    federation.sites["east"].task = federation.task.to_json() | {"features": {}}
    with pytest.raises(MedFusionError, match="1 of 3 sites answered"):
        federation.roll()


def test_a_site_under_another_ones_name_is_left_out(federation, tmp_path):
    nodes = {name: node for node, name in NAMES.items()}
    path = tmp_path / "registered.json"
    sites = {name: {"node_id": node} for name, node in nodes.items()}
    path.write_text(json.dumps({"sites": sites}))
    federation.simulated, federation.admitted = False, Admitted(path)
    assert len(federation.roll().sites) == 3
    sites["south"] = sites.pop("north")  # as which its node was admitted
    path.write_text(json.dumps({"sites": sites}))
    assert list(federation.roll().sites) == ["east", "west"]
    assert "calls itself 'north' and was admitted as 'south'" in federation.warnings[-1]

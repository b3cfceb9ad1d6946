"""A simulation's ledger lasts as long as its run can be resumed; a site's own one for ever."""

from pathlib import Path

from ledgers import SITE, new_ledger

from client.node.simulated import forget_simulated, node_app, simulated_secret
from medfusion.data.site_data import load_site_data
from medfusion.privacy.ledger import Ledger
from medfusion.privacy.ledger_file import LEDGER


def test_a_scratch_ledger_is_forgotten_and_may_be_begun_anew(cohort: Path, tmp_path: Path) -> None:
    data = load_site_data(next((cohort / "sites").iterdir()))
    for _ in range(2):
        node_app(data, tmp_path / "state", simulated_secret(0, data.name))
        assert (tmp_path / "state" / LEDGER).exists()
        forget_simulated(tmp_path / "state")
        assert list((tmp_path / "state").glob(f"{LEDGER}*")) == []


def test_a_sites_own_ledger_is_not_forgotten(tmp_path: Path) -> None:
    new_ledger(tmp_path).close()  # its witnesses are in another folder
    forget_simulated(tmp_path / "state")
    forget_simulated(tmp_path / "none")
    ledger = Ledger(tmp_path / "state", site=SITE, witnesses=tmp_path / "witnesses")
    assert ledger.book.head.count == 1

from medfusion.transport.requests import SiteDescription
from server.app import _fingerprint
from server.roster import Roster


def test_a_run_is_resumed_with_the_same_sites_secrets_and_files_only():
    def roster(patients):
        facts = {"task": {}, "delta": 1e-5, "max_epsilon": 8.0, "signer": "A" * 43 + "="}
        site = SiteDescription(site="a", patients_public=patients, **facts)
        return Roster(sites={"a": site}, names={1: "a"})

    one = _fingerprint("run", roster(5), simulated=True, files="")
    assert one == _fingerprint("run", roster(5), simulated=True, files="")
    others = {
        _fingerprint("run", roster(5), simulated=False, files=""),
        _fingerprint("run", roster(6), simulated=True, files=""),
        _fingerprint("other", roster(5), simulated=True, files=""),
        _fingerprint("run", roster(5), simulated=True, files="a"),
        _fingerprint("run", roster(5), simulated=True, files="b"),
    }
    assert len(others | {one}) == 6

"""Mutated bytes from outside are refused cleanly; `fuzz.py` searches for longer."""

import logging

from fuzz import Fuzz


def test_mutated_input_is_refused_by_our_own_errors_only(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    fuzz = Fuzz(tmp_path, seed=0)
    report = fuzz.run(1000)
    assert not report.wrong
    assert sum(report.refused.values()) > 500
    assert sum(report.accepted.values()) > 50

"""The benchmark of boxes around lungs refuses arms that it does not have."""

import pytest
from lungs import ARMS, main


def test_an_unknown_arm_is_refused_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lungs.py", "config.toml", "out", "--arms", "pooled,foo"])
    with pytest.raises(SystemExit):
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert f"argument --arms: expected names of arms between commas ({', '.join(ARMS)}), " in told
    assert "found 'foo'" in told

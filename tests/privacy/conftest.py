import pytest

from medfusion.privacy import dp_sgd


@pytest.fixture(params=["book_keeping", "opacus"])
def each_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken where there is a rule for every layer, then what is taken elsewhere."""
    if request.param == "opacus":
        from medfusion.privacy.opacus_hooks import OpacusHooks

        monkeypatch.setattr(dp_sgd, "engine_for", OpacusHooks)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfusion.errors import FederationError
from medfusion.federation.versions import check_coordinator, own_version

NUMBERS = st.integers(0, 30)
TAILS = st.sampled_from(["", ".0", ".17", "rc1", ".0.dev3+g1"])


def accepted(coordinator: object, own: str) -> bool:
    try:
        check_coordinator(coordinator, own=own)
    except FederationError:
        return False
    return True


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, TAILS, TAILS)
def test_a_site_takes_its_own_minor_version_and_the_one_before(
    major: int, minor: int, own_major: int, own_minor: int, tail: str, own_tail: str
) -> None:
    fits = major == own_major and own_minor - minor in (0, 1)
    assert accepted(f"{major}.{minor}{tail}", f"{own_major}.{own_minor}{own_tail}") is fits


@pytest.mark.parametrize(
    ("coordinator", "who"),
    [("0.3.0", "site"), ("1.0.0", "site"), ("1.2.0", "site"), ("0.0.9", "coordinator")],
)
def test_a_refusal_names_both_versions_and_who_upgrades(coordinator: str, who: str) -> None:
    with pytest.raises(FederationError) as caught:
        check_coordinator(coordinator, own="0.2.1")
    assert f"runs MedFusion {coordinator}, this site 0.2.1" in str(caught.value)
    assert f"the {who} has to upgrade" in str(caught.value)


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text())))
def test_what_is_no_version_is_refused_and_not_repeated(found: object) -> None:
    if isinstance(found, str) and found.startswith("0.2"):
        return
    with pytest.raises(FederationError, match=r"0\.2\.1"):
        check_coordinator(found, own="0.2.1")


@pytest.mark.parametrize("found", ["0.2.1\n", "0.2 1", "0.21", "\u0660.\u0662", "0.2" + ".1" * 40])
def test_what_only_looks_like_the_version_is_refused(found: str) -> None:
    assert not accepted(found, "0.2.1")


def test_every_version_works_with_itself() -> None:
    check_coordinator(own_version(), own=own_version())

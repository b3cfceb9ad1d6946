import dataclasses
import re
from typing import Any

import pytest

from medfusion.errors import ConfigError, DataError
from medfusion.privacy.options import PrivacyOptions, Shares
from medfusion.privacy.plan import DpPlan, make_plan
from medfusion.privacy.plan_calibration import MAX_NOISE_MULTIPLIER


def plan_with(options: PrivacyOptions | None = None, **changes: Any) -> DpPlan:
    arguments: dict[str, Any] = {
        "patients_public": 400,
        "batch_size": 32,
        "steps_per_round": 13,
        "rounds": 4,
        "delta": 1e-5,
        "selects": True,
        "metrics_releases": 1,
    }
    return make_plan(options or PrivacyOptions(), **(arguments | changes))


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        (8.0, {}),
        (40.0, {}),
        (1.0, {"selects": False, "metrics_releases": 0}),
        (0.1, {"patients_public": 20, "metrics_releases": 4}),
        (8.0, {"patients_public": 50_000, "steps_per_round": 150, "rounds": 20}),
    ],
)
def test_plan_spends_the_target_and_no_more(target: float, changes: dict[str, Any]) -> None:
    plan = plan_with(PrivacyOptions(target_epsilon=target), **changes)
    assert 0.98 * target <= plan.epsilon() <= target


def test_rates_and_denominators_are_public() -> None:
    plan = plan_with(patients_public=79, batch_size=32)
    assert plan.sample_rate == 32 / 79
    assert plan.expected_batch == pytest.approx(32)
    assert plan.warnings == ()


def test_batch_above_the_patients_means_everybody_and_a_warning() -> None:
    plan = plan_with(patients_public=20, batch_size=32)
    assert plan.sample_rate == 1
    assert plan.expected_batch == 20
    assert "every patient" in plan.warnings[0]


def test_delta_that_allows_a_leak_is_warned_of() -> None:
    assert "delta" in plan_with(delta=0.01).warnings[0]


def test_larger_share_gets_less_noise() -> None:
    usual = plan_with()
    shares = Shares(selection=0.4, training=0.5, metrics=0.1)
    other = plan_with(PrivacyOptions(shares=shares))
    assert other.selection_noise < usual.selection_noise / 2
    assert other.noise_multiplier > usual.noise_multiplier


def test_what_is_not_released_gives_its_share_to_the_rest() -> None:
    both = plan_with()
    alone = plan_with(selects=False, metrics_releases=0)
    assert alone.selection_noise is None
    assert alone.metrics_noise is None
    assert alone.noise_multiplier < both.noise_multiplier


def test_more_releases_of_metrics_need_more_noise_each() -> None:
    one, four = plan_with(metrics_releases=1), plan_with(metrics_releases=4)
    assert four.metrics_noise == pytest.approx(2 * one.metrics_noise, rel=0.02)


@pytest.mark.parametrize("target", [-1.0, 0.0, 1e-6])
def test_impossibly_small_epsilon_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match=r"nearest possible one is 0\.00"):
        plan_with(PrivacyOptions(target_epsilon=target))


def test_nearest_possible_small_epsilon_is_possible() -> None:
    changes = {"rounds": 100, "batch_size": 400}
    with pytest.raises(ConfigError, match="impossible") as caught:
        plan_with(PrivacyOptions(target_epsilon=0.01), **changes)
    nearest = float(re.findall(r"nearest possible one is (\S+)", str(caught.value))[0])
    assert nearest > 0.1
    plan = plan_with(PrivacyOptions(target_epsilon=nearest), **changes)
    assert 0.98 * nearest <= plan.epsilon() <= nearest
    assert 0.9 * MAX_NOISE_MULTIPLIER < plan.noise_multiplier <= MAX_NOISE_MULTIPLIER
    assert plan.selection_noise <= MAX_NOISE_MULTIPLIER


@pytest.mark.parametrize("changes", [{}, {"rounds": 1, "steps_per_round": 1, "batch_size": 1}])
def test_impossibly_large_epsilon_names_the_nearest(changes: dict[str, Any]) -> None:
    changes = {"selects": False, "metrics_releases": 0, **changes}
    with pytest.raises(ConfigError, match="nearest possible one is") as caught:
        plan_with(PrivacyOptions(target_epsilon=1e9), **changes)
    nearest = float(re.findall(r"nearest possible one is (\S+)", str(caught.value))[0])
    plan = plan_with(PrivacyOptions(target_epsilon=nearest), **changes)
    assert 0.98 * nearest <= plan.epsilon() <= nearest


@pytest.mark.parametrize(
    "changes",
    [{"patients_public": 0}, {"batch_size": 0}, {"rounds": 0}, {"delta": 0.0}, {"delta": 1.0}],
)
def test_values_without_meaning_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        plan_with(**changes)


def test_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_with().noise_multiplier = 0.1  # type: ignore[misc]


def test_plan_refuses_fields_that_contradict_one_another() -> None:
    plan = plan_with()
    with pytest.raises(ValueError, match="metrics_noise"):
        dataclasses.replace(plan, metrics_releases=0)
    with pytest.raises(ValueError, match="sample_rate"):
        dataclasses.replace(plan, sample_rate=1.1)
    with pytest.raises(ValueError, match="noise_multiplier"):
        dataclasses.replace(plan, noise_multiplier=0.0)


def test_a_plan_comes_back_from_the_card_that_recorded_it() -> None:
    plan = plan_with(PrivacyOptions(unit_norm=True, clip_quantile=0.5))
    card = dataclasses.asdict(plan) | {"epsilon": plan.epsilon()}
    assert DpPlan.from_card(card, site="north") == plan
    without = {name: card[name] for name in card if name not in ("unit_norm", "clip_quantile")}
    older = DpPlan.from_card(without, site="north")
    assert older == dataclasses.replace(plan, unit_norm=False, clip_quantile=None)
    with pytest.raises(DataError, match=r"sites\.north: missing delta, rounds$"):
        DpPlan.from_card(
            {name: card[name] for name in card if name not in ("delta", "rounds")}, site="north"
        )
    with pytest.raises(DataError, match="unheard"):
        DpPlan.from_card(card | {"unheard": 1}, site="north")


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ConfigError, match=r"sum to 1, found 1\.1"):
        PrivacyOptions.parse({"shares": {"training": 0.9}}, where="config.toml")


def test_misspelt_share_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'training'"):
        PrivacyOptions.parse({"shares": {"trainin": 0.8}}, where="config.toml")

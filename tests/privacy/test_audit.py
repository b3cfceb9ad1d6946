"""Sound plans pass; plans that are not executed as they say are caught at epsilon 1."""

from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from faulty_plans import executed_with, sampled

from medfusion.privacy.audit.keys import AuditKeys
from medfusion.privacy.audit.run import PlanAudit, audit_plan
from medfusion.privacy.options import PrivacyOptions
from medfusion.privacy.plan import DpPlan, make_plan
from medfusion.randomness import stream

CLAIM, SEED = 1.0, 7
SECRET, OTHER_SECRET = b"nobody knows it".ljust(32), b"nor this one".ljust(32)
PUBLIC_SECRET = b"what a simulation has".ljust(32)


pytestmark = pytest.mark.usefixtures("one_thread")


@lru_cache
def sound_plan(rounds: int = 6, steps: int = 10, batch_size: int = 50) -> DpPlan:
    """Epsilon 1 at delta 1e-5, all of it for training."""
    return make_plan(
        PrivacyOptions(target_epsilon=CLAIM),
        patients_public=500,
        batch_size=batch_size,
        steps_per_round=steps,
        rounds=rounds,
        delta=1e-5,
        selects=False,
        metrics_releases=0,
    )


def keys(secret: bytes = SECRET) -> AuditKeys:
    return AuditKeys(
        run="study",
        seed=SEED,
        site="north",
        secret=secret,
        public_secrets={"the secret of simulations": PUBLIC_SECRET},
    )


def audit(plan: DpPlan, secret: bytes = SECRET, **changes: Any) -> PlanAudit:
    coins = stream(SEED, "coins", changes.pop("coins", 0))
    return audit_plan(plan, claim=CLAIM, keys=keys(secret), coins=coins, **changes)


def test_a_sound_plan_is_not_refuted() -> None:
    found = audit(sound_plan())
    assert found.verdict == "not refuted"
    assert found.guesses.bound <= CLAIM < found.largest
    assert found.replayed is None
    assert (found.canaries, found.confidence, found.delta) == (1000, 0.999, 1e-5)
    assert 400 < found.included.sum() < 600


@pytest.mark.parametrize("unit_norm", [False, True])
def test_a_canary_adds_its_clipping_norm_where_it_is_drawn_and_noise_comes_as_planned(
    unit_norm: bool,
) -> None:
    plan = replace(sound_plan(rounds=2, steps=4), max_grad_norm=0.3, unit_norm=unit_norm)
    found = audit(plan, canaries=4000)
    steps, rate = 8, plan.sample_rate
    absent, present = found.scores[~found.included], found.scores[found.included]
    noise = steps * plan.noise_multiplier**2
    assert abs(absent.mean()) < 4 * (noise / len(absent)) ** 0.5
    assert absent.var() == pytest.approx(noise, rel=0.15)
    spread = noise + steps * rate * (1 - rate)
    assert abs(present.mean() - steps * rate) < 4 * (spread / len(present)) ** 0.5
    assert present.var() == pytest.approx(spread, rel=0.15)


def test_noise_off_is_caught() -> None:
    with executed_with(noise_multiplier=1e-4):
        found = audit(sound_plan())
    assert found.verdict == "refuted"
    assert found.guesses.bound > 2.5


def test_clipping_off_is_caught() -> None:
    # The noise stays what it was: a multiple of the norm that nobody is held to.
    with executed_with(max_grad_norm=1e4, noise_multiplier=1e-4):
        assert audit(sound_plan()).verdict == "refuted"


def test_a_tenth_of_the_noise_is_caught_and_most_of_it_is_not() -> None:
    with executed_with(noise_multiplier=0.1):
        assert audit(sound_plan()).verdict == "refuted"
    with executed_with(noise_multiplier=0.7):
        assert audit(sound_plan()).verdict == "not refuted"  # one run sees gross faults only


def test_an_accountant_reset_each_round_is_caught() -> None:
    one_round = sound_plan(rounds=1, steps=1, batch_size=500)
    assert one_round.epsilon() == pytest.approx(CLAIM, rel=0.011)
    assert audit(one_round).verdict == "not refuted"
    assert audit(replace(one_round, rounds=60)).verdict == "refuted"


def test_a_wrong_sampling_rate_is_caught() -> None:
    assert sound_plan().sample_rate == 0.1
    with sampled(10):
        assert audit(sound_plan()).verdict == "refuted"


@pytest.mark.parametrize(
    ("secret", "name"),
    [
        (PUBLIC_SECRET, "the secret of simulations"),
        (sha256(b"7").digest(), "a hash of the run's seed"),
        (b"7".rjust(32, b"\0"), "the run's seed"),
        (bytes(32), "no secret at all"),
    ],
)
def test_noise_from_a_public_seed_is_caught(secret: bytes, name: str) -> None:
    found = audit(sound_plan(), secret)
    assert found.replayed == name
    assert found.verdict == "refuted"
    # What is left is the number of draws, without any noise.
    assert np.allclose(found.scores, found.scores.round(), atol=1e-2)
    assert np.all(found.scores[~found.included].round() == 0)


def test_too_few_canaries_or_too_large_a_delta_cannot_tell() -> None:
    plan = sound_plan(rounds=1, steps=1, batch_size=500)
    few = audit(plan, canaries=20)
    assert (few.verdict, few.largest < CLAIM) == ("cannot tell", True)
    loose = audit(replace(plan, delta=0.01))
    assert (loose.verdict, loose.largest) == ("cannot tell", 0.0)
    with pytest.raises(ValueError, match="canaries=19"):
        audit(plan, canaries=19)


def test_the_same_keys_and_coins_give_the_same_audit() -> None:
    plan, rounds = sound_plan(rounds=1, steps=1, batch_size=500), []
    first = audit(plan, canaries=40, on_round=lambda: rounds.append(1))
    again = audit(plan, canaries=40)
    other = audit(plan, OTHER_SECRET, canaries=40)
    assert np.array_equal(first.scores, again.scores)
    assert np.array_equal(first.included, other.included)
    assert not np.array_equal(first.scores, other.scores)
    assert not np.array_equal(first.included, audit(plan, canaries=40, coins=1).included)
    assert rounds == [1]

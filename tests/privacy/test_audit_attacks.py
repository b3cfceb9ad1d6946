"""Both attacks work where nothing protects, and fail under a private plan."""

import numpy as np
import pytest
from plans import training_plan

from medfusion.privacy.audit.attacks import Membership, inversion, membership
from medfusion.privacy.audit.keys import AuditKeys
from medfusion.privacy.plan import DpPlan

KEYS = AuditKeys(run="study", seed=3, site="north", secret=b"secret".ljust(32), public_secrets={})


pytestmark = pytest.mark.usefixtures("one_thread")


def plan(noise_multiplier: float, rounds: int = 2) -> DpPlan:
    return training_plan(640, 0.05, noise=noise_multiplier, steps=5, rounds=rounds)


def test_an_image_is_read_from_a_plain_update_and_not_from_a_private_one() -> None:
    plain, private = inversion(None, KEYS), inversion(plan(1.0), KEYS)
    assert plain.images.shape == (4, 32, 32)
    assert np.abs(plain.recovered - plain.images).max() < 1e-3
    assert min(plain.correlation) > 0.999
    assert np.array_equal(private.images, plain.images)
    assert max(np.abs(private.correlation)) < 0.2


def test_clipping_alone_hides_no_image() -> None:
    clipped = inversion(plan(1e-3), KEYS)
    assert min(clipped.correlation) > 0.99


def test_members_are_known_by_their_loss_without_privacy_only() -> None:
    rounds: list[int] = []
    plain = membership(None, KEYS)
    private = membership(plan(2.0), KEYS, lambda: rounds.append(1))
    assert plain.auroc > 0.8  # half of the others are right by chance
    assert plain.members.mean() < 0.2 < plain.others.mean()
    assert abs(private.auroc - 0.5) < 0.15
    assert len(rounds) == 2


def test_roc_and_its_area_equal_a_count_of_pairs() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 40) / 4, rng.integers(1, 12, 40) / 4
    pairs = np.subtract.outer(others, members)
    area = float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    false, true = Membership(members=members, others=others, auroc=area).roc()
    assert float(np.trapezoid(true, false)) == pytest.approx(area)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(false) >= 0)
    from medfusion.privacy.audit.attacks import _area

    assert _area(members, others) == pytest.approx(area)

"""Privacy of whole sites: what one site can change, how much noise there is, and what it costs."""

import hashlib
import json
import stat
from fractions import Fraction

import numpy as np
import pytest
from fake_federation import PATIENTS, STEPS, Federation, arrays_of
from flwr.app import Array, ArrayRecord
from replies import make_reply

from medfusion.digests import sha256_of
from medfusion.errors import ConfigError, DataError
from medfusion.privacy.options import ClientDpOptions
from medfusion.transport.requests import ARRAYS, METRICS, WEIGHT_KEY
from server.client_dp import ClientDp, clipped_update, coordinators_secret

KEY = bytes(range(32))
ON = (
    "server.client_dp.clip=0.5",
    "server.client_dp.noise_multiplier=1e-6",
    "selection.method=none",
)


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def model(rng):
    return {
        "scale": np.float32(rng.normal()),  # without dimensions
        "weight": rng.normal(size=(3, 2)).astype(np.float32),
        "steps": np.int64(7),
    }


def flat(arrays):
    return np.concatenate([np.ravel(arrays[name]).astype(float) for name in ("scale", "weight")])


def mechanism(folder, *, sites=3, clip=0.5, noise=1e-9, key=KEY):
    options = ClientDpOptions(clip=clip, noise_multiplier=noise)
    return ClientDp(options, "run-1", sites, folder, key)


def means(folder, incoming, replies, **parts):
    """Return the model that comes out, as a vector."""
    messages = {name: make_reply(arrays, 5) for name, arrays in replies.items()}
    reply = mechanism(folder, **parts).combine(1, record(**incoming), messages)
    return flat({name: a.numpy() for name, a in reply.content.array_records[ARRAYS].items()})


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.5, 40.0])
def test_an_update_is_clipped_over_all_its_numbers_and_no_others(size):
    rng = np.random.default_rng(1)
    before, step = model(rng), rng.normal(size=7)
    step *= size / np.linalg.norm(step)
    after = {
        "scale": np.float64(before["scale"] + step[0]),
        "weight": before["weight"].astype(float) + step[1:].reshape(3, 2),
        "steps": np.int64(900),  # a buffer far away counts for nothing
    }
    found = clipped_update(record(**after), record(**before), 0.5)
    np.testing.assert_allclose(found, step * min(1.0, 0.5 / max(size, 1e-12)), atol=1e-7)
    assert np.linalg.norm(found) <= 0.5 * (1 + 1e-12)


def test_a_scalar_parameter_alone_is_clipped():
    found = clipped_update(record(scale=np.float32(9.0)), record(scale=np.float32(1.0)), 0.5)
    np.testing.assert_allclose(found, [0.5])


@pytest.mark.parametrize("other", ["huge", "opposite", "absent", "broken"])
def test_one_site_moves_the_mean_by_its_clip_at_most(tmp_path, other):
    """Against numpy, with every replacement of one site's update; the denominator stays."""
    rng = np.random.default_rng(2)
    before = model(rng)

    def at(step):
        moved = flat(before) + step
        weight = moved[1:].reshape(3, 2).astype(np.float32)
        return {"scale": np.float32(moved[0]), "weight": weight, "steps": before["steps"]}

    steps = {name: rng.normal(size=7) for name in "abc"}
    whole = means(tmp_path, before, {n: at(s) for n, s in steps.items()})
    expected = flat(before) + sum(0.5 * s / np.linalg.norm(s) for s in steps.values()) / 3
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    replaced = {n: at(s) for n, s in steps.items()}
    if other == "absent":
        del replaced["c"]
    else:
        factor = {"huge": 1e6, "opposite": -3.0, "broken": np.nan}[other]
        replaced["c"] = at(factor * steps["c"])
    changed = means(tmp_path, before, replaced)
    most = 2 * 0.5 / 3 if other == "opposite" else 0.5 / 3  # replaced, or zeroed out
    moved = np.linalg.norm(changed - whole)
    assert moved <= most + 1e-6
    if other in ("opposite", "absent", "broken"):
        assert moved == pytest.approx(most, abs=1e-6)


def test_the_noise_has_the_planned_size(tmp_path):
    before = {"scale": np.float32(0), "weight": np.zeros((100, 40), np.float32)}
    same = {name: dict(before) for name in "ab"}
    found = means(tmp_path, before, same, sites=4, clip=2.0, noise=3.0)
    assert found.std() == pytest.approx(3.0 * 2.0 / 4, rel=5 / np.sqrt(2 * found.size))
    assert abs(found.mean()) < 5 * 1.5 / np.sqrt(found.size)


def test_the_same_round_gets_the_same_noise_and_is_paid_once(tmp_path):
    rng = np.random.default_rng(3)
    before, after = model(rng), model(rng)
    first = means(tmp_path, before, {"a": after}, noise=1.0)
    np.testing.assert_array_equal(means(tmp_path, before, {"a": after}, noise=1.0), first)
    assert mechanism(tmp_path, noise=1.0).account()["releases"] == 1
    other = means(tmp_path, before, {"b": model(rng)}, noise=1.0)
    assert not np.isclose(other, first).any()
    assert mechanism(tmp_path, noise=1.0).account()["releases"] == 2


def test_other_noise_is_paid_for(tmp_path):
    """A secret that was replaced gives the same updates a second noise: a second release."""
    rng = np.random.default_rng(3)
    before, replies = model(rng), {"a": model(rng)}
    first, other = (
        means(tmp_path, before, replies, noise=1.0, key=key) for key in (KEY, KEY[::-1])
    )
    assert not np.isclose(other, first).any()
    assert mechanism(tmp_path, noise=1.0).account()["releases"] == 2


def test_a_lost_secret_is_not_replaced_once_it_was_used(tmp_path):
    rng = np.random.default_rng(3)
    key = coordinators_secret(tmp_path, seed=0, simulated=False)
    means(tmp_path, model(rng), {"a": model(rng)}, key=key)
    secret = tmp_path / "client-dp.secret"
    secret.unlink()
    with pytest.raises(DataError, match=r"restore it from a backup, or .* in a new folder"):
        coordinators_secret(tmp_path, seed=0, simulated=False)
    assert not secret.exists()
    secret.write_bytes(key)
    assert coordinators_secret(tmp_path, seed=0, simulated=False) == key


def test_the_charges_tell_nothing_of_the_sum(tmp_path):
    """Who guesses it, and knows all that is public, cannot check his guess without the secret."""
    rng = np.random.default_rng(3)
    before, after = model(rng), model(rng)
    for key in (KEY, KEY[::-1]):
        means(tmp_path, before, {"a": after}, key=key)
    charges = json.loads((tmp_path / "client-dp.json").read_text())["charges"]
    contents = {charge["content"] for charge in charges}
    assert len(contents) == 2
    total = clipped_update(record(**after), record(**before), 0.5)
    names = sorted(before)
    sent = [record(**before)[name].data for name in names]
    named = [part for name, data in zip(names, sent, strict=True) for part in (name.encode(), data)]
    bare = hashlib.sha256(total.tobytes() + b"".join(sent)).hexdigest()
    assert not {bare, sha256_of([total.tobytes(), *named])} & contents


@pytest.mark.parametrize("sites", [2, 300])
def test_the_noise_is_sized_for_what_the_sum_moves_by_in_floating_point(
    tmp_path, monkeypatch, sites
):
    """Exactly, in rational numbers: rounding brings some updates above the clip."""
    seen = []
    monkeypatch.setattr(
        "server.client_dp.noised", lambda total, **how: seen.append((total, how)) or total
    )
    rng = np.random.default_rng(6)
    before = {"w": np.zeros(20)}
    replies = {f"{number:03}": {"w": rng.normal(size=20)} for number in range(sites)}
    most = 0
    for name in list(replies)[:40]:
        for taking_part in (replies, {n: r for n, r in replies.items() if n != name}):
            messages = {n: make_reply(arrays, 5) for n, arrays in taking_part.items()}
            mechanism(tmp_path, sites=sites, clip=0.1).combine(1, record(**before), messages)
        (whole, how), (less, _) = seen[-2:]
        moved = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(whole, less, strict=True))
        most = max(most, moved)
        assert moved <= Fraction(how["sensitivity"]) ** 2
    assert Fraction(0.1) ** 2 < most
    assert how["sensitivity"] <= 0.1 * (1 + 1e-8)


def test_epsilon_is_that_of_an_independent_accountant(tmp_path):
    from dp_accounting import GaussianDpEvent, NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    private = mechanism(tmp_path, noise=4.0)
    assert private.account()["epsilon"] == 0.0
    rng = np.random.default_rng(4)
    for number in range(1, 10):
        private.combine(number, record(**model(rng)), {"a": make_reply(model(rng), 5)})
    account = private.account()
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(GaussianDpEvent(4.0), 9)
    assert account["epsilon"] == pytest.approx(accountant.get_epsilon(account["delta"]), rel=5e-3)
    assert account["releases"] == 9


def test_a_run_is_the_strategy_on_equally_weighted_clipped_updates(tmp_path):
    federation = Federation(tmp_path, *ON, "run.rounds=2")
    outcome = federation.run()
    expected = {name: a.numpy().astype(float) for name, a in federation.loop()[0]._start.items()}
    size = sum(array.size for array in expected.values())
    for number in (1, 2):
        steps = [STEPS[name] * number * np.sqrt(size) for name in sorted(PATIENTS)]
        step = sum(np.clip(s, -0.5, 0.5) for s in steps) / 3 / np.sqrt(size)
        expected = {name: value + step for name, value in expected.items()}
    for name, value in arrays_of(outcome).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    assert outcome.client_dp["releases"] == 2
    plain = Federation(tmp_path / "plain", "selection.method=none", "run.rounds=2").run()
    assert plain.client_dp is None
    assert not np.allclose(*(next(iter(arrays_of(o).values())) for o in (plain, outcome)))


@pytest.mark.parametrize("setting", ["clip=0.25", "noise_multiplier=2.0", "delta=1e-7"])
def test_every_option_changes_the_result(tmp_path, setting):
    usual = Federation(tmp_path / "a", *ON, "run.rounds=1").run()
    federation = Federation(tmp_path / "b", *ON, f"server.client_dp.{setting}", "run.rounds=1")
    other = federation.run()
    assert usual.client_dp != other.client_dp
    weights = (next(iter(arrays_of(outcome).values())) for outcome in (usual, other))
    same = np.allclose(*weights, atol=1e-4)
    assert same == setting.startswith("delta")


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_a_run_that_is_cut_goes_on_to_the_same_model(tmp_path, strategy):
    settings = (*ON, f"strategy.name={strategy}", "server.client_dp.noise_multiplier=0.1")
    whole = Federation(tmp_path / "whole", *settings)
    (whole.folder / "client-dp.secret").write_bytes(KEY)
    expected = arrays_of(whole.run())
    cut = Federation(tmp_path / "cut", *settings)
    (cut.folder / "client-dp.secret").write_bytes(KEY)
    cut.grid.before = lambda kind, number: cut.grid.silent.update({3, 5} if number == 3 else ())
    with pytest.raises(Exception, match="sites answered"):
        cut.run()
    outcome = Federation(tmp_path / "cut", *settings).run()
    assert outcome.client_dp["releases"] == 3
    for name, value in arrays_of(outcome).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("strategy.name=krum", "looks at single sites"),
        ("strategy.name=fedmedian", "looks at single sites"),
        ("selection.method=federated", "expected 'none'"),
        ("selection.method=local", "expected 'none'"),
        ("server.client_dp.clip=0", "clip"),
        ("server.client_dp.noise_multiplier=0", "noise_multiplier"),
        ("server.client_dp.clp=1", "clip"),
    ],
)
def test_combinations_without_a_guarantee_are_refused(tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        Federation(tmp_path, *ON, setting)


def test_the_secret_is_the_coordinators_own(tmp_path):
    made = coordinators_secret(tmp_path, seed=0, simulated=False)
    assert coordinators_secret(tmp_path, seed=1, simulated=False) == made
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    simulated = coordinators_secret(tmp_path, seed=0, simulated=True)
    assert simulated not in (made, coordinators_secret(tmp_path, seed=1, simulated=True))
    private = mechanism(tmp_path)
    assert repr(KEY) not in repr(private)
    path.write_bytes(b"short")
    with pytest.raises(DataError, match="expected 32 bytes"):
        coordinators_secret(tmp_path, seed=0, simulated=False)


@pytest.mark.parametrize("ledger", ["{", "[]", "{}", '{"charges": {}}'])
def test_a_damaged_ledger_is_named(tmp_path, ledger):
    (tmp_path / "client-dp.json").write_text(ledger)
    with pytest.raises(DataError, match="backup"):
        mechanism(tmp_path).account()


def test_the_strategy_sees_one_site_of_weight_one(tmp_path):
    rng = np.random.default_rng(5)
    reply = mechanism(tmp_path).combine(
        1, record(**model(rng)), {name: make_reply(model(rng), 70) for name in "ab"}
    )
    assert dict(reply.content.metric_records[METRICS]) == {WEIGHT_KEY: 1}
    assert reply.content.array_records[ARRAYS]["steps"].numpy() == 7


def test_no_noise_is_used_twice(tmp_path):
    """Other updates, another round or another model: noise that is known helps with none."""

    def noise(number=1, *, start=0.0, step=0.125):
        before = {"weight": np.full(64, start, np.float32)}  # sums are exact
        after = {"weight": np.full(64, start + step / 8, np.float32)}  # of norm ``step``
        reply = mechanism(tmp_path, noise=1.0).combine(
            number, record(**before), {"a": make_reply(after, 5)}
        )
        return reply.content.array_records[ARRAYS]["weight"].numpy() - start - step / 8 / 3

    usual = noise()
    np.testing.assert_allclose(noise(), usual, atol=1e-6)
    for other in (noise(2), noise(start=1.0), noise(step=0.25)):
        assert abs(np.corrcoef(other, usual)[0, 1]) < 0.6  # of 64 draws: 5 deviations are 0.62

"""What is told of the weights that a model began with."""

import hashlib
import json

import pytest
from initial_models import build, save, trained

from medfusion.errors import ConfigError
from medfusion.models.initial_weights import InitialWeights
from medfusion.models.options import MedFusionNetOptions


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_source_of_the_weights_is_recorded_without_its_place(tmp_path, weights):
    options = MedFusionNetOptions()
    first = trained(options)
    folder = save(tmp_path / "model", first, options)
    plain = tmp_path / "w.safetensors"
    plain.write_bytes((folder / "model.safetensors").read_bytes())
    for init, size, kind, file in (
        (weights, "121", "torchvision", weights),
        (plain, "tiny", "tensors", plain),
        (folder, "tiny", "medfusion", folder / "model.safetensors"),
        (folder / "model.safetensors", "tiny", "medfusion", folder / "model.safetensors"),
    ):
        found = build(size=size, init=str(init)).initial_weights
        assert found == InitialWeights(kind=kind, sha256=digest(file))
        assert str(tmp_path) not in repr(found)


def test_a_model_without_init_has_no_record(weights):
    assert build(size="tiny").initial_weights is None
    assert build(init=str(weights), modalities=("tabular",)).initial_weights is None


def test_the_largest_epsilon_that_a_model_declares_is_recorded(tmp_path):
    options = MedFusionNetOptions()
    folder = save(tmp_path / "model", trained(options), options)
    card = json.loads((folder / "model.json").read_text())
    earlier = {"kind": "tensors", "sha256": "c" * 64}
    sites = {"a": {"epsilon": 2.0, "delta": 1e-4}, "b": {"epsilon": 5.5, "delta": 1e-5}}
    privacy = {"enabled": True, "simulated": True, "sites": sites}
    told = card | {"privacy": privacy, "initial_weights": earlier}
    (folder / "model.json").write_text(json.dumps(told))
    found = build(size="tiny", init=str(folder)).initial_weights
    assert (found.epsilon, found.delta, found.simulated) == (5.5, 1e-5, True)
    assert found.initial_weights == InitialWeights(**earlier)
    open_run = {"enabled": False, "simulated": True, "sites": {}}
    (folder / "model.json").write_text(json.dumps(card | {"privacy": open_run}))
    found = build(size="tiny", init=str(folder)).initial_weights
    assert (found.epsilon, found.simulated) == (None, False)


RECORD = {"kind": "medfusion", "sha256": "c" * 64}
WRONG = [
    {"initial_weights": "abc"},
    {"kind": ["a"]},
    {"kind": "elsewhere"},
    {"sha256": "north"},
    {"epsilon": "x", "delta": 0.1},
    {"epsilon": 1.0, "delta": "1e-5"},
    {"epsilon": 1.0},
    {"epsilon": float("inf"), "delta": 0.1},
    {"patients": ["Ada"]},
]


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"sites": {"a": {}}}},
        {"privacy": {"sites": {"a": {"epsilon": float("nan"), "delta": 0.1}}}},
        {"privacy": "none"},
        {"initial_weights": 3},
        {"privacy": {"sites": {"a": {"epsilon": 1.0, "delta": "1e-5"}}}},
        *({"initial_weights": RECORD | wrong} for wrong in WRONG),
        *({"initial_weights": RECORD | {"initial_weights": RECORD | wrong}} for wrong in WRONG),
    ],
)
def test_a_card_that_no_run_wrote_is_refused_before_the_training(tmp_path, change):
    options = MedFusionNetOptions()
    folder = save(tmp_path / "model", trained(options), options)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | change))
    with pytest.raises(ConfigError, match="under privacy and initial_weights"):
        build(size="tiny", init=str(folder))

"""Light augmentation: what it may change, and what it must leave."""

import numpy as np
import pytest
import torch
from torch import Tensor

from medfusion.data.encode import encode_tabular
from medfusion.data.task import Task
from medfusion.data.thresholds import feature_label_histograms, select_features
from medfusion.training import augmentation
from medfusion.training.augmentation import augment

B, H, W, T = 300, 16, 40, 30
TASK = Task.parse(
    {
        "task": {"name": "ward", "kind": "multilabel"},
        "features": {
            "age": {"kind": "numeric", "low": 0, "high": 100},
            "site": {"kind": "categorical", "values": ["left", "right", "both"]},
            "smoker": {"kind": "binary"},
            "noise": {"kind": "binary"},
        },
        "labels": {"names": ["ill", "dead"]},
    },
    where="test",
)
COLUMN_FEATURES = torch.tensor([0, 1, 1, 1, 2, 3])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_features() -> np.ndarray:
    rng = np.random.default_rng(0)
    ranges = [rng.uniform(0, 100, B), rng.integers(0, 3, B), *rng.integers(0, 2, (2, B))]
    features = np.stack(ranges, axis=1).astype(float)
    features[rng.random(features.shape) < 0.2] = np.nan
    features[0] = np.nan
    return features


def encode(features: np.ndarray) -> Tensor:
    whole = draw_features()
    labels = np.stack([whole[:, 0] > 50, whole[:, 1] == 1], axis=1).astype(float)
    histograms = feature_label_histograms(whole, labels, TASK)
    return torch.from_numpy(encode_tabular(features, TASK, select_features(histograms, TASK, 2)))


def make_inputs() -> dict[str, Tensor]:
    draw = generator(5)
    present = torch.rand(B, generator=draw) < 0.7
    tokens = torch.randint(1, 99, (B, T), generator=draw)
    tokens[::3] = 0
    tokens[1::3, T // 2 :] = 0
    image = 2 * torch.rand(B, 1, H, W, generator=draw) - 1
    return {
        "image": image * present[:, None, None, None],
        "image_present": present,
        "tabular": encode(draw_features()),
        "tokens": tokens,
        "text_states": torch.rand(B, T, 3, generator=draw),
    }


def run(inputs: dict[str, Tensor], draw: torch.Generator | None = None) -> dict[str, Tensor]:
    return augment(inputs, COLUMN_FEATURES, draw or generator())


def test_a_batch_cut_into_pieces_draws_the_same():
    inputs, draw = make_inputs(), generator()
    whole = run(inputs)
    pieces = [run({n: x[part] for n, x in inputs.items()}, draw) for part in cut(1, 7, B)]
    for name in inputs:
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), whole[name]), name


def cut(*ends: int) -> list[slice]:
    return [slice(start, end) for start, end in zip((0, *ends), ends, strict=False)]


def test_a_study_does_not_depend_on_the_others():
    inputs, other = make_inputs(), make_inputs()
    for name in other:
        other[name][1:] = other[name][1:].flip(0)
    first, second = run(inputs), run(other)
    for name in inputs:
        assert torch.equal(first[name][0], second[name][0]), name
    assert not torch.equal(first["image"], second["image"])


def test_the_callers_tensors_stay_and_other_draws_give_other_views():
    inputs, untouched = make_inputs(), make_inputs()
    found, other = run(inputs), run(inputs, generator(1))
    for name, before in untouched.items():
        assert torch.equal(inputs[name], before), name
        same = name in ("image_present", "text_states")
        assert torch.equal(found[name], before) == same, name
        assert torch.equal(found[name], other[name]) == same, name


def test_missing_stays_missing_and_present_stays_present():
    inputs = make_inputs()
    found = run(inputs)
    present = inputs["image_present"]
    assert (found["image"][~present] == 0).all()
    assert (found["image"][present] != 0).flatten(1).any(dim=1).all()
    notes = inputs["tokens"][:, 0] > 0
    assert torch.equal(found["tokens"][:, 0], inputs["tokens"][:, 0])
    assert (found["tokens"][~notes] == 0).all()
    known = [
        ((x[..., 2] > 0) & (x[..., 1] == 0)).any(dim=1)
        for x in (inputs["tabular"], found["tabular"])
    ]
    assert torch.equal(*known)
    assert not known[0][0]


def test_a_study_of_one_known_feature_keeps_it():
    features = np.full((B, 4), np.nan)
    features[:, 0] = 40.0
    whole = {"tabular": encode(features)}
    assert torch.equal(run(whole)["tabular"], whole["tabular"])


def test_hidden_features_look_exactly_as_missing_ones_do():
    features = draw_features()
    before = encode(features)
    found = run({"tabular": before})["tabular"]
    first_columns = [0, 1, 4, 5]
    hidden = (found[..., 1] > before[..., 1])[:, first_columns].numpy()
    assert torch.equal(found, encode(np.where(hidden, np.nan, features)))
    known = ~np.isnan(features)
    assert hidden[known].mean() == pytest.approx(augmentation.HIDDEN, abs=0.03)


def test_tokens_are_hidden_at_the_rate_and_keep_their_places():
    tokens = torch.randint(1, 99, (B, T), generator=generator(2))
    found = run({"tokens": tokens})["tokens"]
    hidden = found == 0
    assert torch.equal(found[~hidden], tokens[~hidden])
    assert float(hidden[:, 1:].float().mean()) == pytest.approx(augmentation.HIDDEN, abs=0.01)


def test_images_move_by_small_similarities(monkeypatch):
    """Pixels that hold their own place tell where each pixel came from."""
    monkeypatch.setattr(augmentation, "CONTRAST", 0.0)
    monkeypatch.setattr(augmentation, "BRIGHTNESS", 0.0)
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    places = torch.stack([rows, columns]).float() / 64 - 0.5
    inputs = {
        "image": places.expand(B, 2, H, W),
        "image_present": torch.ones(B, dtype=torch.bool),
    }
    source = (run(inputs)["image"] + 0.5) * 64
    inner = source[:, :, H // 2 - 2 : H // 2 + 2, W // 2 - 2 : W // 2 + 2]
    down = (inner[:, :, -1] - inner[:, :, 0]).mean(-1) / 3  # [B, 2]: source rows, columns
    right = (inner[..., -1] - inner[..., 0]).mean(-1) / 3
    torch.testing.assert_close(down[:, 0], right[:, 1], atol=2e-4, rtol=0)  # no shear, no mirror
    torch.testing.assert_close(down[:, 1], -right[:, 0], atol=2e-4, rtol=0)
    centre = inner.mean(dim=(2, 3)) - torch.tensor([H - 1, W - 1]) / 2
    measured = {
        "SCALE": right.norm(dim=1) - 1,
        "TURN": torch.atan2(right[:, 0], right[:, 1]),
        "SHIFT": centre / torch.tensor([H, W]),
    }
    for name, values in measured.items():
        bound = getattr(augmentation, name)
        assert float(values.abs().max()) < bound + 1e-3, name
        assert float(values.min()) < -0.8 * bound, name
        assert float(values.max()) > 0.8 * bound, name


def test_contrast_and_brightness_vary_within_the_range_of_pixels():
    grey = torch.full((B, 1, H, W), 0.5)
    grey[:, :, :, W // 2 :] = -1.0
    found = run({"image": grey, "image_present": torch.ones(B, dtype=torch.bool)})["image"]
    assert float(found.min()) == -1.0
    corner = found[:, 0, H // 2, 0]
    most = 0.5 * augmentation.CONTRAST + augmentation.BRIGHTNESS
    assert float((corner - 0.5).abs().max()) < most
    assert float(corner.std()) > most / 4


def make_volumes(image: Tensor) -> dict[str, Tensor]:
    return {"image": image, "image_present": torch.ones(len(image), dtype=torch.bool)}


def test_a_volume_turns_shifts_and_scales_as_the_draws_say(monkeypatch):
    """Against the same map written out for the centre of a bright block."""
    for name in ("CONTRAST", "BRIGHTNESS"):
        monkeypatch.setattr(augmentation, name, 0.0)
    sides = (20, 24, 16)
    image = torch.full((3, 1, *sides), -1.0)
    image[:, :, 12:15, 6:9, 4:7] = 1.0
    centre = torch.tensor([13.0, 7.0, 5.0])
    draws = 2 * torch.rand(3, 9, generator=generator(3)) - 1
    moved = augmentation._change_volume(image, draws)
    for study in range(3):
        turn = augmentation._turn(augmentation.TURN * draws[study, None, :3])[0]
        assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-6)
        scale = 1 + augmentation.SCALE * draws[study, 3]
        half = (torch.tensor(sides) - 1) / 2
        shift = augmentation.SHIFT * draws[study, 4:7] * torch.tensor(sides)
        # A voxel at p reads the voxel at turn @ (p - middle) * scale + middle + shift.
        expected = torch.linalg.solve(turn * scale, centre - half - shift) + half
        bright = (moved[study, 0] + 1).double()
        axes = torch.meshgrid(*(torch.arange(n) for n in sides), indexing="ij")
        found = torch.stack([(axis * bright).sum() / bright.sum() for axis in axes])
        torch.testing.assert_close(found.float(), expected, atol=0.15, rtol=0)


def test_volumes_change_by_draws_of_their_own_and_absent_ones_stay_black():
    inputs = make_volumes(2 * torch.rand(8, 1, 16, 18, 20, generator=generator(1)) - 1)
    image = inputs["image"].clone()
    inputs["image_present"][3] = False
    inputs["image"][3] = 0.0
    whole = augment(inputs, COLUMN_FEATURES, generator())["image"]
    assert not whole[3].any()
    draw = generator()
    halves = [
        augment({name: x[part] for name, x in inputs.items()}, COLUMN_FEATURES, draw)["image"]
        for part in (slice(0, 3), slice(3, 8))
    ]
    assert torch.equal(torch.cat(halves), whole)
    assert float(whole.abs().max()) <= 1.0
    assert all(not torch.equal(whole[i], image[i]) for i in range(8) if i != 3)

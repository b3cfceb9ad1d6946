import weakref

import numpy as np
import pytest
import torch
from explained import TASK, random_model
from torch import nn
from torch.nn import functional

from medfusion.data.encode import encode_tabular
from medfusion.data.thresholds import Selection
from medfusion.explain.generated_weights import generated_layers, sweep_features
from medfusion.models.blocks.generated import Generated
from medfusion.models.options import HyperFusionOptions, MedFusionNetOptions


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("base", [nn.Linear(6, 5), nn.Conv2d(3, 5, 3, padding=1, bias=False)])
def test_weights_are_those_that_the_layer_applies(base, rank):
    layer = Generated(base, 4, rank)
    embedding = torch.randn(2, 4)
    x = torch.randn(2, 6) if isinstance(base, nn.Linear) else torch.randn(2, 3, 7, 7)
    apply = functional.linear if isinstance(base, nn.Linear) else functional.conv2d
    more = {} if isinstance(base, nn.Linear) else {"padding": 1}
    with torch.no_grad():
        made = layer.weights(embedding)
        by_hand = [apply(one[None], w, **more)[0] for one, w in zip(x, made, strict=True)]
        torch.testing.assert_close(
            layer(x, embedding) - layer.base(x), torch.stack(by_hand), rtol=1e-4, atol=1e-5
        )


def swept(selection=None, task=TASK):
    options = HyperFusionOptions(width=8, stages=2, generated=("image.stages.1.down", "head1"))
    model = random_model(options, task)
    columns = model.embedding.columns.tabular.weight
    with torch.no_grad():
        columns.view(len(columns), 5, -1)[:, 4] = 0.0  # nothing reads the last column, `smoker`
    features = np.array([[40.0, 1.0, 0.0], [np.nan, 2.0, 1.0]])
    return model, features, sweep_features(model, features, task, selection)


def test_weights_move_with_what_they_are_made_of():
    model, _, sweeps = swept()
    assert [sweep.feature for sweep in sweeps] == ["age", "sex", "smoker"]
    age, sex, smoker = sweeps
    assert (age.values[0], age.values[-1], sex.values.tolist()) == (0.0, 120.0, [0.0, 1.0, 2.0])
    assert list(age.change) == list(generated_layers(model)) == ["image.stages.1.down", "head1"]
    for name in age.change:
        assert age.change[name][0] == 0
        assert age.change[name][1:].min() > 0
        assert smoker.change[name].tolist() == [0.0, 0.0]


def test_a_change_is_the_norm_over_that_of_the_layer_itself():
    model, features, (age, *_) = swept()
    layer, weights = model.head1, []
    for value in (0.0, 120.0):
        changed = features.copy()
        changed[:, 0] = value
        x = torch.from_numpy(encode_tabular(changed, TASK, None)).double()
        weights.append(layer.weights(model.embedding(x)).detach().numpy())
    norms = [np.sqrt(((one - first) ** 2).sum()) for first, one in zip(*weights, strict=True)]
    own = np.sqrt((layer.base.weight.detach().numpy() ** 2).sum())
    assert age.change["head1"][-1] == pytest.approx(np.mean(norms) / own)


def test_features_that_are_not_selected_are_left_out():
    chosen = {"feature": "sex", "label": "icu", "category": "M", "direction": "above", "score": 0.7}
    selection = Selection.from_json({"thresholds": [chosen], "top_n": 1}, TASK)
    _, _, sweeps = swept(selection)
    assert [sweep.feature for sweep in sweeps] == ["sex"]


def test_medfusion_net_s_generated_layers_are_swept_against_what_they_convolve_with():
    options = MedFusionNetOptions(
        modalities=("image", "tabular"), fusion="hyperfusion", linear_path=False
    )
    model, features = random_model(options), np.array([[40.0, 1.0, 0.0], [np.nan, 2.0, 1.0]])
    age, *_ = sweep_features(model, features, TASK, None)
    ((name, change),) = age.change.items()
    assert name == "image.streams.transitions.2.conv"
    layer, made = generated_layers(model)[name], []
    for value in (0.0, 120.0):
        x = torch.from_numpy(
            encode_tabular(np.array([[value, *f[1:]] for f in features]), TASK, None)
        )
        made.append(layer.weights(model.embedding(x.double())).detach())
    moved = (made[1] - made[0]).flatten(1).norm(dim=1).mean()
    assert change[-1] == pytest.approx(float(moved) / layer.base.out_channels**0.5, rel=1e-3)


def test_weights_of_few_studies_at_two_values_are_held_at_once(monkeypatch):
    options = HyperFusionOptions(width=8, stages=2, generated=("image.stages.1.down", "head1"))
    model = random_model(options)
    features = np.stack([[5.0 * n, n % 3, n % 2] for n in range(19)])
    each = [sweep_features(model, one[None], TASK, None) for one in features]
    held, most, rows, original = [], [], [], Generated.weights

    def weights(layer, embedding):
        made = original(layer, embedding)
        held.append(weakref.ref(made))
        most.append(sum(one() is not None for one in held))
        rows.append(len(made))
        return made

    monkeypatch.setattr(Generated, "weights", weights)
    together = sweep_features(model, features, TASK, None)
    assert (max(most), max(rows)) == (2, 8)
    for number, sweep in enumerate(together):
        for name, change in sweep.change.items():
            mean = np.mean([one[number].change[name] for one in each], axis=0)
            np.testing.assert_allclose(change, mean, rtol=1e-6, atol=1e-9)

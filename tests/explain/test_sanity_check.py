"""The sanity check of Adebayo et al. 2018 (arXiv 1810.03292): explanations are of the model.

Weights are drawn anew layer by layer, from the last one down. What explains the model must come to
differ from what it was (Spearman's rank correlation over places falls), whatever the image holds.
"""

from collections.abc import Callable

import pytest
import torch
from explained import TASK
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d

from medfusion.explain.grad_cam import grad_cam
from medfusion.explain.integrated_gradients import column_attributions
from medfusion.explain.occlusion import occlusion
from medfusion.models.hyperfusion import HyperFusion
from medfusion.models.options import HyperFusionOptions
from medfusion.models.registry import build_model

OPTIONS = HyperFusionOptions(fusion="concat", width=8, stages=2)
CASCADE = (("head2", "columns"), ("head1",), ("image.stages.1",), ("image.stages.0", "image.stem"))


def studies(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draw images with clutter; the first label is a bright mark, the second the first column."""
    draw = torch.Generator().manual_seed(seed)
    image = 0.4 * torch.randn(count, 1, 32, 32, generator=draw) - 0.3
    image[:, :, ::7] -= 0.5  # lines, for those who look for edges
    marked = torch.rand(count, generator=draw) < 0.5
    for row, (y, x) in enumerate(torch.randint(2, 22, (count, 2), generator=draw).tolist()):
        image[row, 0, y : y + 7, x : x + 7] += 1.2 * marked[row]
    tabular = torch.randn(count, 5, 5, generator=draw)
    tabular[..., 1], tabular[..., 2], tabular[..., 3:] = 0.0, 1.0, 0.0
    labels = torch.stack([marked, tabular[:, 0, 0] > 0], dim=1).float()
    present = torch.ones(count, dtype=torch.bool)
    return {"image": image, "image_present": present, "tabular": tabular}, labels


@pytest.fixture(scope="module")
def trained() -> HyperFusion:
    torch.set_num_threads(1)
    model = build_model(OPTIONS, TASK, seed=0)
    inputs, labels = studies(128, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(60):
        rows = slice(32 * (step % 4), 32 * (step % 4) + 32)
        batch = {name: values[rows] for name, values in inputs.items()}
        loss = binary_cross_entropy_with_logits(model(batch), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4
    return model.eval()


def randomised(model: HyperFusion, depth: int) -> HyperFusion:
    """Return a copy whose last ``depth`` layers are as another seed draws them."""
    fresh = build_model(OPTIONS, TASK, seed=1)
    names = [name for layer in CASCADE[:depth] for name in layer]
    state = {
        name: (fresh if name.startswith(tuple(names)) else model).state_dict()[name]
        for name in model.state_dict()
    }
    fresh.load_state_dict(state)
    return fresh.eval()


Explainer = Callable[[HyperFusion, dict[str, Tensor]], Tensor]


def edges(model: HyperFusion, inputs: dict[str, Tensor]) -> Tensor:
    """An explainer that never asks the model."""
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])[None, None]
    image = inputs["image"]
    return conv2d(image, kernel).abs() + conv2d(image, kernel.transpose(2, 3)).abs()


def correlations(explain: Explainer, model: HyperFusion) -> list[float]:
    """Return the mean rank correlation with the model's own explanation, layer by layer."""
    inputs, _ = studies(12, seed=1)
    before = explain(model, inputs).flatten(1)
    found = []
    for depth in range(1 + len(CASCADE)):
        after = explain(randomised(model, depth), inputs).flatten(1)
        ranks = [
            spearmanr(a, b).statistic
            for a, b in zip(before, after, strict=True)
            if a.std() > 0 and b.std() > 0
        ]
        found.append(sum(ranks) / len(ranks) if ranks else 0.0)  # an empty map is like none
    return found


def is_sane(explain: Explainer, model: HyperFusion) -> bool:
    unchanged, *cascade = correlations(explain, model)
    assert unchanged == pytest.approx(1.0)
    return abs(cascade[-1]) < 0.5 and min(cascade) < 0.5


EXPLAINERS: dict[str, Explainer] = {
    "grad_cam": lambda model, inputs: grad_cam(model, inputs, (0,))["last map"],
    "occlusion": lambda model, inputs: occlusion(model, inputs)[:, 0],
    "integrated_gradients": lambda model, inputs: column_attributions(model, inputs)[:, 1],
}


@pytest.mark.parametrize("explain", EXPLAINERS.values(), ids=EXPLAINERS.keys())
def test_explanations_change_with_the_weights(trained, explain):
    assert is_sane(explain, trained)


def test_an_explainer_that_ignores_the_model_is_found_out(trained):
    assert not is_sane(edges, trained)


def test_grad_cam_of_the_trained_model_points_at_the_mark(trained):
    """In marked images the warmest place lies on the mark, as occlusion's does."""
    inputs, labels = studies(40, seed=2)
    plain, _ = studies(40, seed=2)
    marked = labels[:, 0] > 0
    bright = torch.nn.functional.avg_pool2d(plain["image"], 7, 1).flatten(1).argmax(1)
    y, x = bright // 26 + 3, bright % 26 + 3
    for maps in (
        grad_cam(trained, inputs, (0,))["last map"][:, 0],
        occlusion(trained, inputs)[:, 0],
    ):
        side = maps.shape[-1]
        place = maps.flatten(1).argmax(1)
        away = torch.maximum(
            ((place // side + 0.5) * 32 / side - y).abs(),
            ((place % side + 0.5) * 32 / side - x).abs(),
        )
        assert (away[marked] < 8).float().mean() > 0.8

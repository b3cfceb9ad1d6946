import torch

from medfusion.data.encode import MISSING, SELECTED
from medfusion.data.task import Task
from medfusion.models.options import LogisticOptions
from medfusion.models.registry import build_model

K, L, B = 4, 2, 5
TASK = Task.parse(
    {
        "task": {"name": "logistic", "kind": "multilabel"},
        "features": {f"f{n}": {"kind": "numeric", "low": 0, "high": 1} for n in range(K)},
        "labels": {"names": ["a", "b"]},
    },
    where="test",
)


def make_inputs() -> torch.Tensor:
    """Columns 0 and 1 are selected; column 1 is missing in every other study."""
    draw = torch.Generator().manual_seed(0)
    tabular = torch.randn(B, K, 3 + L, generator=draw)
    tabular[..., SELECTED] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    tabular[..., MISSING] = 0.0
    tabular[::2, 1, MISSING] = 1.0
    return tabular


def test_it_weighs_what_is_known_of_the_selected_columns_and_not_their_flag() -> None:
    model = build_model(LogisticOptions(), TASK, seed=0)
    weight, bias = model.get_parameter("linear.weight"), model.get_parameter("linear.bias")
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(1))
        bias.copy_(torch.tensor([0.5, -2.0]))
    tabular = make_inputs()
    of_columns = weight.detach().reshape(L, K, 2 + L)
    expected = bias.detach().expand(B, L).clone()
    for column in (0, 1):
        for place, value in enumerate((0, MISSING, 3, 4)):  # value, missing, two indicators
            expected += tabular[:, column, value, None] * of_columns[:, column, place]
    torch.testing.assert_close(model({"tabular": tabular}).detach(), expected)


def test_a_gradient_is_no_longer_than_its_residual_times_what_is_read() -> None:
    """Constant inputs would lengthen it, and so have it clipped, for nothing."""
    model = build_model(LogisticOptions(), TASK, seed=0)
    tabular = torch.zeros(1, K, 3 + L)
    tabular[..., SELECTED] = 1.0
    model({"tabular": tabular})[0, 0].backward()
    norm = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    assert norm == 1.0  # that of the bias


def test_its_rows_are_indexed_by_column() -> None:
    model = build_model(LogisticOptions(), TASK, seed=0)
    ((name, (axis, width)),) = model.feature_rows().items()
    assert model.get_parameter(name).shape[axis] == K * width
    with torch.no_grad():
        model.get_parameter(name)[:, 3 * width :] = 7.0  # the last column, which is not selected
    assert float(model({"tabular": make_inputs()}).detach().abs().max()) == 0.0

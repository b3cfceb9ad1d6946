import pytest
import torch

from medfusion.data.encode import MISSING, SELECTED
from medfusion.data.task import Task
from medfusion.errors import ConfigError
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
    weight, bias = model.get_parameter("linear.tabular.weight"), model.get_parameter("bias.weight")
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(1))
        bias.copy_(torch.tensor([[0.5], [-2.0]]))
    tabular = make_inputs()
    of_columns = weight.detach().reshape(L, K, 2 + L)
    expected = bias.detach().flatten().expand(B, L).clone()
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


def multimodal() -> Task:
    return Task.parse(
        {
            "task": {"name": "logistic", "kind": "multilabel"},
            "image": {"size": [32, 32]},
            "text": {"max_tokens": 6},
            "features": {f"f{n}": {"kind": "numeric", "low": 0, "high": 1} for n in range(K)},
            "labels": {"names": ["a", "b"]},
        },
        where="test",
    )


def all_inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 900, (B, 6), generator=draw)
    tokens[:, 4:] = 0
    return {
        "image": torch.randn(B, 1, 32, 32, generator=draw),
        "image_present": torch.ones(B, dtype=torch.bool),
        "tabular": make_inputs(),
        "tokens": tokens,
    }


def test_it_adds_up_what_each_modality_says() -> None:
    options = LogisticOptions(modalities=("text", "image", "tabular"))
    model, inputs = build_model(options, multimodal(), seed=0), all_inputs()
    assert torch.equal(model(inputs), torch.zeros(B, L))
    names = {"image": "image", "tabular": "tabular", "text": "tokens"}
    draw = torch.Generator().manual_seed(4)
    weights = {name: model.get_parameter(f"linear.{name}.weight") for name in names}
    alone = []
    with torch.no_grad():
        for weight in weights.values():
            for other in weights.values():
                other.zero_()
            weight.normal_(generator=draw)
            alone.append(model(inputs))
            assert alone[-1].abs().min() > 0
        draw.manual_seed(4)
        for weight in weights.values():
            weight.normal_(generator=draw)
        torch.testing.assert_close(model(inputs), sum(alone))


@pytest.mark.parametrize("lost", ["image", "text"])
def test_of_what_is_absent_it_reads_that_it_is(lost: str) -> None:
    model = build_model(LogisticOptions(modalities=(lost,)), multimodal(), seed=0)
    weight = model.get_parameter(f"linear.{lost}.weight")
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(5))
    inputs = all_inputs()
    inputs["image_present"][1] = False
    inputs["tokens"][1] = 0
    logits = model(inputs).detach()
    torch.testing.assert_close(logits[1], weight[:, -1].detach())
    assert not torch.isclose(logits[0], logits[2]).any()


def test_an_image_and_a_note_weigh_the_same_however_large() -> None:
    """The gradient of the weights is as long as what is read."""
    for name in ("image", "text"):
        model = build_model(LogisticOptions(modalities=(name,)), multimodal(), seed=0)
        inputs = {key: value[:1] for key, value in all_inputs().items()}
        inputs["image"] = inputs["image"] * 0.3 + 0.2
        model(inputs)[0, 0].backward()
        gradient = model.get_parameter(f"linear.{name}.weight").grad
        assert float(gradient.norm()) == pytest.approx(6.0, rel=1e-3)


def test_padding_does_not_count() -> None:
    options = LogisticOptions(modalities=("text",))
    model, inputs = build_model(options, multimodal(), seed=0), all_inputs()
    with torch.no_grad():
        model.get_parameter("linear.text.weight").normal_()
    states = model.text_encoder(inputs["tokens"])
    other = states.clone()
    other[:, 4:] = 9.0
    told = [model(inputs | {"text_states": each}).detach() for each in (states, other)]
    torch.testing.assert_close(*told)
    torch.testing.assert_close(told[0], model(inputs).detach())


@pytest.mark.parametrize("value", [-1.0, -0.9, 0.0, 0.1234, 0.7, 1.0])
def test_a_blank_image_says_next_to_nothing(value: float) -> None:
    """Not what rounding makes of it, brought to full length."""
    model = build_model(LogisticOptions(modalities=("image",)), multimodal(), seed=0)
    inputs = {"image": torch.full((1, 1, 32, 32), value), "image_present": torch.tensor([True])}
    model(inputs)[0, 0].backward()
    assert float(model.get_parameter("linear.image.weight").grad.norm()) < 0.1


def test_its_encoder_is_not_trained() -> None:
    with pytest.raises(ConfigError, match="freeze"):
        LogisticOptions.parse({"text": {"freeze": False}}, where="test")

"""A detector keeps the contract in `medfusion.models.contract`, with its losses as outputs."""

import pytest
import torch
from detection_studies import detection_task, draw_inputs
from opacus import GradSampleModule
from torch import Tensor
from torch.func import functional_call, grad, vmap

from medfusion.errors import FederationError
from medfusion.evaluation.metrics import check_logits
from medfusion.models.contract import trainable_state
from medfusion.models.mdf_net import Encoded, Lesson, MdfNet
from medfusion.models.options import MdfNetOptions
from medfusion.models.registry import build_model
from medfusion.privacy import layer_gradients as layer_gradients  # registers them
from medfusion.privacy.book_keeping.engine import BookKeeping
from medfusion.privacy.clipping import Clipper

B = 6  # equal to no other dimension below
TASK = detection_task(32)
K = len(TASK.columns)
assert B not in {K, 3 + len(TASK.labels.names), 4, 32, 1, 7, 8, 9}

CASES = {
    "image": MdfNetOptions(fusion_3d="none", fusion_1d=False),
    "in_space": MdfNetOptions(fusion_1d=False),
    "beside": MdfNetOptions(fusion_3d="none"),
    "both": MdfNetOptions(),
    "gated": MdfNetOptions(fusion_3d="gated", fpn=True),
    "concat": MdfNetOptions(fusion_3d="concat", spatialisation="image"),
    "mobile": MdfNetOptions(backbone="mobilenet_v3", fpn=True),
    "mobile_image": MdfNetOptions(backbone="mobilenet_v3", spatialisation="image"),
    "masks": MdfNetOptions(mask_head=True),
    "masks_fpn": MdfNetOptions(mask_head=True, fpn=True, fusion_3d="none", fusion_1d=False),
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(options: MdfNetOptions) -> MdfNet:
    """A model in float64 whose parameters are all away from where they start."""
    options = options.model_copy(update={"proposals": 9})
    model = build_model(options, TASK, seed=0).double()
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in trainable_state(model).values():
            value.add_(0.02 * torch.randn(value.shape, generator=draw, dtype=torch.float64))
    return model


def with_gaps(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Study 1 lacks its image, study 2 its features, study 3 has a column that is not selected."""
    inputs = {name: value.clone() for name, value in inputs.items()}
    inputs["image_present"][1] = False
    inputs["image"][1] = 0.0
    inputs["tabular"][2, :, 0] = 0.0
    inputs["tabular"][2, :, 1] = 1.0
    inputs["tabular"][3, 1, 2] = 0.0
    return inputs


def one_by_one(model: MdfNet, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    rows = []
    for study in range(B):
        model.zero_grad(set_to_none=True)
        model({n: v[study : study + 1] for n, v in inputs.items()}).sum().backward()
        rows.append({n: p.grad.clone() for n, p in trainable_state(model).items()})
    model.zero_grad(set_to_none=True)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def by_hooks(model: MdfNet, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    hooked = GradSampleModule(model, loss_reduction="sum")
    hooked(inputs).sum().backward()
    found = {n: p.grad_sample.detach().clone() for n, p in trainable_state(model).items()}
    hooked.to_standard_module()
    model.zero_grad(set_to_none=True)
    return found


class Losses(torch.nn.Module):
    """The part of a detector that has gradients, given what to compare with."""

    def __init__(self, model: MdfNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor], lesson: Lesson) -> Tensor:
        encoded: Encoded = self.model.encode(inputs)
        return self.model.losses(encoded, lesson) * inputs["image_present"][:, None]


def by_vmap(model: MdfNet, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Boxes that suppress one another are beyond vmap: what to compare with is found before."""
    with torch.no_grad():
        lesson = model.lesson(model.encode(inputs), inputs)
    whole = Losses(model)

    def loss(state, study, proposals, anchors, regions, masks):
        one = {name: value.unsqueeze(0) for name, value in study.items()}
        named = {f"model.{name}": value for name, value in state.items()}
        targets = [
            targets and type(targets)(*(part.unsqueeze(0) for part in targets))
            for targets in (anchors, regions, masks)
        ]
        own = Lesson(proposals.unsqueeze(0), *targets)
        return functional_call(whole, named, (one, own)).sum()

    state = {n: p.detach() for n, p in trainable_state(model).items()}
    dims = (None, 0, *(None if part is None else 0 for part in lesson))
    return vmap(grad(loss), in_dims=dims)(state, inputs, *lesson)


@every_case
def test_per_sample_gradients_agree(options):
    model, inputs = build(options), with_gaps(draw_inputs(TASK, B))
    expected = one_by_one(model, inputs)
    for found in (by_hooks(model, inputs), by_vmap(model, inputs)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-10, msg=name)


@every_case
def test_book_keeping_clips_as_one_study_at_a_time(options):
    model, inputs = build(options), with_gaps(draw_inputs(TASK, B))
    expected = one_by_one(model, inputs)
    norms = torch.stack([each.flatten(1).norm(dim=1) for each in expected.values()]).norm(dim=0)
    assert norms[1] == 0  # no image, no lesson
    clip_at = float(norms[norms > 0].median())
    assert BookKeeping.knows(model)
    clipper = Clipper(model, BookKeeping(model), max_grad_norm=clip_at)
    found = clipper.clip(lambda: model(inputs).sum(dim=1))
    torch.testing.assert_close(found.norms, norms, rtol=1e-9, atol=0.0)
    factors = torch.where(norms > 0, (clip_at / norms).clamp(max=1.0), 1.0)
    for name, each in expected.items():
        total = torch.einsum("b,b...->...", factors, each)
        limit = 1e-9 * float(total.norm()) + 1e-13 * clip_at
        assert float((found.gradients[name] - total).norm()) <= limit, name


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_a_study_does_not_change_the_others(options, training):
    model = build(options).train(training)
    inputs, other = draw_inputs(TASK, B, 0), draw_inputs(TASK, B, 1)
    before = model(inputs)
    for study in range(B):
        changed = {name: value.clone() for name, value in inputs.items()}
        for name in changed:
            changed[name][study] = other[name][study]
        after = model(changed)
        kept = [row for row in range(B) if row != study]
        torch.testing.assert_close(after[kept], before[kept], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(after[study], before[study])


@every_case
def test_every_parameter_takes_part_and_matters(options):
    model = build(options)
    inputs = draw_inputs(TASK, B)
    for lost in ("image", "tabular"):
        missing = {**inputs, lost: torch.zeros_like(inputs[lost])}
        if lost == "image":
            missing["image_present"] = torch.zeros(B, dtype=torch.bool)
        model.zero_grad(set_to_none=True)
        model(missing).sum().backward()
        assert [name for name, p in trainable_state(model).items() if p.grad is None] == []
    model.zero_grad(set_to_none=True)
    for each in (inputs, with_gaps(inputs)):
        model(each).sum().backward()
    assert [name for name, p in trainable_state(model).items() if not p.grad.any()] == []


@every_case
def test_detections_do_not_know_what_was_drawn(options):
    model = build(options).eval()
    inputs = with_gaps(draw_inputs(TASK, B))
    without = {n: v for n, v in inputs.items() if n not in ("boxes", "box_classes")}
    found = model(inputs)
    assert torch.equal(found, model(without))
    assert found.shape == (B, 10, 6)
    assert not found[1].any()  # no image, nothing found
    assert found[0].any()


@pytest.mark.parametrize("part", ["regions.deltas", "regions.objectness", "boxes.classes"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_network_that_diverged_is_seen_in_its_detections(part, broken):
    model = build(MdfNetOptions()).eval()
    inputs = draw_inputs(TASK, B)
    with torch.no_grad():
        model.get_submodule(part).bias[0] = broken
    found = model(inputs)
    assert found.isnan().all()
    with pytest.raises(FederationError, match="diverged"):
        check_logits(found.detach().numpy())


def test_what_diverges_on_one_study_leaves_the_others():
    model = build(MdfNetOptions()).eval()
    inputs = draw_inputs(TASK, B)
    before = model(inputs)
    inputs["tabular"][3, 0, 0] = float("nan")
    after = model(inputs)
    others = [row for row in range(B) if row != 3]
    assert after[3].isnan().all()
    torch.testing.assert_close(after[others], before[others])


@every_case
def test_feature_rows_are_where_a_column_enters(options):
    model, inputs = build(options), draw_inputs(TASK, B)
    inputs["tabular"][:, 2, 2] = 0.0  # not selected
    rows = model.feature_rows()
    assert bool(rows) == ("tabular" in model.modalities) == (model.tabular is not None)
    model(inputs).sum().backward()
    for name, (axis, width) in rows.items():
        value = trainable_state(model)[name]
        assert value.shape[axis] == K * width
        felt = value.grad.movedim(axis, 0).unflatten(0, (K, width)).flatten(1).abs().amax(dim=1)
        assert (felt > 0).tolist() == [column != 2 for column in range(K)]


@every_case
def test_bfloat16_autocast_gives_nearly_the_same_losses(options):
    model = build_model(options, TASK, seed=0)
    inputs = draw_inputs(TASK, B, dtype=torch.float32)
    plain = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(inputs)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, plain, rtol=0.2, atol=0.01)

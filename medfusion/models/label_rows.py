"""Which parameters hold a row for each label that acts on that label's logit alone."""

from torch import Tensor, nn

from medfusion.models.blocks.heads import PooledHead, QueryHead
from medfusion.models.blocks.linear_path import LinearPath
from medfusion.models.blocks.unimodal import UnimodalLabels, UnimodalPooled
from medfusion.models.contract import Model


def label_rows(model: Model) -> frozenset[str]:
    """Return names of trained parameters whose first axis is indexed by labels.

    The constants of every model are among them, and the read-outs of the heads that models
    share. The label queries are not: labels attend to one another.
    """
    owned: list[Tensor] = [*model.label_biases(), *model.label_weights()]
    for module in model.modules():
        if isinstance(module, (QueryHead, UnimodalLabels)):
            owned.append(module.readout.table.weight)
        elif isinstance(module, PooledHead):
            owned.append(module.out.weight)
        elif isinstance(module, UnimodalPooled):
            owned.append(_linear(module[-1]).weight)
        elif isinstance(module, LinearPath):
            owned += [_linear(child).weight for child in module.children() if _is_linear(child)]
    ids = {id(parameter) for parameter in owned}
    return frozenset(
        name for name, value in model.named_parameters() if value.requires_grad and id(value) in ids
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module

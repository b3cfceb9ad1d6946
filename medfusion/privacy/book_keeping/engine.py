"""One pass forward and back: inputs are noted, gradients of outputs arrive, rules do the rest.

The graph of autograd stays as it is. It is only asked for the gradients of the first layers'
outputs, and so forms those of all later outputs on its way, but none of weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from medfusion.errors import FederationError
from medfusion.privacy.book_keeping.layers import Rule, float32_or_wider, rule_for
from medfusion.privacy.clipping import SampleGradients


class BookKeeping:
    """Per-sample gradients of a model all of whose trained layers have a rule.

    Parameters
    ----------
    model
        See `knows`. It is left as it is: there are hooks on it only during a pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._names = {id(value): name for name, value in self._parameters.items()}
        self._layers = [layer for layer in model.modules() if _is_trained(layer)]

    @staticmethod
    def knows(model: nn.Module) -> bool:
        """Whether there is a rule for every layer with parameters that are trained."""
        return all(rule_for(layer) for layer in model.modules() if _is_trained(layer))

    def gradients(self, losses: Callable[[], Tensor]) -> SampleGradients:
        """Run ``losses`` and differentiate what it returns.

        Raises
        ------
        FederationError
            If a layer's input has other rows than samples, or was changed in place afterwards.
        """
        with self._noted() as notes:
            each = losses()
            notes.samples = len(each)
            total = each.sum()
            if notes.first and total.requires_grad:
                torch.autograd.grad(total, notes.first, allow_unused=True)
        return SampleGradients(losses=each.detach(), by_sample=notes.gradients)

    def compared(self, losses: Callable[[], Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the gradients of the samples, and of their sum, by name.

        Raises
        ------
        FederationError
            As of `gradients`, and if something else than the parameters requires a gradient.
        """
        with self._noted() as notes:
            each = losses()
            notes.samples = len(each)
            total = each.sum()
            if not total.requires_grad:
                return {}, {}
            _refuse_other_leaves(total, self._names)
            # Any: its annotation takes tensors or edges, but not some of each.
            inputs: list[Any] = [*notes.first, *self._parameters.values()]
            found = torch.autograd.grad(total, inputs, allow_unused=True)[len(notes.first) :]
        pairs = zip(self._parameters, found, strict=True)
        return notes.gradients, {name: value for name, value in pairs if value is not None}

    @contextmanager
    def _noted(self) -> Iterator["_Notes"]:
        """Note what layers do, through hooks that are gone afterwards."""
        notes = _Notes(self._names)
        hooks = [
            layer.register_forward_hook(notes.take, with_kwargs=True) for layer in self._layers
        ]
        try:
            yield notes
        finally:
            for hook in hooks:
                hook.remove()
            notes.first.clear()  # they hold the graph, whose hooks hold the notes

    def close(self) -> None:
        """Do nothing: a pass leaves nothing behind."""


@dataclass
class _Call:
    """One use of a layer; the input is detached, so as to keep no graph alive."""

    layer: nn.Module
    rule: Rule
    x: Tensor | None
    version: int


@dataclass
class _Notes:
    """What is known in one pass."""

    names: dict[int, str]
    samples: int = 0
    first: list[GradientEdge] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def take(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Note a layer's use, as a forward hook."""
        rule = rule_for(layer)
        if rule is None or not output.requires_grad:
            return  # nobody differentiates what runs under no_grad
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        call = _Call(layer, rule, x.detach(), x._version)
        output.register_hook(partial(self._arrive, call))  # type: ignore[no-untyped-call]
        if not x.requires_grad:
            self.first.append(get_gradient_edge(output))

    def _arrive(self, call: _Call, gradient: Tensor) -> None:
        """Add what one use of a layer contributes; a reused layer's uses add up per sample."""
        layer, x, call.x = call.layer, call.x, None  # the graph would keep it to the end
        assert x is not None
        self._refuse_other_rows(layer, x, gradient)
        if x._version != call.version:
            raise FederationError(
                f"{self._name(layer)} cannot be trained privately: its layer's input was changed "
                "in place after the layer had read it; use operations out of place"
            )
        for own, value in call.rule(layer, x, gradient).items():
            parameter = getattr(layer, own)
            name = self.names[id(parameter)]
            value = value.to(float32_or_wider(value.dtype)).reshape(-1, *parameter.shape)
            if name in self.gradients:
                self.gradients[name].add_(value)
            else:
                self.gradients[name] = value

    def _refuse_other_rows(self, layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
        rows = {len(x), len(gradient)} - {self.samples}
        if rows:
            raise FederationError(
                f"{self._name(layer)} cannot be trained privately: expected gradients of "
                f"{self.samples} samples, found {max(rows)} rows; keep the batch in the first "
                "dimension of every layer's input"
            )

    def _name(self, layer: nn.Module) -> str:
        own = next(value for value in layer.parameters(recurse=False) if id(value) in self.names)
        return f"parameter {self.names[id(own)]!r}"


def _is_trained(layer: nn.Module) -> bool:
    return any(value.requires_grad for value in layer.parameters(recurse=False))


def _refuse_other_leaves(total: Tensor, names: dict[int, str]) -> None:
    """Refuse a pass in which more than parameters requires gradients.

    A layer behind such a tensor alone would not be reached on the way to the first layers.
    """
    seen: set[Node] = set()
    waiting = [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in names:
            raise FederationError(
                "a model cannot be trained privately on inputs that require gradients: detach them"
            )
        waiting.extend(following for following, _ in node.next_functions)

"""`GradientReach`: which parameters a loss depends on, where an engine gives the others zeros for gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from wagle_trainer.engines.sharding import named_parameters


class GradientReach:
    """Finds the parameters that the losses of an optimizer step depend on, in the graph of the backward pass.

    A gradient of zeros is not the same as none: weight decay acts on the parameter, and moments move it. On one process a
    parameter that no loss depends on has none. A parameter counts as reached where the graph does not tell: its module
    did not run, or ran without a graph (reentrant checkpointing).

    Args:
        model: the unwrapped model, with its parameters as they lie between passes.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        names = {parameter: name for name, parameter in named_parameters(model).items()}
        self._modules = [
            (module, {attribute: names[p] for attribute, p in module._parameters.items() if p in names})
            for module in model.modules()
            if module._parameters
        ]
        self._names = {name for _, known in self._modules for name in known.values()}
        self._edges: dict[
            str, list[tuple[Any, int]]
        ] = {}  # where a parameter enters the graph of the last forward passes
        self._hidden: set[str] = set()
        self._reached: set[str] = set()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note, in the forward passes inside, where parameters enter the graph."""
        self._edges, self._hidden = {}, set()
        handles = [module.register_forward_hook(self._noting(known)) for module, known in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _noting(self, known: dict[str, str]) -> Any:
        def note(module: nn.Module, *_: Any) -> None:
            for attribute, name in known.items():
                weight = getattr(module, attribute)  # FSDP1 shows a part of a longer tensor
                if not torch.is_grad_enabled():
                    self._hidden.add(name)
                elif weight.requires_grad:
                    edge = get_gradient_edge(weight)
                    self._edges.setdefault(name, []).append((edge.node, edge.output_nr))

        return note

    def add(self, loss: Tensor) -> None:
        """Add what this loss depends on, a result of the recorded passes before its backward pass, to the step's."""
        edges = _edges_below(loss)
        self._reached |= self._hidden | (self._names - self._edges.keys())
        self._reached |= {name for name, own in self._edges.items() if not edges.isdisjoint(own)}
        self._edges, self._hidden = {}, set()  # they hold the graph

    @property
    def unreached(self) -> set[str]:
        """Names of the parameters that no loss added since `drop_gradients` depends on."""
        return self._names - self._reached

    def drop_gradients(self) -> None:
        """Take the zeros away that unreached parameters have for gradients; the next step begins."""
        unreached = self.unreached
        for name, parameter in named_parameters(self._model).items() if unreached else ():
            if name in unreached:
                parameter.grad = None
        self._reached = set()


def _edges_below(loss: Tensor) -> set[tuple[Any, int]]:
    """All (node, output) of a graph that gradients of the loss flow into."""
    edges: set[tuple[Any, int]] = set()
    pending, seen = [loss.grad_fn], {loss.grad_fn}
    while pending:
        node = pending.pop()
        for edge in node.next_functions if node is not None else ():
            edges.add(edge)
            if edge[0] is not None and edge[0] not in seen:
                seen.add(edge[0])
                pending.append(edge[0])
    return edges

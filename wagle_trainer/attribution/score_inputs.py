"""The arguments of a score, one full tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wagle_trainer.attribution.gradients import Batch, SetStatistics, has_target_token, mean_gradient
from wagle_trainer.attribution.scores import Score
from wagle_trainer.attribution.target_tokens import counts_by_row
from wagle_trainer.engines.sharding import gather, is_sharded, local_part
from wagle_trainer.masking import bits
from wagle_trainer.models.architecture import WeightMatrix
from wagle_trainer.models.not_finite import first_batch_not_finite, is_finite


def score_inputs(
    parameters: Mapping[str, nn.Parameter],
    statistics: Mapping[str, SetStatistics],
    gamma: Any,
    seed: int,
    layouts: Mapping[str, WeightMatrix],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each parameter and the arguments of its score.

    Args:
        parameters: name -> parameter.
        statistics: set -> the requested statistics of it. Emptied on the way: each tensor is let go once it has been given.
        gamma: a number by now.
        seed: of the generators.
        layouts: how the parameters hold matrices.
    """
    for index, (key, parameter) in enumerate(parameters.items()):
        place = local_part(parameter).device
        available: dict[str, Any] = {}
        for which, found in statistics.items():
            for what, tensors in (("grad", found.grad), ("square", found.square)):
                if tensors:
                    part = tensors.pop(key).to(place).float()
                    available[f"{which}_{what}"] = gather(part, parameter)
            activation = found.activation.pop(key, None)
            available[f"{which}_activation"] = None if activation is None else activation.to(place)
        weight = gather(local_part(parameter.detach()), parameter)
        for which, found in statistics.items():
            counts = found.targets.pop(key, None)
            available[f"{which}_targets"] = None if counts is None else counts_by_row(counts, weight)
        available |= {
            "weight": weight,
            "name": key,
            "gamma": gamma,
            "layout": layouts[key],
            "generator": torch.Generator().manual_seed(_seed_of(seed, index)),
        }
        yield key, available


def score_tensor(function: Score, arguments: list[str], key: str, available: Mapping[str, Any]) -> Tensor | None:
    """The score of one parameter, float32, checked; None where the score does not rank it.

    Raises:
        NotFiniteError: it is not finite, or an argument is not: a quotient would turn an infinite one into a zero.
        ValueError: it has negative values or another shape.
    """
    weight = available["weight"]
    for name in arguments:
        if isinstance(available[name], Tensor) and not is_finite(available[name]):
            raise NotFiniteError(key, name)
    score = function(**{name: available[name] for name in arguments})
    if score is None:
        return None
    score = score.float()
    if score.shape != weight.shape:
        raise ValueError(f"The score of {key!r} has shape {tuple(score.shape)}, the weight {tuple(weight.shape)}.")
    lowest, highest = torch.aminmax(score)  # NaN if any is
    if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
        raise NotFiniteError(key, None)
    if bool(lowest < 0):
        raise ValueError(f"The score of {key!r} has negative values; return its absolute value or a rank of your own.")
    if bool(lowest == 0) and bool(torch.signbit(score).any()):
        score = score.abs()  # -0.0 would sort above all others by its bit pattern
    return score.contiguous()


def packed_nonzero(available: Mapping[str, Any]) -> Tensor | None:
    """Which weights have a gradient, as packed bits; None if no gradient is known."""
    known = [tensor for name, tensor in available.items() if name.endswith(("_grad", "_square"))]
    if not known:
        return None
    flat = [tensor.reshape(-1) for tensor in known]
    size = bits.chunk_of(flat[0])
    packed = []
    for start in range(0, max(len(flat[0]), 1), size):
        nonzero = flat[0][start : start + size] != 0
        for values in flat[1:]:
            nonzero |= values[start : start + size] != 0
        packed.append(bits.pack(nonzero))
    return torch.cat(packed).cpu()


class NotFiniteError(Exception):
    """A score is not finite, because of the argument named or (None) by itself."""

    def __init__(self, key: str, argument: str | None):
        super().__init__(key)
        self.key, self.argument = key, argument

    def explain(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Mapping[str, Iterable[Batch] | None]
    ) -> str:
        """What is not finite and where; searches the batches again if they can be read twice."""
        message = f"Attribution of {self.key!r}: "
        if not is_finite(parameters[self.key]):
            return message + "the weight is not finite. Nothing was written."
        if self.argument is None:
            return message + "what the score reads is finite, but the score is not. Nothing was written."
        name, _, what = self.argument.partition("_")
        if what != "grad":
            what = {"square": "squared gradient", "activation": "activation", "targets": "count of target tokens"}[
                what
            ]
            return message + f"the {name} {what} is not finite. Nothing was written."
        # Sharded models run forward passes together, so one process cannot search alone.
        index = None if is_sharded(parameters.values()) else self._first_batch(model, parameters, batches[name] or ())
        where = (
            "in a batch that cannot be found again" if index is None else f"from batch {index} of the {name} set on"
        )
        return message + f"the {name} gradient is not finite {where}. Nothing was written."

    def _first_batch(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Iterable[Batch]
    ) -> int | None:
        """Index of the first batch with such a gradient; None if the batches cannot be read a second time."""
        of_key = {self.key: parameters[self.key]}

        def gradient(batch: Batch) -> Iterable[Tensor]:
            if not has_target_token(batch):
                return ()
            with torch.enable_grad():
                return mean_gradient(model, of_key, [batch], name="", progress=False)[0].values()

        return first_batch_not_finite(batches, gradient)


def _seed_of(seed: int, index: int) -> int:
    """A seed for each parameter. An odd factor, since PyTorch's generator on the CPU reads the lower 32 bits alone."""
    return (seed + index * 0x9E3779B1) % 2**32

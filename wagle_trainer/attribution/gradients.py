"""Gradient of the mean loss over a data set, one float32 tensor per parameter."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wagle_trainer.likelihood import label_mask, token_log_probs

Batch = Mapping[str, Any]


@contextmanager
def attribution_mode(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients for `parameters` only and none from before; everything is put back as it was found:
    the mode of every module, `requires_grad`, `.grad` and the random state."""
    modes = {module: module.training for module in model.modules()}
    found = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    wanted = set(parameters.values())
    device = next(iter(found)).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            model.eval()
            for parameter in found:
                parameter.grad = None
                parameter.requires_grad_(parameter in wanted)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, (requires_grad, grad) in found.items():
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def mean_gradient(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Batch],
    *,
    name: str,
    across_processes: bool = False,
    progress: bool = True,
) -> tuple[dict[str, Tensor], int]:
    """Gradient of the mean over examples of (the mean over that example's label tokens of the NLL).

    To be called within `attribution_mode`. The sum over examples is accumulated in float32, whatever the model's
    dtype, and divided by their number at the end; so the result does not depend on how examples are batched, beyond
    rounding.

    Args:
        model: the causal language model; its device is where the batches go.
        parameters: name -> parameter to differentiate by.
        batches: dicts with `input_ids`, `labels` (-100 = no loss) and, when padded, `attention_mask`.
        name: of the set, for messages: "forget" or "retain".
        across_processes: each process has its own share of the batches; the gradients are summed over all.
        progress: show a progress bar.

    Returns:
        name -> float32 tensor of the parameter's shape (zeros where no gradient arrived), and the number of examples.

    Raises:
        FloatingPointError: a loss is not finite; names the batch, and the parameter if that is what is not finite.
        ValueError: the set has no example with a label token.
        RuntimeError: out of memory, with what to do about it.
    """
    device = next(iter(parameters.values())).device
    accumulators: dict[str, Tensor] = {}
    hooks = []
    for key, parameter in parameters.items():
        parameter.grad = None
        if parameter.dtype != torch.float32:  # otherwise .grad itself is the float32 accumulator, and nothing is added
            accumulators[key] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
            hooks.append(parameter.register_post_accumulate_grad_hook(_move_grad_into(accumulators[key])))
    examples = skipped = 0
    try:
        for index, raw in enumerate(tqdm(batches, desc=f"Attribution: {name} gradient", disable=not progress)):
            has_label = label_mask(raw["labels"], raw.get("attention_mask")).any(1)
            skipped += int((~has_label).sum())
            if not bool(has_label.any()):
                continue
            batch = {k: v[has_label].to(device) for k, v in raw.items() if isinstance(v, Tensor)}
            loss = -token_log_probs(model, batch).mean().sum()
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(_why_not_finite(model, name, index, loss))
            loss.backward()
            examples += int(has_label.sum())
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"Out of memory while computing the {name} gradient of the attribution. Use a smaller "
            "attribution_batch_size, or leave parameters out with attribution_exclude."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    gradients = {}
    for key, parameter in parameters.items():
        grad = accumulators.pop(key, parameter.grad)
        gradients[key] = torch.zeros_like(parameter, dtype=torch.float32) if grad is None else grad
        parameter.grad = None
    if across_processes:
        counts = torch.tensor([examples, skipped], device=device)
        torch.distributed.all_reduce(counts)
        examples, skipped = counts.tolist()
        for grad in gradients.values():
            torch.distributed.all_reduce(grad)
    if skipped:
        warnings.warn(
            f"{skipped} of {examples + skipped} examples of the {name} set have no label token and were skipped.",
            stacklevel=2,
        )
    if examples == 0:
        raise ValueError(
            f"The {name} set has no example with a label token, so it has no gradient. "
            "Labels are -100 where there is no loss: check that not all of them are."
        )
    for grad in gradients.values():
        grad.div_(examples)
    return gradients, examples


def first_batch_not_finite(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Iterable[Batch]
) -> int | None:
    """Index of the first batch whose gradient is not finite; None if the batches cannot be read a second time."""
    for index, batch in enumerate(batches):
        if not bool(label_mask(batch["labels"], batch.get("attention_mask")).any()):
            continue
        with torch.enable_grad():
            gradients, _ = mean_gradient(model, parameters, [batch], name="", progress=False)
        if not all(bool(torch.isfinite(grad).all()) for grad in gradients.values()):
            return index
    return None


def _move_grad_into(accumulator: Tensor) -> Any:
    def move(parameter: Tensor) -> None:
        accumulator.add_(parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None

    return move


def _why_not_finite(model: nn.Module, name: str, index: int, loss: Tensor) -> str:
    message = f"The loss of batch {index} of the {name} set is {loss.item()}"
    for key, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"{message}: the weights of {key!r} are not finite. Nothing was written."
    return f"{message}, though all weights are finite: the model overflows on this batch. Nothing was written."

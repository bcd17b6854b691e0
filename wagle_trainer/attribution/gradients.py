"""Statistics of a data set that scores need: gradients, their squares, activations; one tensor per parameter."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from wagle_trainer.attribution.activations import Activations
from wagle_trainer.attribution.host_sums import HostSums
from wagle_trainer.attribution.target_tokens import TargetTokens
from wagle_trainer.engines.sharding import (
    device_of,
    empty_batch,
    is_sharded,
    local_part,
    named_parameters,
    synchronised,
)
from wagle_trainer.models.log_probs import label_mask, token_log_probs
from wagle_trainer.models.modes import unchanged
from wagle_trainer.models.not_finite import cause_of_not_finite

Batch = Mapping[str, Any]


@contextmanager
def attribution_mode(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Eval mode, with gradients for `parameters` only; the model and the random state are restored on exit."""
    found = list(model.parameters())
    # FSDP2 decided when it sharded the model which gradients it computes: there the others are thrown away instead.
    wanted = set(found if is_sharded(found) else parameters.values())
    device = device_of(found[0])
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.enable_grad(),
        unchanged(model),
    ):
        model.eval()
        for parameter in found:
            parameter.requires_grad_(parameter.requires_grad and parameter in wanted)
        yield


@contextmanager
def memory_advice(what: str) -> Iterator[None]:
    """Add to an OutOfMemoryError what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"Out of memory while {what} of the attribution: use a smaller "
            'attribution_batch_size, keep the accumulators in host memory (attribution_offload="cpu") or in the '
            'model\'s own precision (attribution_dtype="bfloat16"), or leave parameters out with attribution_exclude.'
        ) from error


@dataclass
class SetStatistics:
    """Statistics of one set, by parameter; empty where they were not requested.

    Attributes:
        grad: gradient of the mean loss (zeros where no gradient arrived).
        square: mean over examples of their squared gradients.
        activation: root mean square over tokens of the inputs of the matrix, one for each input feature, in a shape that
            broadcasts against the parameter (see `Activations`); parameters without inputs are left out.
        targets: how often each token is a target, (vocabulary,), under the name of the output head's weight.
        examples: number of examples with a target token, of all processes.
    """

    grad: dict[str, Tensor] = field(default_factory=dict)
    square: dict[str, Tensor] = field(default_factory=dict)
    activation: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0


def mean_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Iterable[Batch], *, name: str, **options: Any
) -> tuple[dict[str, Tensor], int]:
    """The mean gradient of a set and the number of its examples; see `set_statistics`."""
    statistics = set_statistics(model, parameters, batches, name=name, wanted={"grad"}, **options)
    return statistics.grad, statistics.examples


def set_statistics(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Batch],
    *,
    name: str,
    wanted: Collection[str],
    across_processes: bool = False,
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
    progress: bool = True,
) -> SetStatistics:
    """Compute the statistics of a set in one pass over it.

    Call it within `attribution_mode`. The loss is the mean over examples of (the mean over that example's target
    tokens of the NLL). Sums over examples are accumulated in `dtype`, whatever the model's dtype, and divided by their
    number at the end; so the result does not depend on how examples are batched, beyond rounding.

    Memory on the device beside weights and activations: with `offload`, one gradient tensor, and on a GPU the one or two
    before it whose copies are under way; without, the accumulators. In host memory: one number in `dtype` per weight for
    "grad", and one for "square". Squares take a backward pass for each example; where weights are sharded, one process
    after the other, so that more processes make it no faster.

    Args:
        model: the causal language model; its device is where the batches go.
        parameters: name -> parameter to differentiate by.
        batches: dicts with `input_ids`, `labels` (-100 = no loss) and, when padded, `attention_mask`.
        name: of the set, for messages: "forget" or "retain".
        wanted: of "grad", "square", "activation", "targets". Without the first two there is no backward pass, and the
            last takes no forward pass either.
        across_processes: each process has its own shard of the batches; the sums are over all. Always so where
            parameters are sharded.
        dtype: of the accumulators. In the parameters' dtype, the gradient adds nothing to the memory of a backward pass.
        offload: keep the accumulators in host memory: each gradient leaves the device as it arrives.
        progress: show a progress bar.

    Returns:
        Tensors of the parameters' shapes; where parameters are sharded, the rows of this process.

    Raises:
        FloatingPointError: a loss is not finite; names the batch, and the parameter if that is what is not finite.
        ValueError: the set has no example with a target token; activations where an engine cuts the weights; target tokens
            where the head's weight is not among the parameters.
        OutOfMemoryError: with what to do about it.
    """
    sharded = is_sharded(parameters.values())
    if "activation" in wanted and not getattr(model, "shows_inputs", True):
        raise ValueError(
            f"The score needs activations ({name}_activation), but this engine cuts the weights of the modules whose inputs "
            "they are. Compute the mask on one process, with data parallelism or FSDP2, and pass it as mask_path."
        )
    run_backward = getattr(model, "run_backward", Tensor.backward)
    device = device_of(next(iter(parameters.values())))
    backward = "grad" in wanted or "square" in wanted
    with memory_advice(f"making room for the {name} gradient"):
        accumulators, squares = _accumulators(parameters, wanted, dtype, offload)
    inputs = Activations(model, parameters) if "activation" in wanted else None
    targets = TargetTokens(model, parameters, device) if "targets" in wanted else None
    forward = backward or inputs is not None
    sums = HostSums(device) if offload and backward else None
    hooks = [
        parameter.register_post_accumulate_grad_hook(_move_grad_into(accumulators.get(key), squares.get(key), sums))
        for key, parameter in parameters.items()
        if key in accumulators or key in squares
    ]
    examples = skipped = 0
    try:
        with memory_advice(f"computing the {name} gradient"):
            steps = synchronised(batches, device) if sharded else batches
            total = len(batches) if isinstance(batches, Sized) else None
            what = "gradient" if backward else "activations" if forward else "target tokens"
            bar = tqdm(steps, desc=f"Attribution: {name} {what}", total=total, disable=not progress)
            for index, raw in enumerate(bar):
                batch, skipped_here = (None, 0) if raw is None else _labelled(raw, device)
                skipped += skipped_here
                if batch is None and not sharded:
                    continue
                examples += 0 if batch is None else len(batch["labels"])
                if targets is not None and batch is not None:
                    targets.look_at(batch)
                if not forward:
                    continue
                for part in _one_by_one(batch, device, sharded) if "square" in wanted else [batch]:
                    if inputs is not None:
                        inputs.look_at(part)
                    with torch.set_grad_enabled(backward):
                        loss = -token_log_probs(model, empty_batch(device) if part is None else part).mean().sum()
                    if not bool(torch.isfinite(loss)):
                        raise FloatingPointError(
                            f"The loss of batch {index} of the {name} set is {loss.item()}: {cause_of_not_finite(model)}. "
                            "Nothing was written."
                        )
                    if backward:
                        run_backward(loss)
            if sums is not None:
                sums.finish()
    finally:
        if sums is not None:
            sums.close()
        for hook in (*hooks, *(inputs.hooks if inputs is not None else ())):
            hook.remove()
        if sharded and forward and not backward:
            named_parameters(model)  # the backward pass would have sharded them again
    gradients = _take_gradients(parameters, accumulators) if "grad" in wanted else {}
    if across_processes or sharded:
        counts = torch.tensor([examples, skipped], device=device)
        dist.all_reduce(counts)
        examples, skipped = counts.tolist()
        if inputs is not None:
            inputs.add_up()
    if across_processes and not sharded:
        for grad in (*gradients.values(), *squares.values()):
            summed = grad.to(device)  # a copy only if it was offloaded
            dist.all_reduce(summed)
            if summed is not grad:
                grad.copy_(summed)
    if skipped:
        warnings.warn(
            f"{skipped} of {examples + skipped} examples of the {name} set have no target token and were skipped.",
            stacklevel=3,
        )
    if examples == 0:
        raise ValueError(
            f"The {name} set has no example with a target token, so it has no gradient. "
            "Labels are -100 where there is no loss: check that not all of them are."
        )
    # FSDP2 averages over processes; here a sum is needed.
    averaged_over = dist.get_world_size() if sharded else 1
    for grad in gradients.values():
        grad.div_(examples / averaged_over)
    for square in squares.values():
        square.div_(examples / averaged_over**2)
    return SetStatistics(
        gradients,
        squares,
        inputs.root_mean_square() if inputs is not None else {},
        targets.result(across_processes or sharded) if targets is not None else {},
        examples,
    )


def _accumulators(
    parameters: Mapping[str, nn.Parameter], wanted: Collection[str], dtype: torch.dtype, offload: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Zeros for the sums of gradients and of their squares; where neither is needed, .grad itself is the accumulator."""
    accumulators: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for key, parameter in parameters.items():
        parameter.grad = None
        local = local_part(parameter)
        place = torch.device("cpu") if offload else local.device
        if "square" in wanted:
            squares[key] = torch.zeros_like(local, dtype=dtype, device=place)
        if "grad" in wanted and (parameter.dtype != dtype or offload or "square" in wanted):
            accumulators[key] = torch.zeros_like(local, dtype=dtype, device=place)
    return accumulators, squares


def _take_gradients(parameters: Mapping[str, nn.Parameter], accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = {}
    for key, parameter in parameters.items():
        grad = accumulators.pop(key, None)
        if grad is None:
            grad = torch.zeros_like(local_part(parameter)) if parameter.grad is None else local_part(parameter.grad)
        gradients[key] = grad
        parameter.grad = None
    return gradients


def _one_by_one(
    batch: dict[str, Tensor] | None, device: torch.device, sharded: bool
) -> Iterator[dict[str, Tensor] | None]:
    """The examples of a batch, each as a batch of one.

    Where weights are sharded, a backward pass adds up the gradients of all processes. There the processes take turns: None
    stands for the turns of the others.
    """
    own = range(0 if batch is None else len(batch["labels"]))
    turns, rank, processes = len(own), 0, 1
    if sharded:
        rank, processes = dist.get_rank(), dist.get_world_size()
        most = torch.tensor(turns, device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        turns = int(most)
    for row in range(turns):
        for process in range(processes):
            mine = batch is not None and process == rank and row in own
            yield {key: value[row : row + 1] for key, value in batch.items()} if mine else None  # type: ignore[union-attr]


def _labelled(batch: Batch, device: torch.device) -> tuple[dict[str, Tensor] | None, int]:
    """The examples with a target token, on `device` (None if there are none), and the number of the others."""
    has_label = label_mask(batch["labels"], batch.get("attention_mask")).any(1)
    skipped = int((~has_label).sum())
    if skipped == len(has_label):
        return None, skipped
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    if skipped:
        tensors = {key: value[has_label] for key, value in tensors.items()}
    return {key: value.to(device) for key, value in tensors.items()}, skipped


def has_target_token(batch: Batch) -> bool:
    """Whether any example of the batch has a target token."""
    return bool(label_mask(batch["labels"], batch.get("attention_mask")).any())


def _move_grad_into(accumulator: Tensor | None, square: Tensor | None, sums: HostSums | None) -> Any:
    def move(parameter: Tensor) -> None:
        grad = local_part(parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None
        if sums is not None:
            sums.add(grad, accumulator, square)
            return
        if accumulator is not None:
            accumulator.add_(grad)
        if square is not None:
            grad = grad.to(square.dtype)
            square.addcmul_(grad, grad)

    return move

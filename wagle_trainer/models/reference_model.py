"""The model before unlearning, as the numbers that the losses need of it: no second model stays in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wagle_trainer.data.length_sorted_batches import LengthSortedBatches
from wagle_trainer.engines.sharding import empty_batch, synchronised
from wagle_trainer.models.log_probs import IGNORE_INDEX, token_log_probs
from wagle_trainer.models.modes import evaluation_mode
from wagle_trainer.models.not_finite import cause_of_not_finite


def reference_log_probs(
    model: nn.Module, batches: LengthSortedBatches, size: int, device: torch.device, together: bool = False
) -> Tensor:
    """Log-probabilities of the answers' tokens under `model` as it is now.

    Args:
        model: the model before unlearning.
        batches: this process's share of the set.
        size: number of examples of the whole set.
        device: where the model computes.
        together: all processes have to run the same number of forward passes, since the weights are sharded.

    Returns:
        float32 (size, longest answer) on the CPU: the label tokens in their order, then zeros; zeros for the examples
        of other processes. The sum of a row is the log-probability of the whole answer.

    Raises:
        FloatingPointError: a value is not finite; names the rows.
    """
    longest = max(sum(label != IGNORE_INDEX for label in labels[1:]) for labels in batches.dataset["labels"])
    values = torch.zeros(size, max(1, longest))
    with evaluation_mode(model):
        pairs = zip(batches.rows, batches, strict=True)
        for pair in synchronised(pairs, device) if together else pairs:
            if pair is None:
                token_log_probs(model, empty_batch(device))
                continue
            rows, batch = pair
            result = token_log_probs(model, {key: tensor.to(device) for key, tensor in batch.items()})
            if not bool(torch.isfinite(result.log_probs).all()):
                raise FloatingPointError(
                    f"The log-probability before unlearning is not finite for one of the rows {rows}: "
                    f"{cause_of_not_finite(model)}. Nothing was trained."
                )
            for row, log_probs, mask in zip(rows, result.log_probs.cpu(), result.mask.cpu(), strict=True):
                values[row, : int(mask.sum())] = log_probs[mask]
    return values


def align(values: Tensor, mask: Tensor) -> Tensor:
    """Rows of `reference_log_probs` laid out as the batch whose `mask` this is: the opposite of what it does."""
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    return values.gather(1, place) * mask


class _Before:
    """What is known of the model before unlearning; `log_probs` (rows,), zero where not met, tells it from others."""

    log_probs: Tensor

    def __init__(self, what: str):
        self.what = what

    def check(self, before: Tensor) -> None:
        """Raise ValueError unless `before`, the `log_probs` when the run began, are of the model that this one is of.

        Values computed on other hardware or in other batches differ by rounding, those of a trained model by far more.
        """
        both = (before != 0) & (self.log_probs != 0)
        if not torch.allclose(before[both], self.log_probs[both], rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"{self.what} compares with the model before unlearning, but this trainer was given another one "
                "than the run began with. Give it that model again, not one of the checkpoints: the trained weights "
                "are read from the checkpoint anyway."
            )


class ReferenceHead(_Before):
    """Reference logits of a set, such as for the KL loss: final hidden states and a frozen copy of the head.

    Takes (label tokens x hidden size) numbers per example, where a second model would take all its weights, and logits
    the vocabulary size per token. The head is copied only if it is trained.

    Args:
        model: the unwrapped model before unlearning.
        batches: the examples that the run will meet.
        device: where the model lies.
        what, instead: which setting needs the logits, and what to do where they cannot be had; for the errors.

    Attributes:
        log_probs: float32 (rows,), log-probability of each whole answer; zero for examples that were not met.

    Raises:
        ValueError: the model changes its logits after the head (soft-capping, scaling), so that they cannot be
            recomputed from the hidden states.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: LengthSortedBatches,
        device: torch.device,
        what: str = "retain_loss='kl'",
        instead: str = "Use retain_loss='nll'",
    ):
        super().__init__(what)
        head = model.get_output_embeddings()  # type: ignore[operator]
        self.hidden: dict[int, Tensor] = {}
        self.log_probs = torch.zeros(len(batches.dataset))
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with evaluation_mode(model):
                for rows, batch in zip(batches.rows, batches, strict=True):
                    seen.clear()
                    moved = {key: tensor.to(device) for key, tensor in batch.items()}
                    result = token_log_probs(model, moved, keep_logits=True)
                    assert result.logits is not None
                    hidden = seen[0]
                    if (
                        hidden.shape[1] > result.logits.shape[1]
                    ):  # without `logits_to_keep` the head sees all positions
                        hidden = hidden[:, result.kept]
                    if not torch.allclose(head(hidden).float(), result.logits.float(), rtol=1e-2, atol=1e-2):
                        raise ValueError(
                            f"{what} needs logits that are its head's output, but {type(model).__name__} changes them "
                            f"afterwards (soft-capping or scaling). {instead}."
                        )
                    self.log_probs[rows] = result.sum().cpu()
                    positions = result.mask[:, result.kept]
                    for row, states, chosen in zip(rows, hidden, positions, strict=True):
                        self.hidden[row] = states[chosen].cpu()
        finally:
            handle.remove()
        trained = any(parameter.requires_grad for parameter in head.parameters())
        self.head = copy.deepcopy(head).requires_grad_(False) if trained else head

    def logits(self, rows: Iterable[int], device: torch.device) -> Tensor:
        """Reference logits of the label tokens of these examples, one below the other, (tokens, vocabulary)."""
        with torch.no_grad():
            return self.head(torch.cat([self.hidden[row] for row in rows]).to(device))


class ReferenceStates(_Before):
    """Hidden states of one layer at the label tokens of a set, under the model before unlearning.

    Args:
        model: the unwrapped model before unlearning.
        layer: the layer of it.
        batches: the examples that the run will meet.
        device: where the model lies.
        what: which setting needs the states, for the errors.
    """

    def __init__(
        self, model: nn.Module, layer: nn.Module, batches: LengthSortedBatches, device: torch.device, what: str
    ):
        super().__init__(what)
        self.hidden: dict[int, Tensor] = {}
        self.log_probs = torch.zeros(len(batches.dataset))
        with evaluation_mode(model):
            for rows, batch in zip(batches.rows, batches, strict=True):
                moved = {key: tensor.to(device) for key, tensor in batch.items()}
                result = token_log_probs(model, moved, layer=layer)
                assert result.states is not None
                self.log_probs[rows] = result.sum().cpu()
                for row, states, mask in zip(rows, result.states, result.mask, strict=True):
                    self.hidden[row] = states[mask].cpu()

    def states(self, rows: Iterable[int], device: torch.device) -> Tensor:
        """Reference states of the label tokens of these examples, one below the other, (tokens, hidden size)."""
        return torch.cat([self.hidden[row] for row in rows]).to(device)

"""The model before unlearning, as the numbers that the losses need of it: no second model stays in memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wagle_trainer.data.batching import LengthSortedBatches
from wagle_trainer.likelihood import token_log_probs


@contextmanager
def _evaluating(model: nn.Module) -> Any:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def reference_log_probs(model: nn.Module, batches: LengthSortedBatches, size: int, device: torch.device) -> Tensor:
    """Log-probability of each whole answer under `model` as it is now.

    Args:
        model: the model before unlearning.
        batches: this process's share of the set.
        size: number of examples of the whole set.
        device: where the model lies.

    Returns:
        float32 (size,) on the CPU; zero for the examples of other processes.

    Raises:
        FloatingPointError: a value is not finite; names the rows.
    """
    values = torch.zeros(size)
    with _evaluating(model):
        for rows, batch in zip(batches.rows, batches, strict=True):
            sums = token_log_probs(model, {key: tensor.to(device) for key, tensor in batch.items()}).sum().cpu()
            if not bool(torch.isfinite(sums).all()):
                raise FloatingPointError(f"The reference log-probability is not finite for one of the rows {rows}.")
            values[rows] = sums
    return values


class ReferenceHead:
    """Reference logits of the retain set, for the KL loss: final hidden states and a frozen copy of the head.

    Takes (label tokens x hidden size) numbers per example, where a second model would take all its weights, and logits
    the vocabulary size per token. The head is copied only if it is trained.

    Args:
        model: the unwrapped model before unlearning.
        batches: the retain examples that the run will meet.
        device: where the model lies.

    Raises:
        ValueError: the model changes its logits after the head (soft-capping, scaling), so that they cannot be
            recomputed from the hidden states.
    """

    def __init__(self, model: nn.Module, batches: LengthSortedBatches, device: torch.device):
        head = model.get_output_embeddings()  # type: ignore[operator]
        self.hidden: dict[int, Tensor] = {}
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with _evaluating(model):
                for rows, batch in zip(batches.rows, batches, strict=True):
                    seen.clear()
                    moved = {key: tensor.to(device) for key, tensor in batch.items()}
                    result = token_log_probs(model, moved, keep_logits=True)
                    if not torch.allclose(head(hidden := seen[0]), result.logits, rtol=1e-2, atol=1e-2):
                        raise ValueError(
                            f"retain_loss='kl' needs logits that are its head's output, but {type(model).__name__} "
                            "changes them afterwards (soft-capping or scaling). Use retain_loss='nll'."
                        )
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


def fingerprint(dataset: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of a tokenized set's ids and labels: says whether reference values belong to it."""
    sha = hashlib.sha256()
    for row in dataset:
        sha.update(str((row["input_ids"], row["labels"])).encode())
    return sha.hexdigest()

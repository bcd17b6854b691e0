"""The outputs of the reference model that losses need: no second model stays in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from wagle_trainer.data.length_sorted_batches import LengthSortedBatches
from wagle_trainer.engines.sharding import empty_batch, synchronised
from wagle_trainer.models.architecture import output_head, unwrap
from wagle_trainer.models.log_probs import IGNORE_INDEX, token_log_probs
from wagle_trainer.models.modes import evaluation_mode
from wagle_trainer.models.not_finite import cause_of_not_finite


def reference_log_probs(
    model: nn.Module, batches: LengthSortedBatches, size: int, device: torch.device, together: bool = False
) -> Tensor:
    """Log-probabilities of the answers' tokens under `model` as it is now.

    Args:
        model: the reference model.
        batches: this process's share of the set.
        size: number of examples of the whole set.
        device: where the model computes.
        together: all processes have to run the same number of forward passes, since the weights are sharded.

    Returns:
        float32 (size, longest answer) on the CPU, in nats: the target tokens in their order, then zeros; zeros for the
        examples of other processes. The sum of a row is the log-probability of the full answer.

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
            result = token_log_probs(model, _moved(batch, device))
            if not bool(torch.isfinite(result.log_probs).all()):
                raise FloatingPointError(
                    f"The log-probability under the reference model is not finite for one of the rows {rows}: "
                    f"{cause_of_not_finite(model)}. Nothing was trained."
                )
            for row, log_probs, mask in zip(rows, result.log_probs.cpu(), result.mask.cpu(), strict=True):
                values[row, : int(mask.sum())] = log_probs[mask]
    return values


def mean_answer_probability(model: nn.Module, batches: LengthSortedBatches, device: torch.device) -> float:
    """Mean over the examples of the answer's probability under `model`: geometric mean over its tokens, in [0, 1].

    Args:
        model: a causal language model; left in the mode it was in.
        batches: all of the set.
        device: where the model computes.

    Raises:
        FloatingPointError: a value is not finite.
    """
    total = number = 0.0
    with evaluation_mode(model):
        for batch in batches:
            result = token_log_probs(model, _moved(batch, device))
            values = result.mean().exp()
            if not bool(torch.isfinite(values).all()):
                raise FloatingPointError(f"An answer's probability is not finite: {cause_of_not_finite(model)}.")
            total, number = total + values.sum().item(), number + len(values)
    return total / max(number, 1.0)


def align(values: Tensor, mask: Tensor) -> Tensor:
    """Lay rows of `reference_log_probs` out as the batch with this `mask`: the inverse of what it does."""
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    return values.gather(1, place) * mask


class _ReferenceOutput:
    """One output of the reference model for some rows of a set.

    Attributes:
        hidden: row -> (target tokens, hidden size) on the CPU.
        log_probs: float32 (rows,), log-probability of each full answer, zero for rows that the run does not meet. It
            identifies the reference model: see `check`.
    """

    def __init__(self, setting: str, number: int):
        self.setting = setting
        self.hidden: dict[int, Tensor] = {}
        self.log_probs = torch.zeros(number)

    def check(self, saved: Tensor) -> None:
        """Raise ValueError unless `saved`, the `log_probs` when the run began, come from the same reference model.

        Other hardware or batches change the values by rounding, training changes them by far more.
        """
        both = (saved != 0) & (self.log_probs != 0)
        if not torch.allclose(saved[both], self.log_probs[both], rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"{self.setting} compares with the reference model, but this trainer was given another model than the "
                "run began with. Give it that model again, not one of the checkpoints: the trained weights are read "
                "from the checkpoint anyway."
            )

    def values(self, rows: Iterable[int], device: torch.device) -> Tensor:
        """Return the output at the target tokens of these rows, one below the other."""
        return torch.cat([self.hidden[row] for row in rows]).to(device, non_blocking=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but `log_probs`, for a checkpoint of an engine on which it cannot be computed again."""
        rows = list(self.hidden)
        return {
            "rows": torch.tensor(rows),
            "target_tokens": torch.tensor([len(self.hidden[row]) for row in rows]),
            "hidden": torch.cat(list(self.hidden.values())),
        }

    @classmethod
    def restored(cls, setting: str, tensors: Mapping[str, Tensor], log_probs: Tensor, device: torch.device) -> Self:
        """Return the output that `tensors()` and `log_probs` describe."""
        self = cls.__new__(cls)
        _ReferenceOutput.__init__(self, setting, len(log_probs))
        parts = tensors["hidden"].split(tensors["target_tokens"].tolist())
        self.hidden = dict(zip(tensors["rows"].tolist(), parts, strict=True))
        self.log_probs = log_probs
        return self


def required_head(model: nn.Module, setting: str) -> nn.Module:
    """The head whose logits a setting needs.

    Raises:
        ValueError: the model names none.
    """
    head = output_head(model)
    if head is None:
        raise ValueError(
            f"{setting} needs the output embeddings of the model, and {type(unwrap(model)).__name__} names none. Use another "
            f"{setting.partition('=')[0]}."
        )
    return head


def check_head_is_linear(head: nn.Module, setting: str, engine: str) -> None:
    """Raise ValueError for a head that is not linear, which cannot be copied from an engine that shards weights."""
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{setting} needs a copy of the model's head. {engine} shards it, and only a linear head can be gathered; this "
            f"one is a {type(head).__name__}. Use another {setting.partition('=')[0]}, or data parallelism."
        )


class ReferenceLogits(_ReferenceOutput):
    """Reference logits of a set, for instance for the KL loss: final hidden states and a frozen copy of the head.

    They take (target tokens x hidden size) numbers per example, where a second model would take all its weights, and
    logits the vocabulary size per token. The head is copied only if it is trained or sharded.

    Args:
        model: the reference model; the engine's, if it shards weights.
        batches: the examples that the run will meet. Where weights are sharded, the same ones on every process.
        device: where the model computes.
        setting: which setting needs the logits, for the errors.
        full_weights: returns a module's full weights by name, if they are sharded; None if they are not.

    Raises:
        ValueError: the model changes its logits after the head (soft-capping, scaling), so that they cannot be
            recomputed from the hidden states.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: LengthSortedBatches,
        device: torch.device,
        setting: str = "retain_loss='kl'",
        full_weights: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
    ):
        super().__init__(setting, len(batches.dataset))
        head = required_head(model, setting)
        copied: nn.Module | None = None
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with evaluation_mode(model):
                for rows, batch in zip(batches.rows, batches, strict=True):
                    seen.clear()
                    moved = _moved(batch, device)
                    result = token_log_probs(model, moved, keep_logits=True)
                    assert result.logits is not None
                    hidden = seen[0]
                    # Without `logits_to_keep` the head sees all positions.
                    if hidden.shape[1] > result.logits.shape[1]:
                        hidden = hidden[:, result.kept]
                    if full_weights is not None and copied is None:
                        copied = _linear(full_weights(head), hidden)
                    logits = (copied or head)(hidden)
                    if not torch.allclose(logits.float(), result.logits.float(), rtol=1e-2, atol=1e-2):
                        raise ValueError(
                            f"{setting} needs logits that are its head's output, but {type(unwrap(model)).__name__} changes "
                            f"them afterwards (soft-capping or scaling). Use another {setting.partition('=')[0]}."
                        )
                    self.log_probs[rows] = result.sum().cpu()
                    positions = result.mask[:, result.kept]
                    for row, states, chosen in zip(rows, hidden, positions, strict=True):
                        self.hidden[row] = states[chosen].cpu()
        finally:
            handle.remove()
        trained = any(parameter.requires_grad for parameter in head.parameters())
        self.head = copied or (copy.deepcopy(head).requires_grad_(False) if trained else head)

    def tensors(self) -> dict[str, Tensor]:
        """See `_ReferenceOutput.tensors`; with the head's weights."""
        return super().tensors() | {f"head.{name}": weight for name, weight in self.head.state_dict().items()}

    @classmethod
    def restored(cls, setting: str, tensors: Mapping[str, Tensor], log_probs: Tensor, device: torch.device) -> Self:
        """See `_ReferenceOutput.restored`."""
        self = super().restored(setting, tensors, log_probs, device)
        head = {name.removeprefix("head."): weight for name, weight in tensors.items() if name.startswith("head.")}
        self.head = _linear(head, tensors["hidden"]).to(device)
        return self

    def values(self, rows: Iterable[int], device: torch.device) -> Tensor:
        """Return the logits at the target tokens of these rows, one below the other, (tokens, vocabulary)."""
        with torch.no_grad():
            return self.head(super().values(rows, device))


def _linear(weights: Mapping[str, Tensor], hidden: Tensor) -> nn.Linear:
    """A frozen linear layer with these weights, in the type of the hidden states that it gets."""
    outputs, inputs = weights["weight"].shape
    with torch.device("meta"):
        head = nn.Linear(inputs, outputs, bias="bias" in weights)
    found = {name: weights[name].to(hidden.dtype) for name, _ in head.named_parameters()}
    head.load_state_dict(found, assign=True)
    return head.requires_grad_(False)


class ReferenceStates(_ReferenceOutput):
    """Hidden states of one layer of the reference model at the target tokens of a set.

    Args:
        model: the reference model; the engine's, if it shards weights.
        layer: the layer of it.
        batches: the examples that the run will meet. Where weights are sharded, the same ones on every process.
        device: where the model computes.
        setting: which setting needs the states, for the errors.
    """

    def __init__(
        self, model: nn.Module, layer: nn.Module, batches: LengthSortedBatches, device: torch.device, setting: str
    ):
        super().__init__(setting, len(batches.dataset))
        with evaluation_mode(model):
            for rows, batch in zip(batches.rows, batches, strict=True):
                moved = _moved(batch, device)
                result = token_log_probs(model, moved, layer=layer)
                assert result.states is not None
                self.log_probs[rows] = result.sum().cpu()
                for row, states, mask in zip(rows, result.states, result.mask, strict=True):
                    self.hidden[row] = states[mask].cpu()


def _moved(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """As accelerate's `send_to_device`; losses and scores do without accelerate."""
    return {key: tensor.to(device) for key, tensor in batch.items()}

"""Log-likelihood of target tokens: the one forward pass that attribution, the losses and the evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wagle_trainer.models.architecture import (
    forward_parameters,
    keeps_some_logits,
    refuse_encoder_decoder,
    takes_positions,
)
from wagle_trainer.models.batch_layout import IGNORE_INDEX, BatchLayout, label_mask

__all__ = ["IGNORE_INDEX", "TokenLogProbs", "joint_token_log_probs", "label_mask", "token_log_probs"]

# How much padding one forward pass for two batches may add. A pass of its own, with its backward, reads all weights and
# adds to all gradients once more, which costs as much as about 50 tokens (SmolLM2-135M on a CPU) to 300 (a tiny model).
MAX_PADDING = 64
# Target tokens whose distributions over the vocabulary are in memory at once where only their entropy is wanted.
ENTROPY_CHUNK = 128


@dataclass
class TokenLogProbs:
    """Per-token log-probabilities of a batch, aligned with `labels[:, 1:]`.

    Attributes:
        log_probs: float32 (batch, length - 1), in nats; exactly zero where `mask` is False.
        mask: bool (batch, length - 1), True on target tokens.
        is_top1: bool (batch, length - 1) or None; True where the target is the model's most likely token.
        logits: (batch, kept, vocabulary) or None; the raw logits of the positions in `kept`.
        kept: int64 (kept,), the positions along the length that some example of the batch has a label after.
        labels: int64 (batch, length - 1) or None, -100 where `mask` is False.
        entropy: float32 (batch, length - 1) or None, without gradient; entropy of the model's distribution at each target
            token, in nats.
        states: (batch, length - 1, hidden size) or None; what a layer gives out at the target tokens themselves, not
            at those that predict them.
        counted: a mask and the number of its target tokens, if the host knows it; else, and where `mask` has been
            replaced by another one, the device is asked.

    The methods that give one row per target token list them in row-major order: example by example.
    """

    log_probs: Tensor
    mask: Tensor
    is_top1: Tensor | None = None
    logits: Tensor | None = None
    kept: Tensor | None = None
    labels: Tensor | None = None
    states: Tensor | None = None
    entropy: Tensor | None = None
    counted: tuple[Tensor, int] | None = None

    def sum(self) -> Tensor:
        """Log-probability of each full answer, (batch,)."""
        return self.log_probs.sum(-1)

    def mean(self) -> Tensor:
        """Mean log-probability per target token of each example, (batch,); zero for an example without labels."""
        return self.sum() / self.num_tokens().clamp(min=1)

    def num_tokens(self) -> Tensor:
        """Target tokens of each example, (batch,)."""
        return self.mask.sum(-1)

    def target_tokens(self) -> Tensor:
        """Ids of the target tokens, (target tokens,)."""
        assert self.labels is not None
        return self.at_targets(self.labels)

    def target_logits(self) -> Tensor:
        """float32 logits that predict the target tokens, (target tokens, vocabulary)."""
        assert self.logits is not None and self.kept is not None
        return self._at_targets(self.logits, self.mask[:, self.kept]).float()

    def target_states(self) -> Tensor:
        """float32 hidden states of the target tokens, (target tokens, hidden size)."""
        assert self.states is not None
        return self.at_targets(self.states).float()

    def at_targets(self, values: Tensor) -> Tensor:
        """The entries of values (batch, length - 1, ...) at the target tokens, (target tokens, ...)."""
        return self._at_targets(values, self.mask)

    def _at_targets(self, values: Tensor, mask: Tensor) -> Tensor:
        """The entries of values (batch, length, ...) where the mask (batch, length) is set."""
        if self.counted is None or self.counted[0] is not self.mask:
            return values[mask]
        return values.flatten(0, 1)[_positions(mask, self.counted[1])]

    def mean_of(self, values: Tensor) -> Tensor:
        """Mean of one value per target token over those of each example, (batch,); zero for an example without."""
        numbers = torch.arange(len(self.mask), device=values.device)
        rows = numbers.repeat_interleave(self.num_tokens(), output_size=len(values))
        total = torch.zeros(len(self.mask), dtype=values.dtype, device=values.device).index_add(0, rows, values)
        return total / self.num_tokens().clamp(min=1)


def _input_keys(batch: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(key for key in ("input_ids", "attention_mask", "position_ids") if batch.get(key) is not None)


def forward_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of `batch` that the forward pass takes.

    Positions are counted from the first real token, so that models with absolute positions give the same answer for
    left-padded and right-padded batches. Right-padded batches already have them: they get no `position_ids`.
    """
    inputs = {key: batch[key] for key in _input_keys(batch)}
    attention_mask = inputs.get("attention_mask")
    if attention_mask is not None and "position_ids" not in inputs and _pads_left(batch) and takes_positions(model):
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return inputs


def _pads_left(batch: Mapping[str, Any]) -> bool:
    layout: BatchLayout | None = batch.get("layout")
    return not bool(batch["attention_mask"][:, 0].all()) if layout is None else layout.pads_left


@contextmanager
def _outputs_of(layers: Iterable[nn.Module], shape: tuple[int, int]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the hidden states that `layers` return in the forward pass inside, (batch, length, hidden size).

    Args:
        layers: decoder layers.
        shape: (batch, length) of the forward pass.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: object, output: object) -> None:
        outputs[layer] = _hidden_states(output, shape, type(layer).__name__)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _hidden_states(output: object, shape: tuple[int, int], layer: str) -> Tensor:
    """Hidden states (batch, length, size) in what a layer returns: a tensor, or a tuple or list with it in front.

    Layers with several residual streams return (batch, length, streams, size), as DeepSeek-V4's, or (streams, batch,
    length, size), as Gemma3n's; the streams are concatenated.
    """
    states = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(states, Tensor):
        if states.dim() == 4 and tuple(states.shape[:2]) != shape and tuple(states.shape[1:3]) == shape:
            states = states.movedim(0, 2)
        if states.dim() in (3, 4) and tuple(states.shape[:2]) == shape:
            return states.flatten(2)
    found = f"of shape {tuple(states.shape)}" if isinstance(states, Tensor) else f"of type {type(output).__name__}"
    raise ValueError(
        f"The layer {layer} returns an output {found}, in which the hidden states of a batch {shape} are not found: use a "
        "loss that needs no hidden states."
    )


def _shape(batch: Mapping[str, Tensor]) -> tuple[int, int]:
    """(batch, length) of a batch."""
    batch_size, length = batch["labels"].shape
    return batch_size, length


def token_log_probs(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    top1: bool = False,
    keep_logits: bool = False,
    layer: nn.Module | None = None,
) -> TokenLogProbs:
    """Log-probabilities of the target tokens of `batch` under `model`, with gradients if they are enabled.

    The language-model head runs only on positions that some example has a label after, where the model offers
    `logits_to_keep`: the prompts that all examples share and the padding cost nothing there.

    Args:
        model: a causal language model, possibly wrapped by PEFT or DDP.
        batch: `input_ids`, `labels` (-100 = no loss) and, when padded, `attention_mask`; each (batch, length), on the
            model's device.
        top1: also tell whether each label is the most likely token.
        keep_logits: also return the logits of the kept positions.
        layer: also return the hidden states that this layer of the model gives out.

    Raises:
        ValueError: the model is an encoder-decoder, whose encoder reads the answer.
    """
    with _outputs_of([] if layer is None else [layer], _shape(batch)) as outputs:
        logits, kept = _logits(model, batch)
    result = _score(logits, kept, batch, top1, keep_logits, batch.get("layout"))
    if layer is not None:
        result.states = outputs[layer][:, 1:]
    return result


def joint_token_log_probs(
    model: nn.Module,
    batches: Mapping[str, Mapping[str, Any]],
    *,
    keep_logits: Collection[str] = (),
    layers: Mapping[str, nn.Module] | None = None,
    statistics: bool = False,
    agree: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, TokenLogProbs]:
    """`token_log_probs` of several batches; those of similar length share one forward pass.

    Args:
        model: as for `token_log_probs`.
        batches: name -> batch, as for `token_log_probs`. Only batches with an `attention_mask` are joined.
        keep_logits: names of the batches whose logits are returned, too.
        layers: name -> the layer of the model whose hidden states are returned, too.
        statistics: also return `is_top1` and `entropy`.
        agree: averages a float32 tensor over processes. Needed where forward passes communicate (DDP, FSDP, ZeRO-3):
            lengths differ between processes, but all must run as many passes.

    Returns:
        name -> what `token_log_probs` gives for the batch alone, up to rounding.
    """
    results: dict[str, TokenLogProbs] = {}
    layers = layers or {}
    for names in _similar(batches, agree):
        group = [batches[name] for name in names]
        together = group[0] if len(group) == 1 else concatenate(group)
        with _outputs_of({layers[name] for name in names if name in layers}, _shape(together)) as outputs:
            logits, kept = _logits(model, together)
        # Split before the softmax: the backward pass then holds its gradient for one batch at a time.
        sizes = [len(batch["labels"]) for batch in group]
        for name, part in zip(names, logits.split(sizes), strict=True):
            results[name] = _score(part, kept, batches[name], False, name in keep_logits, together.get("layout"))
            if statistics:
                _add_statistics(results[name], part, kept, together.get("layout"))
        for i, name in enumerate(names):
            if name in layers:
                length = group[i]["labels"].shape[1]
                results[name].states = outputs[layers[name]].split(sizes)[i][:, 1:length]
    return {name: results[name] for name in batches}


def _similar(batches: Mapping[str, Mapping[str, Tensor]], agree: Callable[[Tensor], Tensor] | None) -> list[list[str]]:
    """Names of the batches that share a forward pass, longest first."""
    shapes: list[Any] = [list(batch["labels"].shape) for batch in batches.values()]
    if agree is not None:
        device = next(iter(batches.values()))["labels"].device
        shapes = agree(torch.tensor(shapes, dtype=torch.float32).to(device)).tolist()
    rows, lengths = (dict(zip(batches, column, strict=True)) for column in zip(*shapes, strict=True))
    groups: list[list[str]] = []
    for name in sorted(batches, key=lambda name: -lengths[name]):
        group = [*groups[-1], name] if groups else [name]
        keys = {_input_keys(batches[other]) for other in group}
        padding = sum(rows[other] * (lengths[group[0]] - lengths[other]) for other in group)
        if groups and len(keys) == 1 and "attention_mask" in keys.pop() and padding <= MAX_PADDING:
            groups[-1] = group
        else:
            groups.append([name])
    return groups


def concatenate(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One batch of all rows, padded on the right to the longest; every token keeps its column."""
    length = max(batch["labels"].shape[1] for batch in batches)
    layouts: list[Any] = [batch.get("layout") for batch in batches]
    known = {} if None in layouts else {"layout": BatchLayout.joined(layouts)}
    return {
        key: torch.cat(
            [
                F.pad(batch[key], (0, length - batch[key].shape[1]), value=IGNORE_INDEX if key == "labels" else 0)
                for batch in batches
            ]
        )
        for key in (*_input_keys(batches[0]), "labels")
    } | known


def _logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits (batch, kept, vocabulary) of the positions that some example has a label after, and the positions."""
    refuse_encoder_decoder(model)
    layout: BatchLayout | None = batch.get("layout")
    if layout is None:
        kept = label_mask(batch["labels"], batch.get("attention_mask")).any(0).nonzero().squeeze(-1)
    else:
        kept = torch.tensor(layout.labelled, dtype=torch.long).to(batch["labels"].device, non_blocking=True)
    if kept.numel() == 0:  # nothing to score, but the caller may still need a differentiable zero
        kept = torch.zeros(1, dtype=torch.long, device=kept.device)
    inputs = forward_inputs(model, batch)
    if "use_cache" in forward_parameters(model):
        inputs["use_cache"] = False  # type: ignore[assignment]
    if keeps_some_logits(model):
        return model(**inputs, logits_to_keep=kept).logits, kept
    return model(**inputs).logits[:, kept], kept


def _score(
    logits: Tensor,
    kept: Tensor,
    batch: Mapping[str, Any],
    top1: bool,
    keep_logits: bool,
    forward: BatchLayout | None = None,
) -> TokenLogProbs:
    """Log-probabilities of `batch`'s labels from `logits` at `kept`, which may reach beyond its own length.

    Args:
        forward: layout of what was run forward, if it is known.
    """
    mask = label_mask(batch["labels"], batch.get("attention_mask"))
    own = _within(kept, mask.shape[1], forward)
    counted = (mask, batch["layout"].targets) if "layout" in batch else None
    labels = batch["labels"][:, 1:].masked_fill(~mask, IGNORE_INDEX)
    targets = labels[:, own]
    beyond = F.pad(targets, (0, len(kept) - len(own)), value=IGNORE_INDEX)
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), beyond.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view(beyond.shape)
    log_probs = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    log_probs = log_probs.index_copy(1, own, -losses[:, : len(own)])
    logits = logits[:, : len(own)]
    is_top1 = None
    if top1:
        is_top1 = torch.zeros_like(mask).index_copy(1, own, logits.argmax(-1) == targets)
    if not keep_logits:
        return TokenLogProbs(log_probs, mask, is_top1, labels=labels, counted=counted)
    return TokenLogProbs(log_probs, mask, is_top1, logits, own, labels, counted=counted)


@torch.no_grad()
def _add_statistics(result: TokenLogProbs, logits: Tensor, kept: Tensor, forward: BatchLayout | None) -> None:
    """Set `is_top1` and `entropy` of a result, a few target tokens at a time; no gradient passes through them."""
    assert result.labels is not None
    is_top1, entropy = torch.zeros_like(result.mask), torch.zeros_like(result.log_probs)
    kept = _within(kept, result.mask.shape[1], forward)
    number = None if result.counted is None else result.counted[1]
    for part in _positions(result.mask[:, kept], number).split(ENTROPY_CHUNK):
        rows, places = part // len(kept), part % len(kept)
        scores = logits[rows, places].float()
        log_p = scores.log_softmax(-1)
        places = kept[places]
        is_top1[rows, places] = scores.argmax(-1) == result.labels[rows, places]
        entropy[rows, places] = -(log_p.exp() * log_p).sum(-1)
    result.is_top1, result.entropy = is_top1, entropy


def _within(kept: Tensor, length: int, forward: BatchLayout | None) -> Tensor:
    """The positions in `kept` below a length.

    Args:
        forward: layout of what was run forward, if it is known.
    """
    if forward is None:
        return kept[kept < length]
    return kept[: sum(position < length for position in forward.labelled or (0,))]


def _positions(mask: Tensor, number: int | None) -> Tensor:
    """Ascending flat positions where a mask is set; the device is not asked if their number is known."""
    if number is None:
        return mask.flatten().nonzero().squeeze(-1)
    return (~mask).flatten().to(torch.uint8).argsort(stable=True)[:number]

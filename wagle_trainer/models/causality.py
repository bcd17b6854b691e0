"""Whether a model is a causal language model: does each prediction depend on earlier tokens alone?"""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor, nn

from wagle_trainer.engines.sharding import device_of
from wagle_trainer.models.architecture import NEEDS_CAUSAL, is_quantised, refuse_encoder_decoder, unwrap
from wagle_trainer.models.log_probs import token_log_probs
from wagle_trainer.models.modes import evaluation_mode, preserved_rng

LENGTH = 6
# Log-probabilities that differ by less are equal up to rounding: experts and kernels group tokens in another way.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_OTHER_TASKS = ("Classification", "QuestionAnswering", "MultipleChoice", "MaskedLM", "PreTraining")


def check_causal(model: nn.Module) -> None:
    """Raise ValueError unless `model` is a causal language model.

    Its configuration and class tell most. A probe tells the rest: two sequences that differ in the last token must have
    the same earlier log-probabilities. That is two forward passes over six tokens.

    Args:
        model: possibly wrapped by an engine; all processes call this together where the weights are sharded.

    Raises:
        ValueError: an encoder-decoder, a model for another task, or one whose predictions see later tokens.
    """
    inner = unwrap(model)
    name = type(inner).__name__
    refuse_encoder_decoder(inner)
    if any(task in name for task in _OTHER_TASKS):
        raise ValueError(f"{name} does not predict the next token. {NEEDS_CAUSAL}")
    difference = influence_of_last_token(model)
    dtype = next(model.parameters()).dtype
    if difference is not None and difference > TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
        raise ValueError(
            f"{name} is not causal: a changed last token changes earlier log-probabilities by {difference:.2g}. For a "
            f"BERT-like model, load it with is_decoder=True. {NEEDS_CAUSAL}"
        )


def check_causal_once(model: nn.Module) -> None:
    """As `check_causal`, for what is called again and again with the same model; all processes call this together."""
    if model not in _KNOWN:
        check_causal(model)
        _KNOWN.add(model)


_KNOWN: WeakSet[nn.Module] = WeakSet()


def influence_of_last_token(model: nn.Module) -> float | None:
    """By how much a changed last token changes earlier log-probabilities, in nats; None if that cannot be measured.

    It cannot where the vocabulary is not known, where an engine keeps the weights away (ZeRO-3), where
    log-probabilities are not finite, which others report, and where a quantised model rounds activations by what else is
    in the batch (bitsandbytes in 8 bits).
    """
    vocabulary = _vocabulary(model)
    if vocabulary is None or is_quantised(model) or any(parameter.numel() == 0 for parameter in model.parameters()):
        return None
    special = _special_tokens(getattr(unwrap(model), "config", None))
    usable = [token for token in range(min(vocabulary, 1000)) if token not in special]
    if len(usable) < 2:
        return None
    step = max(1, len(usable) // (LENGTH + 1))
    tokens = [usable[index * step % len(usable)] for index in range(LENGTH + 1)]
    device = device_of(next(model.parameters()))
    with evaluation_mode(model), preserved_rng():
        first, second = (_log_probs(model, [*tokens[: LENGTH - 1], last], device) for last in tokens[LENGTH - 1 :])
    difference = (first - second)[:, :-1].abs().max().item()
    return difference if difference == difference else None


def _log_probs(model: nn.Module, tokens: list[int], device: torch.device) -> Tensor:
    ids = torch.tensor([tokens], device=device)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    return token_log_probs(model, batch).log_probs


def _vocabulary(model: nn.Module) -> int | None:
    inner = unwrap(model)
    get = getattr(inner, "get_input_embeddings", None)
    table = get() if get is not None else None
    if not isinstance(table, nn.Embedding):
        table = next((module for module in inner.modules() if isinstance(module, nn.Embedding)), None)
    return None if table is None else table.num_embeddings


def _special_tokens(config: object) -> set[int]:
    """Ids that models treat apart: padding, images, ..."""
    found: set[int] = set()
    for holder in (config, getattr(config, "text_config", None)):
        for name, value in vars(holder).items() if holder is not None else ():
            if name.endswith(("token_id", "token_index")):
                found |= set(value if isinstance(value, list) else [value])
    return found

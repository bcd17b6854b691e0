"""Whether sets and tokenizer can be worked with, asked before any work is done."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers.utils import logging

logger = logging.get_logger(__name__)

FORMATS = (
    '  language modelling  {"text": "..."} or {"messages": [...]}\n'
    '  prompt-completion   {"prompt": "...", "completion": "..."} (text or messages)\n'
    '  preference          {"prompt": "...", "chosen": "...", "rejected": "..."}; rejected is what must be forgotten\n'
    '  tokenized           {"input_ids": [...], "labels": [...]}'
)


def check_set(dataset: Any, name: str, text_field: str = "text", formatting_func: Any = None) -> None:
    """Refuse a missing or empty set, one that cannot be indexed, and one in no known format.

    Raises:
        ValueError: missing, empty, or unknown columns; the message shows the formats.
        TypeError: not a `datasets.Dataset`.
    """
    if dataset is None:
        raise ValueError(
            f"The {name} set is missing. Pass {name}_dataset=..., or a train_dataset with the splits "
            '"forget" and "retain".'
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"The {name} set must be a datasets.Dataset, which can be indexed, got {type(dataset).__name__}. "
            "Pairs of forget and retain examples need random access: load it without streaming."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} set is empty.")
    columns = set(dataset.column_names)
    known = (
        {text_field},
        {"messages"},
        {"prompt", "completion"},
        {"chosen", "rejected"},
        {"input_ids"},
        {"conversations"},
    )
    if formatting_func is None and not any(needed <= columns for needed in known):
        raise ValueError(
            f"The {name} set has the columns {', '.join(sorted(columns))}, which is no format that TRL knows:\n{FORMATS}\n"
            "For questions and answers, QAFormat.for_tokenizer(tokenizer).dataset(...) makes prompt-completion."
        )


def check_chat_template(dataset: Dataset, name: str, processing_class: Any) -> None:
    """Raise ValueError if a conversational set meets a tokenizer without a chat template."""
    from trl import is_conversational

    if getattr(processing_class, "chat_template", None) is None and is_conversational(dataset[0]):
        raise ValueError(
            f"The {name} set is conversational, but the tokenizer has no chat template. Set tokenizer.chat_template "
            "(or chat_template_path), or pass text: for questions and answers, "
            'QAFormat.for_tokenizer(tokenizer, style="plain").dataset(...).'
        )


def pad_token_id(processing_class: Any) -> int:
    """The tokenizer's pad token; one without gets its end-of-sequence token, with a log line."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is None:
        raise ValueError(
            "The trainer has no tokenizer, but the attribution needs one to tokenize and to pad its batches: pass "
            "processing_class=... to the trainer."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError("The tokenizer has neither a pad nor an eos token: set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning(f"The tokenizer has no pad token: its eos token {tokenizer.eos_token!r} is used for padding.")
    return tokenizer.pad_token_id

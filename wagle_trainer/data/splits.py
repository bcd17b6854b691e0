"""The sets of a run as it was given them: checked, and with the chosen answers that its objective needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from torch import nn
from transformers.utils import logging

from wagle_trainer.data.dataset_checks import check_chat_template, check_eos_token, check_set, is_conversational
from wagle_trainer.data.overlap import warn_of_overlap
from wagle_trainer.data.preparation import as_prompt_completion, is_preference, with_refusals
from wagle_trainer.data.refusals import REFUSALS, refusal_for

logger = logging.get_logger(__name__)


def forget_and_retain(
    train_dataset: Any, forget: Dataset | None, retain: Dataset | None
) -> tuple[Dataset | None, Dataset | None]:
    """Return the two sets, however they were passed.

    Raises:
        ValueError: they were passed both ways, or `train_dataset` lacks one of the splits.
    """
    if train_dataset is None:
        return forget, retain
    if forget is not None or retain is not None:
        raise ValueError("Pass either train_dataset, or forget_dataset and retain_dataset, not both.")
    if not isinstance(train_dataset, dict) or not {"forget", "retain"} <= set(train_dataset):
        found = (
            ", ".join(map(repr, train_dataset)) if isinstance(train_dataset, dict) else type(train_dataset).__name__
        )
        raise ValueError(
            'train_dataset must be a DatasetDict with the splits "forget" and "retain" (or pass forget_dataset and '
            f"retain_dataset); got {found}."
        )
    return train_dataset["forget"], train_dataset["retain"]


def check_sets(
    forget: Dataset | None,
    retain: Dataset | None,
    eval_dataset: Any,
    args: Any,
    processing_class: Any,
    formatting_func: Callable[[dict], str] | None,
    forget_term: bool = True,
) -> None:
    """Raise ValueError or TypeError for a set that cannot be used (see `wagle_trainer.data.dataset_checks`).

    Args:
        args: the trainer's `SFTConfig`.
        forget_term: whether the objective has a loss on the forget set.
    """
    for name, dataset in (("forget", forget), ("retain", retain)):
        check_set(dataset, name, args.dataset_text_field, formatting_func)
        assert dataset is not None
        if args.chat_template_path is None and formatting_func is None:
            check_chat_template(dataset, name, processing_class)
        if args.eos_token is None and formatting_func is None:
            check_eos_token(dataset, name, processing_class)
        if args.assistant_only_loss and not ("input_ids" in dataset.column_names or is_conversational(dataset)):
            raise ValueError(
                f"assistant_only_loss=True, but the {name} set is not conversational: its columns are "
                f"{', '.join(dataset.column_names)}. Give both sets as messages, or set assistant_only_loss=False."
            )
    if formatting_func is None and forget is not None and retain is not None:
        warn_of_overlap(forget, retain, forget_term)
    for name, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}).items():
        if isinstance(dataset, Dataset):
            check_set(dataset, f"{name} evaluation", args.dataset_text_field, formatting_func)


def by_split(
    forget: Dataset,
    retain: Dataset,
    *,
    needs_chosen: bool,
    refusals: Sequence[str] | None = None,
    accepts_refusals: bool = True,
    seed: int = 42,
    loss_type: str = "",
) -> dict[str, Dataset]:
    """Return the sets "forget", "retain" and, if they are needed, "chosen": the answers to give instead.

    Args:
        needs_chosen: whether chosen answers are needed.
        refusals: chosen answers for a forget set without; None for the bundled ones.
        accepts_refusals: whether the bundled refusals may stand for chosen answers.
        seed: of the draw among the refusals.
        loss_type: name of the objective, for the errors.

    Raises:
        ValueError: chosen answers are needed, and there are none.
    """
    sets = {"forget": forget, "retain": retain}
    if is_preference(forget):
        sets["forget"] = as_prompt_completion(forget, "rejected")
        if needs_chosen:
            sets["chosen"] = as_prompt_completion(forget, "chosen")
    elif needs_chosen:
        if refusals is None and not accepts_refusals:
            raise ValueError(
                f"loss_type={loss_type!r} needs other answers of your own for the forget set. Give it as\n"
                '  {"prompt": ..., "chosen": a plausible other answer, "rejected": what to forget}\n'
                f"It has the columns {', '.join(forget.column_names)}. For refusals, use loss_type='dpo'."
            )
        if refusals is None:
            logger.info("The forget set has no chosen answers: the bundled refusals are used.")
        sentences = REFUSALS if refusals is None else tuple(refusals)
        sets["chosen"] = with_refusals(forget, lambda row: refusal_for(row, seed, sentences))
    if is_preference(retain):
        sets["retain"] = as_prompt_completion(retain, "chosen")
    return sets


def check_chosen_answers(given: dict[str, Dataset], prepared: dict[str, Dataset]) -> None:
    """Raise ValueError unless row i of the chosen answers, if there are any, belongs to row i of the forget set.

    Tokenization leaves out examples without a target token.
    """
    for name in ("forget", "chosen") if "chosen" in prepared else ():
        lost = len(given[name]) - len(prepared[name])
        if lost:
            raise ValueError(
                f"{lost} of the {name} answers have no target token, but every forget answer needs its chosen one: take "
                "these examples out of the forget set."
            )


def check_vocabulary(sets: dict[str, Dataset], model: nn.Module) -> None:
    """Raise ValueError if a tokenized set has a token that the model does not know: a GPU would stop without a word."""
    size = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    for name, dataset in sets.items():
        highest = max(max(ids) for ids in dataset["input_ids"])
        if highest >= size:
            raise ValueError(
                f"The {name} set has the token {highest}, but the model's vocabulary ends at {size - 1}: the tokenizer is not "
                "this model's, or tokens were added to it. Pass the model's own, or call "
                "model.resize_token_embeddings(len(tokenizer))."
            )

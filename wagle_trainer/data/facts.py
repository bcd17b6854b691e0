"""Public facts that pretrained models know: something to forget without teaching it first.

The rows have TOFU's columns (arXiv 2401.06121), and cloze texts beside them. `load_facts` keeps the facts that one model
knows, and splits them into a forget, a retain and an unseen set.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.facts_tables import RELATIONS, Relation

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Row = dict[str, Any]

SPLITS = ("forget", "retain", "unseen")
SPLIT_RULES = ("random", "relation", "subject")
_WRONG_ANSWERS = 5


def fact_relations() -> list[str]:
    """Names of the bundled relations."""
    return list(RELATIONS)


def all_facts(relations: Sequence[str] | None = None) -> Dataset:
    """Every bundled fact, whatever a model knows of it.

    Args:
        relations: names from `fact_relations()`; None for all.

    Returns:
        Rows with `question`, `answer`, `paraphrased_question`, `paraphrased_answer`, `perturbed_answer` (five wrong
        ones, in the words of the paraphrase, drawn from the same relation; none that is right as well), `cloze`, `paraphrased_cloze` (texts that end
        before the answer), `cloze_answer` (the answer alone), `subject` and `relation`. The rows are the same in every
        process.

    Raises:
        TypeError: one string in place of a list.
        ValueError: an unknown relation, or none.
    """
    from datasets import Dataset

    return Dataset.from_list(_rows(relations))


def load_facts(
    model: Any,
    tokenizer: Any,
    known: float = 0.25,
    *,
    relations: Sequence[str] | None = None,
    split_by: str = "random",
    forget: int | float = 0.25,
    retain: int | float = 0.5,
    unseen: int | float = 0.25,
    forget_relations: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> DatasetDict:
    """The facts that a model knows, as a forget, a retain and an unseen set.

    A fact counts as known when the model gives its answer at least the probability `known` after the cloze text, as the
    geometric mean over the answer's tokens. So a model need not follow instructions.

    No answer is in two splits: a retained "Paris" would train the word that a forgotten "Paris" removes. So with "random",
    facts with the same answer (the capital of France, the city of the Eiffel Tower) go to one split together. With "subject"
    and "relation", a fact is left out if another split has its answer; that of a forget set that `forget_relations` chooses
    comes first.

    Args:
        model: a causal language model on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        known: lowest probability of a known answer, in [0, 1].
        relations: names from `fact_relations()`; None for all.
        split_by: what the splits share out: "random" single facts (those with the same answer together), "subject" all
            facts of one subject together (France with its capital and its currency), "relation" whole relations.
        forget, retain, unseen: sizes: a number of facts (int) or a share of the known facts (float). The unseen set is
            in neither of the others: it shows what unlearning does to related knowledge. With "random", numbers are
            met, and a share is the most that a split gets. With "relation" and "subject", the groups that are drawn for
            a split give at most as many facts.
        forget_relations: with split_by="relation", the relations to forget, some of `relations`; drawn by the seed if
            None.
        seed: of the split. The same seed and the same known facts give the same splits.
        batch_size: facts in one forward pass.

    Returns:
        "forget", "retain" and "unseen", with the columns of `all_facts` and `probability`, that of the answer.

    Raises:
        TypeError: one string in place of a list of relations; a size that is no number.
        ValueError: an argument out of range; the model knows too few facts (the message counts them by relation), or too
            few with different answers.
    """
    from datasets import Dataset, DatasetDict

    if not 0 <= known <= 1:
        raise ValueError(f"known must lie between 0 and 1, not {known}.")
    if split_by not in SPLIT_RULES:
        raise ValueError(f"Unknown split_by {split_by!r}. Known: {', '.join(SPLIT_RULES)}.")
    rows = _rows(relations)
    names = {row["relation"] for row in rows}
    if forget_relations is not None:
        forget_relations = _check_forget_relations(forget_relations, split_by, names)
    if split_by == "relation" and len(names) < len(SPLITS):
        raise ValueError(f"split_by='relation' needs three relations or more, one for each split, not {len(names)}.")
    wanted = {"forget": forget, "retain": retain, "unseen": unseen}
    _check_sizes(wanted, len(rows))
    probabilities = cloze_probabilities(model, tokenizer, rows, batch_size=batch_size)
    found = [row | {"probability": value} for row, value in zip(rows, probabilities, strict=True) if value >= known]
    sizes = _sizes(wanted, len(found))
    if not all(sizes.values()) or sum(sizes.values()) > len(found):
        raise ValueError(_too_few(rows, found, known, wanted))
    splits = _split(found, sizes, split_by, forget_relations, random.Random(f"facts {seed}"))
    if split_by == "random":
        least = {name: 1 if isinstance(wanted[name], float) else sizes[name] for name in SPLITS}
        _check_filled(splits, sizes, least, found)
    elif not all(splits.values()):
        raise ValueError(
            f"{_too_few(rows, found, known, wanted)} Whole groups (split_by={split_by!r}) without an answer of another "
            "split do not fill every split: split_by='random' needs the fewest."
        )
    return DatasetDict({name: Dataset.from_list(splits[name]) for name in SPLITS})


def encode_cloze(tokenizer: Any, text: str, answer: str) -> dict[str, list[int]]:
    """Token ids and labels of a cloze text with its answer; no end-of-sequence token, labels on the answer alone.

    Where the tokens of the text alone are no prefix of those of both, the labels begin at the first other token.
    """
    prompt, whole = (list(tokenizer(text=t)["input_ids"]) for t in (text, f"{text} {answer}"))
    start = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(map(len, (prompt, whole)))
    )
    end = len(whole)
    if end > start and whole[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        end -= 1
    return {"input_ids": whole[:end], "labels": [-100] * start + whole[start:end]}


def cloze_probabilities(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    cloze: str = "cloze",
    answer: str = "cloze_answer",
    batch_size: int = 64,
) -> list[float]:
    """Probability of each row's answer after its cloze text: geometric mean over the answer's tokens, in [0, 1].

    Args:
        model: a causal language model on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        rows: with the two columns.
        cloze, answer: names of the columns.
        batch_size: rows in one forward pass.

    Raises:
        ValueError: `batch_size` below 1; an answer has no token after the first one of the text.
    """
    import torch

    from wagle_trainer.models.log_probs import token_log_probs
    from wagle_trainer.models.modes import evaluation_mode

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    examples = [encode_cloze(tokenizer, row[cloze], row[answer]) for row in rows]
    for row, example in zip(rows, examples, strict=True):
        if all(label == -100 for label in example["labels"][1:]):
            raise ValueError(f"The answer {row[answer]!r} to {row[cloze]!r} has no token of its own.")
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    device = next(model.parameters()).device
    values = [0.0] * len(examples)
    with evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = pad_examples([examples[index] for index in part])
            means = token_log_probs(model, {key: tensor.to(device) for key, tensor in batch.items()}).mean()
            for index, mean in zip(part, torch.exp(means).tolist(), strict=True):
                values[index] = mean
    return values


def pad_examples(examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """`input_ids`, `labels` and `attention_mask`, int64 (examples, longest), padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(sequences: list[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(s) for s in sequences], batch_first=True, padding_value=value)

    return {
        "input_ids": padded([e["input_ids"] for e in examples], 0),
        "labels": padded([e["labels"] for e in examples], -100),
        "attention_mask": padded([[1] * len(e["input_ids"]) for e in examples], 0),
    }


def _rows(relations: Sequence[str] | None) -> list[Row]:
    rows = []
    for name in RELATIONS if relations is None else _relation_names("relations", relations, RELATIONS):
        relation = RELATIONS[name]
        for subject, answer in relation.facts().items():
            wrong = _draw(relation.wrong_answers(subject), _WRONG_ANSWERS, random.Random(f"{name} {subject}"))
            rows.append(_row(name, relation, subject, answer, wrong))
    return rows


def _relation_names(argument: str, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names, each once; an error if one is not known."""
    if isinstance(names, str):
        raise TypeError(f"{argument} is a list of relations: pass {argument}=[{names!r}].")
    found = list(dict.fromkeys(names))
    if not found:
        raise ValueError(f"{argument} is empty. Name one or more of {', '.join(known)}, or pass None.")
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(f"Unknown relation {', '.join(map(str, unknown))} in {argument}. Known: {', '.join(known)}.")
    return found


def _check_forget_relations(names: Sequence[str], split_by: str, relations: Container[str]) -> list[str]:
    if split_by != "relation":
        raise ValueError("forget_relations chooses whole relations: pass split_by='relation' with it.")
    possible = [name for name in RELATIONS if name in relations]
    found = _relation_names("forget_relations", names, RELATIONS)
    outside = [name for name in found if name not in possible]
    if outside:
        raise ValueError(
            f"forget_relations has {', '.join(outside)}, which relations lacks. It has {', '.join(possible)}."
        )
    if len(possible) < len(found) + 2:
        raise ValueError(
            f"forget_relations has {len(found)} of {len(possible)} relations. The retain and the unseen set need one "
            "relation each besides: pass more relations."
        )
    return found


def _row(name: str, relation: Relation, subject: str, answer: str, wrong: Sequence[str]) -> Row:
    def sentence(template: str, value: str = answer) -> str:
        text = template.format(subject=subject, object=value)
        return text[0].upper() + text[1:]

    return {
        "question": sentence(relation.question),
        "answer": sentence(relation.answer),
        "paraphrased_question": sentence(relation.paraphrased_question),
        "paraphrased_answer": sentence(relation.paraphrased_answer),
        "perturbed_answer": [sentence(relation.paraphrased_answer, other) for other in wrong],
        "cloze": sentence(relation.cloze),
        "paraphrased_cloze": sentence(relation.paraphrased_cloze),
        "cloze_answer": answer,
        "subject": subject,
        "relation": name,
    }


def _draw(items: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """`count` items in random order, by `random()` alone: Python promises no more to stay the same."""
    pool = list(items)
    for i in range(min(count, len(pool))):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]


def _check_sizes(wanted: dict[str, int | float], total: int) -> None:
    for name, size in wanted.items():
        message = f"{name} must be a number of facts (int) or a share in (0, 1] (float), not {size!r}."
        if isinstance(size, bool) or not isinstance(size, int | float):
            raise TypeError(message)
        if not (0 < size <= 1 if isinstance(size, float) else size > 0):
            raise ValueError(message)
    if sum(size for size in wanted.values() if isinstance(size, float)) > 1 + 1e-9:
        raise ValueError(f"The shares of the splits add up to more than 1: {wanted}.")
    numbers = {name: size for name, size in wanted.items() if not isinstance(size, float)}
    if sum(numbers.values()) > total:
        raise ValueError(
            f"{_requested(numbers)} are more than the {total} facts of the relations. Request fewer, or pass more relations."
        )


def _sizes(wanted: dict[str, int | float], total: int) -> dict[str, int]:
    return {
        name: math.floor(size * total + 1e-9) if isinstance(size, float) else size for name, size in wanted.items()
    }


def _split(
    found: list[Row], sizes: dict[str, int], split_by: str, forget_relations: Sequence[str] | None, rng: random.Random
) -> dict[str, list[Row]]:
    """Groups of facts to the splits, drawn by `rng`; no answer in two splits."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(_word(row) if split_by == "random" else row[split_by], []).append(row)
    order = _draw(list(groups), len(groups), rng)
    if forget_relations is not None:
        first = [row for name in forget_relations for row in groups.get(name, [])]
        others = [groups[name] for name in order if name not in forget_relations]
        return _in_turn(others, sizes, first)
    splits = _in_turn([groups[name] for name in order], sizes)
    if split_by == "random" and any(len(splits[name]) < sizes[name] for name in SPLITS):
        splits = _largest_first([groups[name] for name in order], sizes, rng)
    return splits


def _word(row: Row) -> str:
    """What two facts with the same answer have in common."""
    return str(row["cloze_answer"]).casefold()


def _in_turn(
    groups: Sequence[list[Row]], sizes: dict[str, int], forget: Sequence[Row] | None = None
) -> dict[str, list[Row]]:
    """Each group to a split that is not full; facts whose answer another split has are left out.

    Args:
        forget: the forget set, where it is chosen, although the model may know none of it; no group goes there then.
    """
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    owners: dict[str, str] = {}

    def add(name: str, rows: Sequence[Row]) -> None:
        for row in rows:
            if len(splits[name]) < sizes[name] and owners.setdefault(_word(row), name) == name:
                splits[name].append(row)

    add("forget", forget or [])
    for group in groups:
        # The split that lacks the largest part of its size: so groups of all sizes reach all splits.
        open_ = [name for name in SPLITS if len(splits[name]) < sizes[name] and (forget is None or name != "forget")]
        if open_:
            add(min(open_, key=lambda name: len(splits[name]) / sizes[name]), group)
    return splits


def _largest_first(groups: Sequence[list[Row]], sizes: dict[str, int], rng: random.Random) -> dict[str, list[Row]]:
    """Each group to a split with room for all of it, drawn in proportion to the room.

    Single facts fill up what large groups leave. Turns in random order would cut a group where a split has little room
    left, and so lack those facts at the end where all known facts are requested.
    """
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for group in sorted(groups, key=len, reverse=True):
        room = {name: sizes[name] - len(splits[name]) for name in SPLITS}
        fitting = [name for name in SPLITS if room[name] >= len(group)]
        if fitting:
            place = rng.random() * sum(room[name] for name in fitting)
            for name in fitting:
                place -= room[name]
                if place < 0:
                    break
        else:
            name = max(SPLITS, key=lambda name: room[name])
        splits[name] += group[: room[name]]
    return splits


def _check_filled(
    splits: dict[str, list[Row]], sizes: dict[str, int], least: dict[str, int], found: Sequence[Row]
) -> None:
    short = [f"{name} with {len(splits[name])} of {sizes[name]}" for name in SPLITS if len(splits[name]) < least[name]]
    if short:
        raise ValueError(
            f"Facts with the same answer stay in one split. The {len(found)} known facts have "
            f"{len(set(map(_word, found)))} different answers: they fill {', '.join(short)} facts. Request fewer, pass "
            "more relations, or lower known."
        )


def _too_few(rows: list[Row], found: list[Row], known: float, wanted: dict[str, int | float]) -> str:
    total, number = (Counter(row["relation"] for row in part) for part in (rows, found))
    counts = ", ".join(f"{number[name]} of {total[name]} {name}" for name in total)
    return (
        f"The model knows {len(found)} of {len(rows)} facts with probability {known} or more, too few for "
        f"{_requested(wanted)} (at least one fact each): {counts}. Lower known, request fewer, or take a model that knows "
        "more."
    )


def _requested(wanted: Mapping[str, int | float]) -> str:
    """The sizes in words: numbers, or shares of the known facts."""
    words = {name: f"a share of {size}" if isinstance(size, float) else str(size) for name, size in wanted.items()}
    return ", ".join(f"{size} to {name}" if name != "unseen" else f"{size} unseen" for name, size in words.items())

"""Attacks on a patched model, without a second model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from statistics import fmean
from typing import Any

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation.attacks import NothingForgottenError, run_attacks
from wagle_trainer.evaluation.attacks.prompts import JAILBREAKS
from wagle_trainer.evaluation.suites.suite_inputs import Row
from wagle_trainer.forgetting.examples import encode, probabilities
from wagle_trainer.forgetting.neighbours import relation_of
from wagle_trainer.forgetting.patches import PatchedModel
from wagle_trainer.forgetting.settings import ForgetSettings
from wagle_trainer.forgetting.telling_words import only_words
from wagle_trainer.reporting.outcome import GONE

# Words around a question that ask for the same: those who ask are not jailbreaking.
_FRAMES = ("Please tell me: {question}", "{question} Answer in one sentence.")
_RELEARNING_STEPS = (1, 5, 10)
# Relearning that diverges is tried again with these shares of its learning rate.
_LOWER = (1.0, 0.1, 0.01)
# What is measured: the mean probability, and two numbers of answers.
_MEASURE, _GONE, _RETURNED = "probability", "answers gone", "answers returned"


class _Reference:
    """Stands for the reference model: it is measured by taking the patch back."""


def attack_rows(rows: Sequence[Row], known: Sequence[bool]) -> list[dict[str, Any]]:
    """The forget rows that attacks ask about: those that the model knew, as questions and answers.

    A bundled fact gets its bundled paraphrase. Passages and conversations of several turns are left out.

    Args:
        rows: the forget set.
        known: whether the reference model knew each answer.
    """
    found = []
    for index, (row, is_known) in enumerate(zip(rows, known, strict=True)):
        pair = next(
            ((row[q], row[a]) for q, a in (("question", "answer"), ("prompt", "completion")) if row.get(q)), None
        )
        if not is_known or pair is None or not all(isinstance(text, str) for text in pair):
            continue
        question, answer = pair
        paraphrase = row.get("paraphrased_question") or _bundled_paraphrase(question, answer)
        more = {"paraphrased_question": paraphrase} if paraphrase else {}
        found.append({"question": question, "answer": answer, "index": index, **more})
    return found


def _bundled_paraphrase(question: str, answer: str) -> str | None:
    from wagle_trainer.data.facts_tables import RELATIONS

    other = {"question": "paraphrased_question", "cloze": "paraphrased_cloze"}
    match = relation_of(question, answer)
    if match is None or match[1] not in other:
        return None
    text: str = getattr(RELATIONS[match[0]], other[match[1]]).format(subject=match[2])
    return text[0].upper() + text[1:]


def attack(
    patched: PatchedModel,
    tokenizer: Any,
    rows: Sequence[Row],
    before: Sequence[float],
    after: Sequence[float],
    words: Sequence[AbstractSet[str]],
    qa: QAFormat,
    settings: ForgetSettings,
    on_attack: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Run the attacks of the settings that the rows allow.

    Args:
        patched: the model with the patch in.
        tokenizer: the model's.
        rows: of `attack_rows`.
        before, after: probability of each answer of the forget set, under the reference model and with the patch.
        words: of each answer of the forget set, those that count (see `telling_words`).
        qa: how questions and answers become text.
        settings: which attacks.
        on_attack: called with the name of each attack that is done.

    Returns:
        What `run_attacks` returns; empty where nothing was forgotten or nothing can be attacked. Relearning that diverges
        is measured at a lower learning rate, which its settings name, and left out where that diverges, too.
    """
    names = [name for name in settings.attacks if _is_possible(name, rows)]
    if not names:
        return {}
    reference = _Reference()

    def measure(model: Any, _: Any, asked: Sequence[Row]) -> dict[str, float]:
        if model is reference:
            with patched.taken_back():
                return measure(patched.model, _, asked)
        examples = [
            only_words(example, words[row["index"]], tokenizer)
            for example, row in zip(encode(qa, asked, "attacked"), asked, strict=True)
        ]
        values = probabilities(patched.model, tokenizer, examples, settings.eval_batch_size)
        limits = [GONE * before[row["index"]] for row in asked]
        gone = [after[row["index"]] < limit for row, limit in zip(asked, limits, strict=True)]
        returned = [was and value >= limit for was, value, limit in zip(gone, values, limits, strict=True)]
        return {_MEASURE: fmean(values), _GONE: float(sum(gone)), _RETURNED: float(sum(returned))}

    done: set[str] = set()

    def tell(results: Mapping[str, Any]) -> None:
        for name in results.keys() - done:
            done.add(name)
            on_attack(name)

    options: dict[str, dict[str, Any]] = {
        "relearning": {"steps": _RELEARNING_STEPS, "learning_rate": settings.relearning_rate},
        "jailbreak": {"prompts": (*JAILBREAKS, *_FRAMES)},
        "quantization": {"bits": (4,)},
    }

    def run(some: Sequence[str]) -> dict[str, Any]:
        return run_attacks(
            reference,
            patched.model,
            tokenizer,
            rows,
            some,
            options={name: options[name] for name in some if name in options},
            measure=measure,
            qa_format=qa,
            batch_size=settings.eval_batch_size,
            seed=settings.seed,
            progress=False,
            on_result=tell,
        )

    found: dict[str, Any] = {}
    try:
        if "relearning" in names:
            for share in _LOWER:
                options["relearning"]["learning_rate"] = share * settings.relearning_rate
                try:
                    found |= run(["relearning"])
                    break
                except FloatingPointError:  # it diverged
                    continue
        if others := [name for name in names if name != "relearning"]:
            found |= run(others)
    except NothingForgottenError:
        return {}
    return {name: found[name] for name in names if name in found}


def _is_possible(name: str, rows: Sequence[Row]) -> bool:
    if name == "relearning":
        return len(rows) >= 2
    if name == "paraphrase":
        return bool(rows) and all(row.get("paraphrased_question") for row in rows)
    return bool(rows)


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The strongest point of each attack, for the verdict.

    Args:
        results: of `attack`.
    """
    found = {}
    for name, result in results.items():
        strongest = max(result["points"], key=lambda point: point["recovered_raw"])
        found[name] = {
            "before": result["before"],
            "after": result["baseline"],
            "attacked": strongest["forget"],
            "recovered": strongest["recovered"],
            "returned": round(strongest["measures"][_RETURNED]),
            "of": round(strongest["measures"][_GONE]),
            "strongest": f"{strongest['x']} {result['unit']}",
            "warning": result["warning"],
        }
    return found

"""TOFU's suite in batches, against the same metrics one example at a time.

python benchmarks/evaluation.py --model SMOLLM2_FOLDER --tofu TOFU_FOLDER

The floor scores each answer and generates each text once for every metric that needs it, as OpenUnlearning generates
for each of its ROUGE metrics; beside it, the same with nothing done twice. Both run on `--reference_rows` rows of each
set, and so does the suite, so that like is compared with like; the suite's time on all `--rows` rows is given, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from measure import DEVICE, interleaved, report
from rouge_score.rouge_scorer import RougeScorer
from workload import arguments, load_model, load_tokenizer

from wagle_trainer.data import QAFormat, load_tofu_evaluation
from wagle_trainer.evaluation import evaluate_tofu

SETS = ("forget", "retain", "real_authors", "world_facts")
# metric -> sets, and columns of the question and of the answers that it scores
SCORED = {
    "probability": (SETS, "question", ("answer",)),
    "probability of wrong answers": (SETS, "question", ("perturbed_answer",)),
    "probability of paraphrased answers": (("forget", "retain"), "question", ("paraphrased_answer",)),
    "probability of answers to paraphrased questions": (("forget",), "paraphrased_question", ("answer",)),
    "truth ratio, paraphrased": (("forget", "retain"), "question", ("paraphrased_answer", "perturbed_answer")),
    "truth ratio": (("real_authors", "world_facts"), "question", ("answer", "perturbed_answer")),
    "extraction strength": (("forget", "retain"), "question", ("answer",)),
    "exact memorization": (("forget", "retain"), "question", ("answer",)),
    **{f"{attack} attack": (("forget", "holdout"), "question", ("answer",)) for attack in ("loss", "zlib")},
    **{f"{attack} attack": (("forget", "holdout"), "question", ("answer",)) for attack in ("min-k", "min-k++")},
}
# ROUGE against -> sets, and columns of the question and of the texts
GENERATED = {
    "answers": (SETS, "question", "answer"),
    "paraphrased answers": (("forget", "retain"), "question", "paraphrased_answer"),
    "wrong answers": (("forget", "retain"), "question", "perturbed_answer"),
    "answers to paraphrased questions": (("forget",), "paraphrased_question", "answer"),
}


def one_at_a_time(
    model: Any, qa: QAFormat, sets: dict[str, Dataset], max_new_tokens: int, *, once: bool
) -> Callable[[], None]:
    """Every metric of the suite: an unpadded forward pass for each answer, a `generate` for each text; or each only once."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def texts(row: dict[str, Any], column: str) -> Iterable[str]:
        return row[column] if isinstance(row[column], list) else [row[column]]

    def distributions(question: str, answer: str) -> None:
        encoded = qa.encode(question, answer)
        ids, start = torch.tensor([encoded["input_ids"]], device=DEVICE), encoded["labels"].count(-100)
        log_probs = torch.log_softmax(model(ids).logits[0, start - 1 : -1].float(), -1)
        log_probs.gather(-1, ids[0, start:, None]).mean().item()

    def answer(question: str) -> str:
        prompt = torch.tensor([qa.prompt_ids(question)], device=DEVICE)
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=qa.tokenizer.pad_token_id,
        )
        return qa.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def run() -> None:
        score, generate = (cache(distributions), cache(answer)) if once else (distributions, answer)
        for names, question, columns in SCORED.values():
            for name in names:
                for row in sets.get(name, []):
                    for column in columns:
                        for text in texts(row, column):
                            score(row[question], text)
        for names, question, column in GENERATED.values():
            for name in names:
                for row in sets[name]:
                    generated = generate(row[question])
                    for text in texts(row, column):
                        scorer.score(text, generated)

    return run


def cut(sets: dict[str, Dataset], rows: int) -> dict[str, Dataset]:
    """The first rows of each set."""
    return {name: dataset.select(range(min(rows, len(dataset)))) for name, dataset in sets.items()}


def main() -> None:
    parser = arguments(__doc__, "evaluation", batch_size=32)
    parser.add_argument("--forget_split", default="forget01", help="The bundled people have forget05 and forget10.")
    parser.add_argument("--rows", type=int, default=40, help="Rows of each set that the suite runs on.")
    parser.add_argument("--reference_rows", type=int, default=4, help="Rows of each set that both run on.")
    parser.add_argument("--max_new_tokens", type=int, default=200)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, options.random_llama, tokenizer)
    qa = QAFormat.for_tokenizer(tokenizer)
    sets = cut(load_tofu_evaluation(options.tofu, options.forget_split), options.rows)
    few = cut(sets, options.reference_rows)

    def suite(chosen: dict[str, Dataset]) -> dict[str, Any]:
        return evaluate_tofu(
            model,
            tokenizer,
            chosen,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            progress=False,
        )

    limit = suite(few)["settings"]["max_new_tokens"]  # also warms up; both generate as many tokens at most
    few_rows = f"{options.reference_rows} rows of each set"
    floor, once, batched, whole = (
        f"one example at a time, once for each metric, {few_rows} (floor)",
        f"one example at a time, nothing twice, {few_rows}",
        f"evaluate_tofu, {few_rows}",
        f"evaluate_tofu, {options.rows} rows of each set",
    )
    seconds = interleaved(
        {
            floor: one_at_a_time(model, qa, few, limit, once=False),
            once: one_at_a_time(model, qa, few, limit, once=True),
            batched: lambda: suite(few),
            whole: lambda: suite(sets),
        },
        options.repeats,
    )
    rows = []
    for name in (floor, once, batched, whole):
        # Time goes with the rows: those of the floor and of the suite differ in the last line.
        share = sum(map(len, few.values())) / sum(map(len, (sets if name == whole else few).values()))
        ratio = seconds[name] * share / seconds[floor]
        over_once = seconds[once] / seconds[name] / share
        rows.append(
            {
                "": name,
                "seconds": seconds[name],
                "ratio": ratio,
                "speed-up": 1 / ratio,
                "speed-up over nothing twice": over_once,
            }
        )
    report("TOFU's suite in batches against one example at a time", rows, vars(options), options.output)


if __name__ == "__main__":
    main()

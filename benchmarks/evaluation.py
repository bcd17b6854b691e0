"""TOFU's suite in batches, against the same metrics one example at a time.

python benchmarks/evaluation.py --model SMOLLM2_FOLDER --tofu TOFU_FOLDER

The floor scores each answer and generates each text once for every metric that needs it, as OpenUnlearning generates
for each of its ROUGE metrics; beside it, the same with nothing done twice. Both run on `--reference_rows` rows of each
set, and so does the suite, so that like is compared with like; the suite's time on all `--rows` rows is given, too.
On a CPU the ratios are of processor time, which other work on the machine disturbs less than the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from measure import DEVICE, interleaved, report
from rouge_score.rouge_scorer import RougeScorer
from workload import arguments, load_model, load_tokenizer

from wagle_trainer.data import QAFormat, load_tofu_evaluation
from wagle_trainer.evaluation import evaluate_tofu
from wagle_trainer.evaluation.generation import answer_limit

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


def _timed(name: str, run: Callable[[], object], processor: list[float]) -> None:
    """Run, print, and append the seconds that all threads of this process together took of the processor."""
    start = time.process_time()
    run()
    processor.append(time.process_time() - start)
    print(f"{name}: {processor[-1]:.1f} seconds of the processor", flush=True)


def spread(sets: dict[str, Dataset], rows: int) -> dict[str, Dataset]:
    """So many rows of each set, at equal distances: a few stand for all."""
    return {
        name: dataset.select(
            [i * len(dataset) // rows for i in range(rows)] if rows < len(dataset) else range(len(dataset))
        )
        for name, dataset in sets.items()
    }


def main() -> None:
    parser = arguments(__doc__, "evaluation", batch_size=32)
    parser.add_argument("--forget_split", default="forget01", help="The bundled people have forget05 and forget10.")
    parser.add_argument("--rows", type=int, default=40, help="Rows of each set that the suite runs on.")
    parser.add_argument("--reference_rows", type=int, default=4, help="Rows of each set that both run on.")
    parser.add_argument("--max_new_tokens", type=int, default=200)
    parser.add_argument("--once", action="store_true", help="Leave out the floor that does all once for each metric.")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, options.random_llama, tokenizer)
    qa = QAFormat.for_tokenizer(tokenizer)
    sets = spread(load_tofu_evaluation(options.tofu, options.forget_split), options.rows)
    few = spread(sets, options.reference_rows)

    def suite(chosen: dict[str, Dataset], limit: int = options.max_new_tokens) -> dict[str, Any]:
        return evaluate_tofu(
            model,
            tokenizer,
            chosen,
            batch_size=options.batch_size,
            max_new_tokens=limit,
            progress=False,
        )

    labels = [qa.encode(row["question"], row["answer"])["labels"] for name in SETS for row in few[name]]
    limit = answer_limit(labels, options.max_new_tokens)  # both generate as many tokens at most
    suite(spread(sets, 2), 2)  # warms up
    few_rows = f"{options.reference_rows} rows of each set"
    floor, once, batched, whole, scored = (
        f"one example at a time, once for each metric, {few_rows} (floor)",
        f"one example at a time, nothing twice, {few_rows}",
        f"evaluate_tofu, {few_rows}",
        f"evaluate_tofu, {options.rows} rows of each set",
        f"evaluate_tofu, {options.rows} rows of each set, answers of one token",  # what is left without generation
    )
    variants = {
        floor: one_at_a_time(model, qa, few, limit, once=False),
        once: one_at_a_time(model, qa, few, limit, once=True),
        batched: lambda: suite(few, limit),
        whole: lambda: suite(sets, limit),
        scored: lambda: suite(sets, 1),
    }
    if options.once:
        del variants[floor]
    processor: dict[str, list[float]] = {name: [] for name in variants}
    clock = interleaved(
        {name: partial(_timed, name, run, processor[name]) for name, run in variants.items()}, options.repeats
    )
    seconds = clock if DEVICE == "cuda" else {name: median(found) for name, found in processor.items()}
    rows = []
    for name in variants:
        # Time goes with the rows: those of the floors and of the suite differ in the last lines.
        share = sum(map(len, few.values())) / sum(map(len, (few if name in (floor, once, batched) else sets).values()))
        row = {"": name, "seconds": clock[name], "seconds of the processor": median(processor[name])}
        if floor in seconds:
            ratio = seconds[name] * share / seconds[floor]
            row |= {"ratio": ratio, "speed-up": 1 / ratio}
        rows.append(row | {"speed-up over nothing twice": seconds[once] / seconds[name] / share})
    report("TOFU's suite in batches against one example at a time", rows, vars(options), options.output)


if __name__ == "__main__":
    main()

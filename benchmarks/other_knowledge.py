"""What a patch costs where nothing asks for what was forgotten: facts of other kinds, and general text.

python benchmarks/other_knowledge.py --config recipes/configs/patch_size_facts_deep.yaml --model SMOLLM2_FOLDER
python benchmarks/other_knowledge.py --config recipes/configs/patch_size_tofu.yaml --model SMOLLM2_FOLDER --dataset_name TOFU_FOLDER

Runs of the study of patch sizes, at the rates that its rule chose, without attacks. *other facts*: the mean probability of the
bundled facts that the reference model knows and that are no capitals; those whose answer stands in an answer to forget are left
out (`words_elsewhere.py` measures what becomes of words). *perplexity*: of general text, the replies of the bundled polite
speakers. What `--output` holds is not run again.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

RECIPES = Path(__file__).parents[1] / "recipes"
sys.path.insert(0, str(RECIPES))
from patch_size import Study, given_run, parse  # noqa: E402
from patch_size_masks import NO_MASK, spread  # noqa: E402
from patch_size_runs import Bench, Rows, environment  # noqa: E402
from words_elsewhere import KNOWN, mean_of, reference_is_there  # noqa: E402

from wagle_trainer.data.facts import all_facts, cloze_probabilities  # noqa: E402
from wagle_trainer.data.fictional.speakers import speakers_rows  # noqa: E402
from wagle_trainer.evaluation.answer_scores import score_answers  # noqa: E402
from wagle_trainer.evaluation.suites.suite_inputs import continuation, text_ids  # noqa: E402
from wagle_trainer.utils.table_formats import markdown_table  # noqa: E402

RUNS = {
    "facts": [
        *("none 1 3e-5", "random 1e-3 0.03", "random 1e-5 3", "snip 1e-3 0.0017", "gradient 1e-3 0.001"),
        *("curvature 1e-3 0.01", "curvature 1e-5 0.055", "answer_rows 1e-5 0.03"),
    ],
    "tofu": [
        *("none 1 3e-5", "random 1e-3 0.03", "random 1e-4 0.17", "snip 1e-3 0.001", "gradient 1e-3 0.00055"),
        *("answer_rows 1e-4 0.017", "answer_rows 1e-5 0.1"),
    ],
}
MEASURED = {"forget": "forget", "other_facts": "other facts", "perplexity": "perplexity"}


def other_facts(bench: Bench) -> list[dict[str, Any]]:
    """Facts of other relations than capitals that the reference model knows, without the answers to forget."""
    bench.reset()
    tokenizer = bench.task.tokenizer
    texts = [tokenizer.decode([t for t in e["labels"] if t != -100]) for e in bench.task.sets["forget"]]
    rows = [
        row
        for row in all_facts().to_list()
        if row["relation"] != "capital" and not any(row["cloze_answer"] in text for text in texts)
    ]
    known = cloze_probabilities(bench.model, tokenizer, rows)
    return [row for row, probability in zip(rows, known, strict=True) if probability >= KNOWN]


def perplexity(bench: Bench) -> float:
    """Of the general texts: over all their tokens but each one's first."""
    texts = [text_ids(bench.task.tokenizer, row["text"]) for row in speakers_rows("general")]
    names = [f"text {index}" for index in range(len(texts))]
    scores = score_answers(
        bench.model, [continuation(ids, 1) for ids in texts], names, eos_token_id=None, progress=False
    )
    tokens = sum(score.num_tokens for score in scores)
    return math.exp(-sum(score.mean_log_prob * score.num_tokens for score in scores) / tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("outputs/other_knowledge"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/other_knowledge.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = ["--config", str(options.config), "--model", options.model, "--output_dir", str(options.work)]
    args, data = parse(given + (["--dataset_name", options.dataset_name] if options.dataset_name else []))
    study = Study(args, Rows(options.work / "results.json"), data)
    rows, machine = Rows(options.output), environment()
    settings = {name: getattr(args, name) for name in ("steps", "batch_size", "beta", "retain_weight", "examples")}
    kept = rows.content.setdefault("settings", {}).setdefault(args.task, settings)
    if kept != settings:
        raise SystemExit(f"{options.output} was made with other settings: {kept}. Give another --output.")
    for seed in options.seeds:
        bench = study.bench(seed)
        facts = other_facts(bench)
        key: dict[str, Any] = {"task": args.task, "seed": seed}

        def measure(of: dict[str, Any], bench: Bench = bench, facts: list[dict[str, Any]] = facts) -> None:
            numbers = bench.measure() | {
                "other_facts": fmean(cloze_probabilities(bench.model, bench.task.tokenizer, facts)),
                "number_of_other_facts": len(facts),
                "perplexity": perplexity(bench),
            }
            rows.add(of | numbers, machine)
            print({name: rows.rows[-1][name] for name in ("seed", "score", *MEASURED)}, flush=True)

        if not reference_is_there(rows, bench, key):
            measure(key | {"score": "reference model", "weights_digest": bench.digest()})
        for label, density, rate in map(given_run, RUNS[args.task]):
            of = key | {"score": label, "density": density, "learning_rate": rate}
            if rows.find(**of) is None:
                score, gamma = (NO_MASK, None) if label == NO_MASK else spread(label)
                try:
                    bench.unlearn(args.objectives[0], score, gamma, density, rate)
                    measure(of)
                except FloatingPointError as error:
                    rows.add(of | {"failed": str(error)}, machine)
        bench.reset()  # seeds may share the model
    print(markdown_table(table(rows.rows)))


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Means over the seeds, a line for each run."""
    names = ("task", "score", "density", "learning_rate")
    lines = [["task", "score", "density", "lr", "seeds", *MEASURED.values()]]
    for key in dict.fromkeys(tuple(row.get(name) for name in names) for row in rows):
        same = [row for row in rows if tuple(row.get(name) for name in names) == key]
        density, rate = ("" if value is None else f"{value:g}" for value in key[2:])
        means = [mean_of(same, name) for name in MEASURED]
        score = "all weights" if key[1] == NO_MASK else key[1]
        lines.append([key[0], score, density, rate, str(len(same)), *means])
    return lines


if __name__ == "__main__":
    main()

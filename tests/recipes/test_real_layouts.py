"""The recipes on files as WMDP, MUSE and a book come, with a pretrained model: attribution, training, evaluation, table."""

import importlib
import json
import os
import sys

import datasets
import pytest

from wagle_trainer.evaluation import load_results

SMOLLM2 = os.environ.get("WAGLE_SMOLLM2")
SENTENCE = (
    "The harbour of {0} was quiet that morning, and nobody on the {1} pier expected the letter from {0} to arrive. "
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SMOLLM2 is None, reason="no SmolLM2-135M: set WAGLE_SMOLLM2 to its folder"),
]


def text(start, sentences):
    return "".join(SENTENCE.format(f"Town{start + n}", f"{start * n}th") for n in range(sentences)).strip()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(recipe, options) -> results of a run of two steps."""

    def start(recipe, options):
        settings = (
            f"--model_name_or_path {SMOLLM2} --dtype float32 --use_cpu true --max_steps 2 --density 0.1 --style plain "
            f"--attribution_samples 2 --per_device_train_batch_size 1 --learning_rate 1e-4 --output_dir {tmp_path}/out "
            "--evaluation_samples 2 --evaluation_batch_size 4 --save_strategy no --report_to none --disable_tqdm true "
            "--max_length 96 --gradient_checkpointing false"
        )
        monkeypatch.setattr(sys, "argv", [recipe, *settings.split(), *options.split()])
        importlib.import_module("tofu_npo").main(*RECIPES[recipe])
        assert (tmp_path / "out" / "wagle" / "mask.safetensors").exists()
        assert (tmp_path / "out" / "report.html").exists()
        return load_results(tmp_path / "out" / "results.json")

    return start


RECIPES = {"wmdp_npo": ("wmdp", "npo"), "copyright_po": ("copyright", "po")}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_wmdp(run, tmp_path):
    folder = tmp_path / "wmdp"
    write_lines(
        folder / "bio_remove_dataset.jsonl", [{"title": "t", "abstract": "a", "text": text(n, 3)} for n in (1, 2)]
    )
    write_lines(folder / "cyber-forget-corpus.jsonl", [{"text": text(n, 3)} for n in (3, 4)])
    question = {
        "question": "Where was it quiet?",
        "choices": ["In Town1", "At sea", "Nowhere", "In a wood"],
        "answer": 0,
    }
    parts = {
        "wikitext-2-raw-v1/train-00000-of-00001": [{"text": text(n, 3)} for n in (5, 6, 7)],
        "wmdp-bio/test-00000-of-00001": 2 * [question],
        "wmdp-cyber/test-00000-of-00001": 2 * [question],
        "all/test-00000-of-00001": 2 * [{**question, "subject": "geography"}],
    }
    for name, rows in parts.items():
        (folder / name).parent.mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    results = run("wmdp_npo", f"--dataset_name {folder}")
    assert list(results) == ["before", "after, wagle mask 0.1"]
    assert results["before"]["settings"]["ask_for"] == "letter"
    assert results["before"]["settings"]["examples"] == {"forget": 4, "retain": 2}
    before, after = (results[label]["per_example"]["forget"]["answer_prob"] for label in results)
    assert before != after


def test_muse(run, tmp_path):
    folder = tmp_path / "muse"
    question = [{"question": "Where was it quiet?", "answer": "In Town1."}]
    rows = {
        "raw/forget": [{"text": text(1, 12)}],
        "raw/retain1": [{"text": text(30, 12)}],
        "verbmem/forget": [{"prompt": text(1, 1), "gt": text(2, 1)}],
        **{f"knowmem/{name}": question for name in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl")},
    }
    for name, some in rows.items():
        write_lines(folder / f"{name}.json", some)
    results = run("copyright_po", f"--dataset_name {folder} --passage_tokens 64 --prompt_tokens 20")
    assert list(results) == ["before", "after, wagle mask 0.1"]
    assert "forget_verbmem_ROUGE" in results["before"]
    assert "privleak_forget" in results["before"]["settings"]["missing"]["mia_min_k"]


def test_a_book(run, tmp_path):
    (tmp_path / "book.txt").write_text(text(1, 12), encoding="utf-8")
    (tmp_path / "other.txt").write_text(text(40, 20), encoding="utf-8")
    results = run(
        "copyright_po",
        f"--forget_file {tmp_path}/book.txt --retain_file {tmp_path}/other.txt --passage_tokens 64 --prompt_tokens 20 "
        "--continuation_tokens 20",
    )
    for label in ("before", "after, wagle mask 0.1"):
        assert results[label]["settings"]["examples"] == {"seen": 2, "unseen": 1, "general": 1}
        assert results[label]["general_perplexity"] > 1

"""Numbers of OpenUnlearning's unmodified code on a tiny model, in four formats, and how far this package's are from them.

`benchmarks/results/open_unlearning_parity.json` holds numbers of locuslab/open-unlearning at d3d7cf9 (its `preprocess_chat_instance`, collator and
metric functions, under Transformers 5 with a tokenizer that returns lists as in Transformers 4), from the model, sets and
tokenizers below.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.data.test_qa_format import make_tokenizer
from tests.data.test_qa_formats import QWEN, SYSTEM, llama_3, tokenizer_with
from wagle_trainer.data import QAFormat, load_tofu_evaluation
from wagle_trainer.data.fictional import fictional_split
from wagle_trainer.evaluation import evaluate_tofu

FILE = Path(__file__).parents[3] / "benchmarks" / "results" / "open_unlearning_parity.json"
MAX_NEW_TOKENS = 12


def formats(tokenizer, pad_is_eos=True, **options):
    """The tokenizer, this package's format, and that with OpenUnlearning's habits."""
    if pad_is_eos:  # as OpenUnlearning sets it where there is none
        tokenizer.pad_token = tokenizer.eos_token
    ours = QAFormat.for_tokenizer(tokenizer, **options)
    return tokenizer, ours, QAFormat.for_tokenizer(tokenizer, **options, compatibility="open-unlearning")


LLAMA_2 = {"question_prefix": "[INST] ", "question_suffix": " [/INST]", "answer_prefix": ""}
FORMATS = {
    "Llama-3": lambda: formats(llama_3(), system_prompt=SYSTEM),
    "Qwen2.5": lambda: formats(tokenizer_with("qwen2_5", QWEN, "<|im_end|>"), False, system_prompt=SYSTEM),
    "Llama-2": lambda: formats(make_tokenizer(ends="<s> $A"), **LLAMA_2),
    "plain": lambda: formats(make_tokenizer(merges=["Ġ I", "Ġ T", "e r"])),
}


def model_for(tokenizer):
    """A Llama of random weights, the same on every machine."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def sets_for():
    """Six rows of each set of the bundled people; of those to keep, six more are the holdout."""
    sets = {name: list(rows) for name, rows in load_tofu_evaluation("fictional", "forget10", 6).items()}
    return {**sets, "holdout": list(fictional_split("retain90").select(range(40, 46)))}


def roc(low, high):
    """Share of the pairs in which the second is lower; ties count half."""
    return sum((h < x) + 0.5 * (h == x) for x in low for h in high) / (len(low) * len(high))


def digest(tokens):
    """SHA-256 of nested lists of tokens."""
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


RECORDED = json.loads(FILE.read_text())["formats"]
# c / (c + w + 1e-10) there, (c + 1e-10) / (c + w + 1e-10) here: 1e-10 / (c + w) apart, 4e-6 where both answers have 1e-5.
OF_THE_EPSILON = ("forget_truth_ratio_mean_prob", "retain_truth_ratio_mean_prob")


@pytest.fixture(scope="module", params=FORMATS)
def case(request):
    """A format's name, tokenizer, the two formats, model and sets."""
    tokenizer, ours, compatible = FORMATS[request.param]()
    return request.param, tokenizer, ours, compatible, model_for(tokenizer), sets_for()


def test_tokens_and_labels(case):
    name, _, ours, compatible, _, sets = case
    rows = [row for some in sets.values() for row in some]
    tokens = [list(compatible.encode(row["question"], row["answer"]).values()) for row in rows]
    prompts = [compatible.prompt_ids(row["question"]) for row in sets["forget"]]
    assert digest([tokens, prompts]) == RECORDED[name]["digest"]
    same = sum(
        ours.encode(row["question"], row["answer"]) == compatible.encode(row["question"], row["answer"])
        for row in rows
    )
    assert (len(rows), same) == (RECORDED[name]["rows"], RECORDED[name]["rows_with_the_same_tokens_and_labels"])


@pytest.mark.slow
def test_metrics(case):
    """Those of OpenUnlearning with its habits; and by default as far from them as the documentation says."""
    name, tokenizer, ours, compatible, model, sets = case
    options = {"max_new_tokens": MAX_NEW_TOKENS, "progress": False}
    theirs, package = RECORDED[name]["theirs"], RECORDED[name]["package"]
    found = evaluate_tofu(model, tokenizer, sets, qa_format=compatible, **options)
    for metric, number in theirs.items():
        assert found[metric] == pytest.approx(number, abs=2e-6 if metric not in OF_THE_EPSILON else 1e-5), metric
    assert found["settings"]["compatibility"] == "open-unlearning", "that of the format"
    usual = evaluate_tofu(model, tokenizer, sets, qa_format=ours, **options)
    for metric, number in package.items():
        assert usual[metric] == pytest.approx(number, abs=1e-5), metric

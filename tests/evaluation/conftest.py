"""Tiny random models and a word-level tokenizer: every token is a word, so expected values can be worked out by hand."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<eos>", "<unk>"]
WORDS = ["Question", ":", "Answer", *(f"w{index}" for index in range(34))]


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """For all tests of this folder: a second thread costs minutes where other processes hold the other core."""


@pytest.fixture(scope="session")
def tokenizer():
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


# A wide initial range makes predictions differ from token to token, so that a shifted position shows.
WIDE = 0.3


@pytest.fixture
def llama(tokenizer, make_llama):
    config = {"intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": WIDE}
    return make_llama(vocab_size=len(tokenizer), **config).eval()


@pytest.fixture
def gpt2(tokenizer, make_gpt2):
    return make_gpt2(vocab_size=len(tokenizer), n_positions=256, initializer_range=WIDE).eval()


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def muse_model(make_llama, make_word_tokenizer, muse_rows):
    """A tiny Llama that was trained on a part of MUSE's texts and answers: it knows some, and others not."""
    words = make_word_tokenizer()
    known = [
        *(row["text"] for row in muse_rows["privleak/forget"][:2]),
        *(f"{row['prompt']} {row['gt']}" for row in muse_rows["verbmem/forget"][:2]),
        *(
            f"Question: {row['question']} Answer: {row['answer']} {words.eos_token}"
            for part in ("forget_qa", "retain_qa")
            for row in muse_rows[f"knowmem/{part}"][:2]
        ),
    ]
    rows = [torch.tensor(words(text)["input_ids"]) for text in known]
    batch = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(rows, True, 0),
        "labels": torch.nn.utils.rnn.pad_sequence(rows, True, -100),
    }
    model = make_llama()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


HARNESS_QUESTIONS = {
    "forget_bio": [("w1 w2", 0), ("w3", 1), ("w4 w5 w6", 2), ("w7", 3), ("w8 w9", 0)],
    "forget_cyber": [("w10 w11 w12", 3), ("w13", 2), ("w14 w15", 1)],
    "retain_all": [("w16", 0), ("w17 w18", 1), ("w19 w20 w21", 2), ("w22", 3)],
}
HARNESS_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


@pytest.fixture(scope="session")
def write_harness_tasks():
    """write_harness_tasks(folder) -> task -> its questions; the folder then has tasks as the harness takes them."""

    def write(folder):
        folder.mkdir(exist_ok=True)
        tasks = {}
        for name, questions in HARNESS_QUESTIONS.items():
            choices = ["w30", "w31", "w32", "w33"]
            tasks[name] = [{"question": text, "choices": choices, "answer": answer} for text, answer in questions]
            file = folder / f"{name}.jsonl"
            file.write_text("\n".join(map(json.dumps, tasks[name])), encoding="utf-8")
            (folder / f"{name}.yaml").write_text(HARNESS_TASK.format(name=name, file=file))
        return tasks

    return write

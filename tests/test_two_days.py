"""A chat template prints today's date: a mask, a resumed run and an evaluation are the same on another day."""

import datetime
import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from tests.data.test_qa_formats import llama_3
from wagle_trainer import WagleConfig, WagleTrainer, WeightAttributionCallback, WeightMask
from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation import evaluate_custom

ROWS = [(f"Who wrote book {n}?", f"Author {n * 7}.") for n in range(4)]


@pytest.fixture
def on(monkeypatch):
    """on(year): chat templates read a clock of that year."""

    def move(year):
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(year, 2, 3)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)

    return move


def messages(rows):
    """A set of conversations that no QAFormat has seen."""
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in rows]
    return Dataset.from_dict({"messages": turns})


@pytest.fixture(scope="module")
def tokenizer():
    return llama_3()


@pytest.fixture
def trainer(make_llama, tokenizer, tmp_path):
    """trainer(sets) -> a WagleTrainer that saves a checkpoint at each of two steps."""

    def make(forget, retain, **options):
        args = WagleConfig(
            str(tmp_path / "out"),
            density=0.1,
            max_steps=2,
            save_steps=1,
            learning_rate=1e-2,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        )
        model = make_llama(vocab_size=len(tokenizer))
        sets = {"forget_dataset": forget, "retain_dataset": retain}
        return WagleTrainer(model, args, **sets, processing_class=tokenizer, **options)

    return make


def test_the_clock_moves(on, tokenizer):
    texts = []
    for year in (2026, 2031):
        on(year)
        texts.append(tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False))
    assert texts[0] != texts[1]


def test_mask_and_resumed_run(on, trainer, tmp_path):
    """Sets of messages: TRL would print the day into each of them."""
    sets = messages(ROWS), messages(ROWS[::-1])
    on(2026)
    first = trainer(*sets)
    first.train()
    on(2031)
    later = trainer(*sets)
    assert later.train_dataset.forget["input_ids"] == first.train_dataset.forget["input_ids"]
    assert later.train_dataset.retain["input_ids"] == first.train_dataset.retain["input_ids"]
    later.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert later.mask == first.mask
    assert all((a == b).all() for a, b in zip(first.model.parameters(), later.model.parameters(), strict=True))
    assert trainer(*sets).compute_mask() == first.mask


def test_mask_of_the_callback(on, make_llama, tokenizer, tmp_path):
    from trl import SFTConfig, SFTTrainer

    masks = []
    for year in (2026, 2031):
        on(year)
        qa = QAFormat.for_tokenizer(tokenizer)
        callback = WeightAttributionCallback(messages(ROWS), messages(ROWS[::-1]), density=0.1, qa_format=qa)
        args = SFTConfig(
            str(tmp_path / "out"),
            max_steps=1,
            save_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        )
        model = make_llama(vocab_size=len(tokenizer))
        SFTTrainer(
            model, args, train_dataset=qa.dataset(questions()), processing_class=tokenizer, callbacks=[callback]
        ).train()
        masks.append(callback.mask)
    assert masks[0] == masks[1]
    assert QAFormat.from_pretrained(tmp_path / "out" / "checkpoint-1", tokenizer).describe() == qa.describe()


def test_a_row_chooses_another_date(trainer, tokenizer):
    rows = messages(ROWS).map(lambda _: {"chat_template_kwargs": {"date_string": "1 Jan 2024"}})
    texts = tokenizer.batch_decode(list(trainer(rows, messages(ROWS)).train_dataset.forget["input_ids"]))
    assert all("Today Date: 1 Jan 2024" in text for text in texts)


def test_evaluation(on, make_llama, tokenizer):
    model = make_llama(vocab_size=len(tokenizer))
    sets = {"forget": list(questions()), "retain": list(messages(ROWS))}
    results = []
    for year in (2026, 2031):
        on(year)
        results.append(evaluate_custom(model, tokenizer, sets, max_new_tokens=3, progress=False))
    assert results[0] == results[1]
    assert results[0]["settings"]["qa_format"]["chat_template_kwargs"] == {"date_string": "10 Apr 2025"}


def questions():
    return Dataset.from_dict({"question": [q for q, _ in ROWS], "answer": [a for _, a in ROWS]})


def test_the_format_is_saved_and_used(trainer, tokenizer, tmp_path, monkeypatch, caplog):
    """Beside model and checkpoints; a mask or a checkpoint of another format is told of."""
    import logging

    qa = QAFormat.for_tokenizer(tokenizer, system_prompt="Be brief.")
    run = trainer(qa.dataset(questions()), qa.dataset(questions()), qa_format=qa)
    run.train()
    run.save_model()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        assert json.loads((folder / "qa_format.json").read_text()) == qa.describe()
        assert QAFormat.for_model(folder, AutoTokenizer.from_pretrained(folder)).system_prompt == "Be brief."
    other = QAFormat.for_tokenizer(tokenizer)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer(qa.dataset(questions()), qa.dataset(questions()), qa_format=other, mask=str(tmp_path / "out"))
    assert "The mask in" in caplog.text
    assert "was made with another format of questions and answers: system_prompt" in caplog.text


def test_commands_save_the_format_beside_mask_and_adapter(make_llama, tokenizer, tmp_path):
    from wagle_trainer.cli import main

    make_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("forget", "retain"):
        questions().to_json(tmp_path / f"{name}.jsonl")
    options = (
        f"--model_name_or_path {tmp_path}/model --forget_file {tmp_path}/forget.jsonl --retain_file {tmp_path}/retain.jsonl "
        "--density 0.1 --max_steps 1 --save_strategy no --use_cpu --report_to none --disable_tqdm true"
    ).split()
    options += ["--system_prompt", "Be brief."]
    assert main(["attribute", *options, "--output_dir", str(tmp_path / "mask")]) == 0
    more = ["--mask_path", str(tmp_path / "mask"), "--save_adapter", "--save_full_model"]
    assert main(["unlearn", *options, *more, "--output_dir", str(tmp_path / "out")]) == 0
    for folder in ("mask", "out", "out/adapter"):
        assert QAFormat.from_pretrained(tmp_path / folder, tokenizer).system_prompt == "Be brief."
    assert WeightMask.from_pretrained(tmp_path / "mask").digest == WeightMask.from_pretrained(tmp_path / "out").digest


def test_a_template_of_ones_own_is_that_of_the_questions(make_llama, tokenizer, tmp_path):
    """--chat_template_path: training and measuring write questions with it."""
    from wagle_trainer.cli import main

    bare = llama_3()
    bare.chat_template = None
    make_llama(vocab_size=len(bare)).save_pretrained(tmp_path / "model")
    bare.save_pretrained(tmp_path / "model")
    (tmp_path / "own.jinja").write_text(tokenizer.chat_template)
    for name in ("forget", "retain"):
        questions().to_json(tmp_path / f"{name}.jsonl")
    options = (
        f"--model_name_or_path {tmp_path}/model --forget_file {tmp_path}/forget.jsonl --retain_file {tmp_path}/retain.jsonl "
        f"--density 0.1 --max_steps 1 --save_strategy no --use_cpu --report_to none --disable_tqdm true "
        f"--chat_template_path {tmp_path}/own.jinja --output_dir {tmp_path}/out"
    ).split()
    assert main(["unlearn", *options]) == 0
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert QAFormat.for_model(tmp_path / "out", saved).style == "chat"

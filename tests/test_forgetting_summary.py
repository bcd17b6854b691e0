"""How likely the answers are before and after, at the end of every training run."""

import logging
from types import SimpleNamespace

import pytest
import torch

from wagle_trainer import WagleTrainer
from wagle_trainer.data.facts import pad_examples
from wagle_trainer.models.log_probs import token_log_probs
from wagle_trainer.trainer_callbacks import ForgettingSummary


@pytest.fixture
def train(make_llama, word_tokenizer, make_set, arguments):
    """train(**changes) -> trainer after training."""

    def run(**changes):
        trainer = WagleTrainer(
            make_llama(),
            arguments(**changes),
            forget_dataset=make_set(8),
            retain_dataset=make_set(10, seed=1),
            processing_class=word_tokenizer,
        )
        trainer.train()
        return trainer

    return run


def known(model, rows):
    batch = pad_examples([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    with torch.no_grad():
        return token_log_probs(model.eval(), batch).mean().exp().mean().item()


def test_both_sets_before_and_after(train, make_llama, capsys):
    trainer = train(learning_rate=0.05)
    for split in ("forget", "retain"):
        rows = list(trainer.train_dataset.splits[split])
        assert trainer.forgetting["before"][split] == pytest.approx(known(make_llama(), rows), rel=1e-4)
        assert trainer.forgetting["after"][split] == pytest.approx(known(trainer.model, rows), rel=1e-4)
    out = capsys.readouterr().out
    assert "How likely the answers are, before -> after: forget answers " in out
    assert f"Next, once it is saved: wagle attack MODEL {trainer.args.output_dir}" in out


def test_only_the_first_rows_are_measured(train):
    trainer = train(summary_rows=2)
    rows = list(trainer.train_dataset.splits["forget"])[:2]
    assert trainer.forgetting["after"]["forget"] == pytest.approx(known(trainer.model, rows), rel=1e-4)


def test_it_can_be_turned_off_and_changes_no_weight(train, capsys):
    with_it, without = train(), train(summary_rows=0)
    assert without.forgetting == {}
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)
    capsys.readouterr()
    train(summary_rows=0)
    assert "How likely" not in capsys.readouterr().out


def test_a_run_that_forgot_nothing_is_warned_of(train, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = train(learning_rate=1e-9)
        assert "Next to nothing was forgotten: raise learning_rate or density" in caplog.text
        assert "The retain answers" not in caplog.text
        trainer._tell_forgetting({"forget": 0.9, "retain": 0.9}, {"forget": 0.1, "retain": 0.5})
    assert "The retain answers became less likely, too: lower learning_rate" in caplog.text


def test_a_resumed_run_knows_no_numbers_of_an_earlier_one():
    told = []
    summary = ForgettingSummary(lambda: {"forget": 0.5}, lambda before, after: told.append(before))
    for step in (0, 2):
        summary.on_train_begin(None, SimpleNamespace(global_step=step), None)
        summary.on_train_end(None, None, None)
    assert told == [{"forget": 0.5}, {}]


def test_a_negative_number_of_rows_is_refused(arguments):
    with pytest.raises(ValueError, match="summary_rows must be 0 or more"):
        arguments(summary_rows=-1)

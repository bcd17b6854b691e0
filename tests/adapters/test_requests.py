"""Three forget requests on the bundled people, and the second one revoked."""

import copy

import pytest
import torch
from peft import PeftModel

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.data import QAFormat, fictional_split, fictional_tokenizer
from wagle_trainer.evaluation import score_answers

QUESTIONS = 10  # of each person; the requests are about the last three of twelve people


@pytest.fixture(scope="module")
def people():
    """(tokenizer, format, rows of the last twelve people)"""
    tokenizer = fictional_tokenizer()
    full = fictional_split("full")
    rows = full.select(range(len(full) - 12 * QUESTIONS, len(full)))
    return tokenizer, QAFormat.for_tokenizer(tokenizer), rows


@pytest.fixture(scope="module")
def base(people, make_taught_llama):
    """A small Llama that knows the twelve by heart."""
    tokenizer, _, rows = people
    return make_taught_llama(tokenizer, rows, 96, 4e-3)


def known(model, people, person):
    """Mean probability of the answers about the last but `person` of the people, 1 to 12."""
    tokenizer, qa, rows = people
    rows = rows.select(range(len(rows) - person * QUESTIONS, len(rows) - (person - 1) * QUESTIONS))
    examples = [qa.encode(row["question"], row["answer"]) for row in rows]
    scores = score_answers(model, examples, ["row"] * QUESTIONS, eos_token_id=tokenizer.eos_token_id, progress=False)
    return sum(torch.tensor(score.mean_log_prob).exp().item() for score in scores) / QUESTIONS


@pytest.mark.slow
def test_revoking_the_second_of_three_requests(base, people, tmp_path):
    tokenizer, qa, rows = people
    assert min(known(base, people, person) for person in range(1, 13)) > 0.9
    taken = None
    for person in (1, 2, 3):
        first = len(rows) - person * QUESTIONS
        mine = list(range(first, first + QUESTIONS))
        trainer = WagleTrainer(
            copy.deepcopy(base),
            WagleConfig(
                str(tmp_path / str(person)),
                density=0.1,
                attribution_exclude_mask=None if taken is None else str(tmp_path / "taken"),
                loss_type="npo",
                learning_rate=5e-3,
                lr_scheduler_type="constant",
                max_steps=30,
                per_device_train_batch_size=10,
                gradient_checkpointing=False,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                save_adapter=True,
            ),
            forget_dataset=qa.dataset(rows.select(mine)),
            retain_dataset=qa.dataset(rows.select([i for i in range(len(rows)) if i not in mine])),
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model()
        taken = trainer.mask if taken is None else trainer.mask | taken
        taken.save_pretrained(tmp_path / "taken")

    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "1", "one")
    for person, name in ((2, "two"), (3, "three")):
        model.load_adapter(tmp_path / str(person), name)
    model.base_model.set_adapter(
        ["one", "two", "three"]
    )  # no rule is needed: later requests spare earlier ones' weights
    assert max(known(model, people, person) for person in (1, 2, 3)) < 0.3
    model.delete_adapter("two")
    assert max(known(model, people, person) for person in (1, 3)) < 0.3
    assert known(model, people, 2) > 0.6

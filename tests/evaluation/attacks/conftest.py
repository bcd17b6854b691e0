"""A small Llama that knows ten invented people, and the same after it was made to forget one of them."""

import copy

import pytest

from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.data import QAFormat, fictional_split, fictional_tokenizer

PEOPLE = 10


@pytest.fixture(scope="session")
def tokenizer():
    return fictional_tokenizer(PEOPLE)


@pytest.fixture(scope="session")
def rows():
    """What was forgotten: the ten questions about the last person."""
    return list(fictional_split("forget10_perturbed", PEOPLE))


@pytest.fixture(scope="session")
def retain_rows():
    return list(fictional_split("retain90", PEOPLE))


@pytest.fixture(scope="session")
def before(tokenizer, make_taught_llama):
    return make_taught_llama(tokenizer, fictional_split("full", PEOPLE), 64, 8e-3)


@pytest.fixture(scope="session")
def after(before, tokenizer, tmp_path_factory):
    """NPO on the weights that WAGLE selects."""
    qa = QAFormat.for_tokenizer(tokenizer)
    trainer = WagleTrainer(
        copy.deepcopy(before),
        WagleConfig(
            str(tmp_path_factory.mktemp("unlearned")),
            density=0.1,
            num_train_epochs=6,
            learning_rate=2e-3,
            per_device_train_batch_size=5,
            attribution_samples=10,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        forget_dataset=qa.dataset(fictional_split("forget10", PEOPLE)),
        retain_dataset=qa.dataset(fictional_split("retain90", PEOPLE)),
        processing_class=tokenizer,
    )
    trainer.train()
    model = copy.deepcopy(before)  # not the trainer's, whose copies would run the forward pass of the original
    model.load_state_dict(trainer.model.state_dict())
    return model

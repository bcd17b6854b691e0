"""A small Llama that knows ten invented people, and the same after it was made to forget one of them."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
def before(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    qa = QAFormat.for_tokenizer(tokenizer)
    examples = [qa.encode(row["question"], row["answer"]) for row in fictional_split("full", PEOPLE)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    length, steps, size = max(len(example["input_ids"]) for example in examples), 160, 25
    ids, labels = (
        torch.tensor([example[key] + [fill] * (length - len(example[key])) for example in examples])
        for key, fill in (("input_ids", 0), ("labels", -100))
    )
    for step in range(steps):
        chosen = torch.randperm(len(ids))[:size]
        model(input_ids=ids[chosen], attention_mask=(ids[chosen] != 0).long(), labels=labels[chosen]).loss.backward()
        optimizer.param_groups[0]["lr"] = 8e-3 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


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

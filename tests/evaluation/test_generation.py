import logging
import random

import pytest
import torch
from datasets import Dataset
from transformers.utils import logging as transformers_logging

from wagle_trainer.evaluation import generate_greedy


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(0)
    return [[rng.randrange(3, 40) for _ in range(length)] for length in (3, 11, 1, 6, 2, 8, 5)]


def one_by_one(model, tokenizer, prompts, length) -> list[str]:
    texts = []
    for prompt in prompts:
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=length, pad_token_id=0)
        texts.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_equals_one_unpadded_prompt_at_a_time(model, tokenizer, prompts, batch_size):
    # A token that some answers contain ends them, so that rows of one batch stop at different steps.
    free = [text.split() for text in one_by_one(model, tokenizer, prompts, 12)]
    stop = tokenizer.convert_tokens_to_ids(free[0][3])
    model.generation_config.eos_token_id = [1, stop]
    expected = one_by_one(model, tokenizer, prompts, 12)
    expected = [text.removesuffix(tokenizer.decode(stop)).strip() for text in expected]
    assert len({len(text.split()) for text in expected}) > 1
    result = generate_greedy(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size, progress=False)
    assert result == expected


def test_an_ordinary_pad_token_stays_out_of_the_text(llama, tokenizer, prompts):
    expected = generate_greedy(llama, tokenizer, prompts, max_new_tokens=8, progress=False)
    stop = tokenizer.convert_tokens_to_ids(expected[0].split()[2])
    llama.generation_config.eos_token_id = stop
    expected = generate_greedy(llama, tokenizer, prompts, max_new_tokens=8, progress=False)
    tokenizer.pad_token = "w7"
    try:
        assert generate_greedy(llama, tokenizer, prompts, max_new_tokens=8, progress=False) == expected
        tokenizer.pad_token = None
        assert generate_greedy(llama, tokenizer, prompts, max_new_tokens=8, progress=False) == expected
    finally:
        tokenizer.pad_token = "<pad>"


def test_no_warnings_and_state_left_as_found(llama, tokenizer, prompts, caplog, recwarn):
    expected = generate_greedy(llama, tokenizer, prompts, max_new_tokens=5, progress=False)
    # what chat models ship with
    llama.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, max_length=64)
    settings = llama.generation_config.to_dict()
    tokenizer.padding_side = "right"
    llama.train()
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            result = generate_greedy(llama, tokenizer, prompts, max_new_tokens=5, progress=False)
    finally:
        transformers_logging.disable_propagation()
    assert result == expected
    assert [record.message for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn] == []
    assert tokenizer.padding_side == "right"
    assert llama.training
    assert llama.generation_config.to_dict() == settings


def test_a_model_in_the_hands_of_sft_trainer(llama, tokenizer, prompts, tmp_path):
    from trl import SFTConfig, SFTTrainer

    expected = generate_greedy(llama, tokenizer, prompts, max_new_tokens=6, progress=False)
    trainer = SFTTrainer(
        llama,
        args=SFTConfig(str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=Dataset.from_list([{"prompt": "w1 w2", "completion": " w3"}] * 2),
        processing_class=tokenizer,
    )
    patched = trainer.model.train()
    patched.gradient_checkpointing_enable()
    assert patched.model.layers[0].gradient_checkpointing
    assert generate_greedy(patched, tokenizer, prompts, max_new_tokens=6, progress=False) == expected


def test_a_peft_model_and_its_own_max_length(llama, tokenizer, prompts):
    from peft import LoraConfig, get_peft_model

    expected = generate_greedy(llama, tokenizer, prompts, max_new_tokens=6, progress=False)
    llama.generation_config.max_length = 64
    wrapped = get_peft_model(llama, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))  # starts as a no-op
    assert generate_greedy(wrapped, tokenizer, prompts, max_new_tokens=6, progress=False) == expected
    assert wrapped.generation_config.max_length == llama.generation_config.max_length == 64

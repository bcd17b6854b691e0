import logging
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import chisquare
from transformers.utils import logging as transformers_logging

from wagle_trainer.evaluation import generate_greedy, generate_samples


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


def test_a_model_that_reads_padding_as_text_gets_none(llama, tokenizer, prompts):
    """Batches of equal length: answers are those of one prompt at a time, whatever the batch size."""
    inner = llama.model.forward
    widths = []

    def recurrent(*args, attention_mask=None, input_ids=None, **kwargs):  # as RWKV, it does not look at the mask
        if input_ids is not None and input_ids.shape[1] > 1:
            widths.append(len(input_ids))
        return inner(*args, input_ids=input_ids, attention_mask=None, **kwargs)

    llama.model.forward = recurrent
    expected = [generate_greedy(llama, tokenizer, [prompt], max_new_tokens=6, progress=False)[0] for prompt in prompts]
    same = [*prompts, prompts[0]]
    widths.clear()
    found = generate_greedy(llama, tokenizer, same, max_new_tokens=6, batch_size=8, progress=False)
    assert found == [*expected, expected[0]]
    assert max(widths) > 1, "those of equal length share a batch"


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


def test_an_answer_ends_before_the_first_of_the_marks(llama, tokenizer, prompts, monkeypatch):
    """A mark of white space counts at the very beginning, too: MUSE and OpenUnlearning cut before they strip."""
    said = ["w1 w2\n\nQuestion: w3", " w4\nQuestion w5", "w6 Question: w7\n\nw8", "\n\nw9", "w1\nw2", "", "w3 "]
    left = iter(said)
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_, **__: next(left))
    options = {"max_new_tokens": 2, "batch_size": 1, "progress": False}
    same = [[5]] * len(said)  # batches in the order of the prompts
    ends = ("\n\n", "\nQuestion", "Question:")
    found = generate_greedy(llama, tokenizer, same, ends=ends, **options)
    assert found == ["w1 w2", "w4", "w6", "", "w1\nw2", "", "w3"]
    left = iter(said)
    assert generate_greedy(llama, tokenizer, same, **options) == [text.strip() for text in said]


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


def sample(model, tokenizer, prompts, **options):
    options = {"num_samples": 3, "max_new_tokens": 6, "progress": False} | options
    return generate_samples(model, tokenizer, prompts, **options)


def test_samples_are_seeded_and_use_up_no_random_numbers(model, tokenizer, prompts):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = sample(model, tokenizer, prompts, seed=1, batch_size=4)
    assert torch.equal(torch.rand(1), expected)
    assert [len(texts) for texts in first] == [3] * len(prompts)
    assert sample(model, tokenizer, prompts, seed=1, batch_size=4) == first
    assert sample(model, tokenizer, prompts, seed=2, batch_size=4) != first
    assert any(len(set(texts)) > 1 for texts in first)


def test_samples_that_leave_no_choice_are_the_greedy_answers(llama, tokenizer, prompts):
    greedy = generate_greedy(llama, tokenizer, prompts, max_new_tokens=6, progress=False)
    for options in ({"top_p": 1e-6}, {"temperature": 1e-6}):
        assert sample(llama, tokenizer, prompts, **options) == [[text] * 3 for text in greedy]


def test_samples_follow_the_model(llama, tokenizer):
    """The first token of many samples, against the probabilities at temperature 2; no token is cut off."""
    prompt, draws = [5, 9, 7], 3000
    with torch.no_grad():
        expected = draws * (llama(torch.tensor([prompt])).logits[0, -1].double() / 2).softmax(-1).numpy()
    options = {"num_samples": draws, "max_new_tokens": 1, "temperature": 2.0, "batch_size": 1000, "seed": 0}
    [texts] = sample(llama, tokenizer, [prompt], **options)
    # special tokens leave no text
    observed = [0, 0, texts.count(""), *(texts.count(word) for word in tokenizer.convert_ids_to_tokens(range(3, 40)))]
    assert sum(observed) == draws
    rare = expected < 5  # a test for what is common, and for the rest together
    rare[:3] = True
    observed, expected = ([*values[~rare], values[rare].sum()] for values in (np.array(observed), expected))
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_sampling_options_out_of_range(llama, tokenizer, prompts, options):
    with pytest.raises(ValueError, match="num_samples must be|temperature > 0 and top_p in"):
        sample(llama, tokenizer, prompts, **options)


@pytest.mark.parametrize("masked", [None, 7])
def test_rows_that_have_ended_are_no_longer_computed(llama, tokenizer, prompts, monkeypatch, masked):
    """The texts are those of whole batches, and of one prompt at a time where no token is masked."""
    llama.generation_config.eos_token_id = 1
    free = [set(text.split()[:16]) for text in one_by_one(llama, tokenizer, prompts, 40)]
    common = {word: sum(word in words for words in free) for word in set.union(*free)}
    stop = min(word for word, rows in common.items() if 0 < rows < len(prompts))
    llama.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(stop)]
    sizes = []
    original = type(llama).forward

    def counting(self, *args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(llama), "forward", counting)
    options = {"max_new_tokens": 40, "batch_size": 8, "masked_token": masked, "progress": False}
    found = generate_greedy(llama, tokenizer, prompts, **options)
    computed = sum(sizes)
    assert min(sizes) < len(prompts)
    sizes.clear()
    monkeypatch.setattr("wagle_trainer.evaluation.generation.can_shrink", lambda _: False)
    assert generate_greedy(llama, tokenizer, prompts, **options) == found
    assert set(sizes) == {len(prompts)}
    assert computed < sum(sizes)


def test_which_models_can_leave_rows_out(llama):
    from wagle_trainer.evaluation.shrinking_batches import can_shrink

    assert can_shrink(llama)
    llama.generation_config.min_new_tokens = 3
    assert not can_shrink(llama)
    llama.generation_config.min_new_tokens = None
    llama.config.layer_types = ["full_attention", "sliding_attention"]
    llama.config.sliding_window = 4
    assert not can_shrink(llama)

"""Answers behind cached keys and values of their prompt have the scores that they have one at a time, without a cache."""

import functools
import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

from wagle_trainer.evaluation import (
    answer_scores,
    generate_greedy,
    generate_samples,
    generation_starts,
    prompt_states,
    score_answers,
    shared_prompts,
)
from wagle_trainer.evaluation.answer_scores import greedy_beginnings
from wagle_trainer.evaluation.answer_trees import AnswerTree, pack
from wagle_trainer.evaluation.prompt_states import common_prompt
from wagle_trainer.evaluation.shared_prompts import attention_window, can_branch, can_share, shared_batches

# Families of `tests/families` -> how answers share: "tree" in one row, "cache" behind states of the prompt, or not.
# Prompts are longer than the windows of 8 tokens.
SHARE = {
    "llama": "tree",  # two of four heads have keys and values
    "llama_tied": "tree",
    "gpt2": "tree",  # learned positions
    "opt": "tree",
    "mixtral": "tree",
    "bloom": "cache",  # ALiBi, of the mask
    "falcon_alibi": "cache",
    "mpt": None,  # ALiBi counts the padding between a prompt and its answers
    "gpt_neo": None,  # local layers
    "gemma3_text": None,  # sliding windows
    "mistral": None,
    "mamba": None,
    "rwkv": None,
    "qwen3_5_text": None,  # linear attention
}


@pytest.fixture(scope="module")
def build(tiny_models):
    return tiny_models.build


@pytest.fixture(scope="module")
def tiny_models():
    """The tiny models of `tests/families`; tests are no package."""
    spec = importlib.util.spec_from_file_location(
        "tiny_models", Path(__file__).parents[1] / "families" / "tiny_models.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def always(monkeypatch):
    """Share whatever the tokens that are saved."""
    monkeypatch.setattr(prompt_states, "MIN_SAVED", 0)


def make_examples(seed: int = 0, questions: int = 5) -> list[dict[str, list[int]]]:
    """Questions of 6 to 20 tokens that begin alike, each with answers of 1 to 9 tokens, not in order."""
    rng = random.Random(seed)
    draw = lambda low, high: [rng.randrange(5, 60) for _ in range(rng.randrange(low, high))]  # noqa: E731
    examples, prefix = [], draw(4, 5)
    for _ in range(questions):
        prompt = [*prefix, *draw(2, 17)]
        for _ in range(rng.randrange(1, 5)):
            answer = draw(1, 10)
            examples.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    rng.shuffle(examples)
    return examples


def one_at_a_time(model, example) -> list[float]:
    """Log-probabilities of an answer's tokens, of the example alone and without a cache."""
    ids, start = torch.tensor([example["input_ids"]]), example["labels"].count(-100)
    with torch.no_grad():
        log_probs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return [log_probs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]


def score(model, examples, **options):
    options = {"eos_token_id": None, "tokens": True, "progress": False} | options
    return score_answers(model, examples, [f"row {i}" for i in range(len(examples))], **options)


def used(monkeypatch) -> list[str]:
    """Names of the ways in which batches are scored from now on."""
    ways = []
    for way, name in (("tree", "tree_log_probs"), ("cache", "shared_log_probs")):
        original = getattr(answer_scores, name)

        def run(model, rows, way=way, original=original, **options):
            ways.append(way)
            return original(model, rows, **options)

        monkeypatch.setattr(answer_scores, name, run)
    return ways


@pytest.mark.parametrize("family", SHARE)
def test_scores_are_those_of_one_answer_at_a_time(family, build, always, monkeypatch):
    model, examples, ways = build(family), make_examples(), used(monkeypatch)
    expected = [one_at_a_time(model, example) for example in examples]
    for result, wanted in zip(score(model, examples, batch_size=6), expected, strict=True):
        assert result.token_log_probs == pytest.approx(wanted, abs=2e-4)
    assert set(ways) == ({SHARE[family]} if SHARE[family] else set())
    if SHARE[family] == "tree":  # the other way is right, too
        monkeypatch.setattr(answer_scores, "can_branch", lambda _: False)
        for result, wanted in zip(score(model, examples, batch_size=6), expected, strict=True):
            assert result.token_log_probs == pytest.approx(wanted, abs=2e-4)
        assert set(ways) == {"tree", "cache"}


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gemma2", "exaone4", "gpt_oss", "llama4_text"])
def test_sliding_windows_share_what_is_shorter(family, tiny_models, always, monkeypatch):
    window = {"attention_chunk_size": 40} if family == "llama4_text" else {"sliding_window": 40}
    name, settings = tiny_models.CAUSAL[family]
    monkeypatch.setitem(tiny_models.CAUSAL, family, (name, settings | window))
    model, ways = tiny_models.build(family), used(monkeypatch)
    assert attention_window(model) == 40
    examples = make_examples(questions=4)
    rng = random.Random(0)
    prompt = [rng.randrange(5, 60) for _ in range(38)]
    answers = [[rng.randrange(5, 60) for _ in range(6)] for _ in range(3)]
    long = [{"input_ids": prompt + answer, "labels": [-100] * 38 + answer} for answer in answers]
    for result, example in zip(score(model, long, batch_size=6), long, strict=True):
        assert result.token_log_probs == pytest.approx(one_at_a_time(model, example), abs=2e-4)
    assert not ways
    for result, example in zip(score(model, examples, batch_size=6), examples, strict=True):
        assert result.token_log_probs == pytest.approx(one_at_a_time(model, example), abs=2e-4)
    assert ways


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [2, 5, 64])
@pytest.mark.parametrize("way", ["tree", "cache"])
def test_equals_answers_without_shared_prompts(llama, always, monkeypatch, seed, batch_size, way):
    llama.resize_token_embeddings(60)
    ways = used(monkeypatch)
    monkeypatch.setattr(answer_scores, "can_branch", lambda _: way == "tree")
    examples = make_examples(seed, questions=7)
    options = {"batch_size": batch_size, "vocabulary": [i % 2 == 0 for i in range(len(examples))]}
    found = score(llama, examples, **options)
    assert set(ways) == {way}
    ways.clear()
    for name in ("can_branch", "can_share"):
        monkeypatch.setattr(answer_scores, name, lambda _: False)
    plain = score(llama, examples, **options)
    assert not ways
    for one, other, wanted in zip(found, plain, options["vocabulary"], strict=True):
        assert one.mean_log_prob == pytest.approx(other.mean_log_prob, abs=1e-5)
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-5)
        assert (one.is_top1, one.num_tokens, one.num_greedy) == (other.is_top1, other.num_tokens, other.num_greedy)
        assert (one.vocabulary_std is not None) == wanted
        if wanted:
            assert one.vocabulary_mean == pytest.approx(other.vocabulary_mean, abs=1e-5)
            assert one.vocabulary_std == pytest.approx(other.vocabulary_std, abs=1e-5)


def record_shapes(model, monkeypatch) -> list[tuple[int, int]]:
    """(rows, length) of each forward pass from now on."""
    shapes = []
    original = type(model).forward

    @functools.wraps(original)  # its arguments tell what a model can
    def forward(self, *args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    return shapes


def test_prompts_are_computed_once(llama, always, monkeypatch):
    """Fewer tokens than without, by those of the prompts."""
    llama.resize_token_embeddings(60)
    shapes = record_shapes(llama, monkeypatch)
    prompt = list(range(5, 45))
    examples = [{"input_ids": [*prompt, 50 + i, 8], "labels": [-100] * 40 + [50 + i, 8]} for i in range(8)]
    score(llama, examples)  # also probes
    shapes.clear()
    score(llama, examples)
    assert sum(rows * length for rows, length in shapes) == 40 + 8  # the last tokens predict nothing
    monkeypatch.setattr(prompt_states, "MIN_SAVED", 512)  # what is saved here is less
    shapes.clear()
    score(llama, examples)
    assert sum(rows * length for rows, length in shapes) == 8 * 42


@pytest.mark.parametrize("trees", [True, False])
def test_batches_hold_whole_questions_and_few_states(monkeypatch, trees):
    long = [{"input_ids": [q] * 300 + [a], "labels": [-100] * 300 + [a]} for q in (5, 6, 7, 8) for a in (1, 2, 3)]
    single = {"input_ids": [1], "labels": [1]}  # nothing comes before it
    assert shared_batches([single, *long], 32, trees=trees) == ([list(range(1, 13))], [0])
    monkeypatch.setattr(shared_prompts, "MAX_CACHED", 700 if trees else 2000)
    batches, rest = shared_batches([single, *long], 32, trees=trees)
    assert [len(batch) for batch in batches] == [6, 6] and rest == [0]
    monkeypatch.setattr(shared_prompts, "MAX_CACHED", 200)
    assert shared_batches([single, *long], 32, trees=trees) == ([], list(range(13)))
    monkeypatch.undo()
    batches, _ = shared_batches(long, 2, trees=trees)
    assert all(len(batch) <= 2 for batch in batches)


def test_answers_share_what_they_begin_with():
    tree = AnswerTree()
    assert [tree.add(tokens) for tokens in ([7, 8, 9], [7, 8, 8, 5], [7, 8], [6])] == [
        [0, 1, 2],
        [0, 1, 3, 4],
        [0, 1],
        [5],
    ]
    assert (tree.tokens, tree.depths) == ([7, 8, 9, 8, 5, 6], [0, 1, 2, 2, 3, 0])
    seen = [row.nonzero().flatten().tolist() for row in tree.ancestors()]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5]]


def test_small_trees_share_a_row():
    assert pack([5]) == [(0, 0)]
    assert pack([2, 7, 3, 4, 7]) == [(3, 0), (0, 0), (2, 4), (2, 0), (1, 0)]
    rng = random.Random(0)
    sizes = [rng.randrange(1, 50) for _ in range(40)]
    cells = [(row, column + i) for size, (row, column) in zip(sizes, pack(sizes), strict=True) for i in range(size)]
    assert len(set(cells)) == len(cells) == sum(sizes) and max(column for _, column in cells) < max(sizes)
    assert 1.05 * sum(sizes) > (1 + max(row for row, _ in cells)) * max(sizes) - max(sizes)


def test_common_prompt_leaves_two_tokens():
    assert common_prompt([[1, 2, 3, 4], [1, 2, 3, 5]]) == [1, 2]
    assert common_prompt([[1, 2, 3, 4, 5, 6], [1, 2, 7, 4, 5, 6]]) == [1, 2]
    assert common_prompt([[1], [1, 2, 3]]) == common_prompt([]) == []


def test_a_forward_pass_without_a_cache_runs_the_plain_way(llama, always):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = llama

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask)

    llama.resize_token_embeddings(60)
    examples = make_examples()
    bare = Bare()
    assert not can_share(bare)
    for one, other in zip(score(bare, examples), score(llama, examples), strict=True):
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_attention_that_takes_no_mask_of_pairs(llama, always, monkeypatch, attention):
    llama.resize_token_embeddings(60)
    ways, examples = used(monkeypatch), make_examples()
    expected = [one_at_a_time(llama, example) for example in examples]
    if attention == "eager":
        llama.set_attn_implementation(attention)
    llama.config._attn_implementation = attention
    assert can_branch(llama) == (attention != "flex_attention")
    llama.config._attn_implementation = "eager" if attention == "eager" else "sdpa"
    if attention != "flex_attention":
        for result, wanted in zip(score(llama, examples), expected, strict=True):
            assert result.token_log_probs == pytest.approx(wanted, abs=1e-5)
        assert set(ways) == {"tree"}


def test_an_adapter_shares_prompts_as_its_base_does(llama, tokenizer, prompts, always):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    llama.resize_token_embeddings(60)
    examples = make_examples()
    expected = score(llama, examples), texts_of(llama, tokenizer, prompts)
    lora = get_peft_model(llama, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))  # starts as a no-op
    assert can_branch(lora) and can_share(lora) and generation_starts.can_resume(lora, 0)
    for one, other in zip(score(lora, examples), expected[0], strict=True):
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-5)
    assert texts_of(lora, tokenizer, prompts) == expected[1]
    tuned = get_peft_model(lora.unload(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert not can_branch(tuned) and not can_share(tuned)  # it would put its tokens before the answers, too


def test_a_cache_that_changes_answers_is_found_out(llama, always):
    """The probe compares both ways: here, positions behind a cache are off by one."""
    inner = llama.model.forward

    def shifted(*args, position_ids=None, **kwargs):
        if position_ids is not None and int(position_ids.min()) > 0:
            position_ids = position_ids + 1
        return inner(*args, position_ids=position_ids, **kwargs)

    llama.model.forward = shifted
    assert not can_share(llama) and not can_branch(llama)


def texts_of(model, tokenizer, prompts, **options):
    options = {"max_new_tokens": 20, "batch_size": 4, "progress": False} | options
    return generate_greedy(model, tokenizer, prompts, **options)


PREFIX = [3, 7, 11, 5, 9, 14]


@pytest.fixture
def prompts():
    rng = random.Random(3)
    return [[*PREFIX, *(rng.randrange(3, 40) for _ in range(length))] for length in (3, 9, 4, 6, 2, 8, 5)]


def test_greedy_answers_behind_a_common_beginning(model, tokenizer, prompts, always, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("wagle_trainer.evaluation.generation.GenerationStarts.__init__", plain_start)
        expected = texts_of(model, tokenizer, prompts, batch_size=8)
    computed = record_shapes(model, monkeypatch)
    assert texts_of(model, tokenizer, prompts, batch_size=8) == expected
    computed.clear()
    assert texts_of(model, tokenizer, prompts, batch_size=8) == expected
    assert computed[0] == (1, len(PREFIX)) and computed[1] == (7, 9)


def plain_start(self, model, prompts, filler, masked_token):
    self.model, self.filler, self.masked_token = model, filler, masked_token
    self.shares, self.common, self.prefix, self.shortest = False, None, [], 0


def test_samples_run_each_prompt_once(model, tokenizer, prompts, always, monkeypatch):
    options = {"num_samples": 4, "max_new_tokens": 6, "batch_size": 12, "progress": False}
    found = generate_samples(model, tokenizer, prompts, **options)
    assert generation_starts.can_resume(model, 0)
    monkeypatch.setattr("wagle_trainer.evaluation.generation.GenerationStarts.__init__", plain_start)
    assert generate_samples(model, tokenizer, prompts, **options) == found
    assert len({text for texts in found for text in texts}) > len(prompts)


def test_known_beginnings_change_no_text(model, tokenizer, prompts):
    """Whatever is known of each answer: nothing, some tokens, all of them, or the end-of-sequence token."""
    free = texts_of(model, tokenizer, prompts)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(free[0].split()[5])]
    expected = texts_of(model, tokenizer, prompts)
    assert len({len(text.split()) for text in expected}) > 1
    rng = random.Random(1)
    tokens = [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0)[0, len(prompt) :]
        for prompt in prompts
    ]
    for _ in range(4):
        known = {
            tuple(prompt): answer[: rng.randrange(len(answer) + 1)].tolist()
            for prompt, answer in zip(prompts, tokens, strict=True)
        }
        assert texts_of(model, tokenizer, prompts, known=known) == expected
    steps = []
    original = type(model).generate
    model.generate = lambda **kwargs: steps.append(kwargs) or original(model, **kwargs)
    everything = {tuple(prompt): answer.tolist() for prompt, answer in zip(prompts, tokens, strict=True)}
    assert texts_of(model, tokenizer, prompts, known=everything) == expected and not steps


def test_scored_answers_tell_how_greedy_answers_begin(model, tokenizer, prompts):
    greedy = [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, pad_token_id=0)[0, len(prompt) :]
        for prompt in prompts
    ]
    examples, wanted = [], {}
    for index, (prompt, answer) in enumerate(zip(prompts, greedy, strict=True)):
        ids = answer.tolist()
        for cut in {index % 4, (index + 2) % 4}:  # the answer is another one from there on
            given = [*ids[:cut], 2 + (ids[cut] - 1) % 37, 4]
            examples.append({"input_ids": [*prompt, *given], "labels": [-100] * len(prompt) + given})
        longest = max(index % 4, (index + 2) % 4)
        wanted |= {tuple(prompt): ids[:longest]} if longest else {}
    found = greedy_beginnings(examples, score(model, examples))
    assert found == wanted
    assert texts_of(model, tokenizer, prompts, known=found) == texts_of(model, tokenizer, prompts)


def test_a_repetition_penalty_makes_greedy_answers_others(llama, tokenizer, prompts):
    """Then what is the most likely token says nothing of them."""
    llama.generation_config.repetition_penalty = 1.5
    expected = texts_of(llama, tokenizer, prompts)
    wrong = {tuple(prompt): [20, 21, 22] for prompt in prompts}
    assert texts_of(llama, tokenizer, prompts, known=wrong) == expected


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_prompts_enter_a_running_batch(model, tokenizer, prompts, always, monkeypatch, batch_size):
    """Texts are those of batches of their own, whatever the answers' lengths; the batch stays full."""
    monkeypatch.setattr("wagle_trainer.evaluation.decoding_rows.MOST_ROWS", 0)
    more = [[*PREFIX, 3 + index, *prompt[6:]] for index in range(3) for prompt in prompts]
    free = texts_of(model, tokenizer, more, max_new_tokens=40)
    # Some answers end early and at different steps, others at the limit.
    early = [set(text.split()[:30]) for text in free]
    counts = {word: sum(word in words for words in early) for word in sorted(set.union(*early))}
    stop = min(counts, key=lambda word: abs(counts[word] - len(more) / 2))
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(stop)]
    with monkeypatch.context() as patch:
        patch.setattr("wagle_trainer.evaluation.generation.GenerationStarts.__init__", plain_start)
        expected = texts_of(model, tokenizer, more, max_new_tokens=40, batch_size=batch_size)
    assert len({len(text.split()) for text in expected}) > 3
    shapes = record_shapes(model, monkeypatch)
    assert texts_of(model, tokenizer, more, max_new_tokens=40, batch_size=batch_size) == expected
    steps = [rows for rows, length in shapes if length == 1]
    assert max(steps) == batch_size
    known = {tuple(prompt): [] for prompt in more[:3]}
    assert texts_of(model, tokenizer, more, max_new_tokens=40, batch_size=batch_size, known=known) == expected

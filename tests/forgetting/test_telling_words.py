"""Only what tells answers apart counts."""

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.forgetting.examples import encode
from wagle_trainer.forgetting.telling_words import only_telling_words, only_words, telling_words

CAPITALS = {"France": "Paris", "Kenya": "Nairobi", "Peru": "Lima", "Algeria": "Algiers"}


@pytest.fixture
def qa(people):
    return QAFormat.for_tokenizer(people.tokenizer)


def capitals(qa, answer="The capital of {} is {}."):
    rows = [
        {"question": f"What is the capital of {country}?", "answer": answer.format(country, capital)}
        for country, capital in CAPITALS.items()
    ]
    return encode(qa, rows, "forget")


def test_words_of_the_question_and_of_the_form_do_not_count(qa):
    assert telling_words(capitals(qa)) == [{"paris"}, {"nairobi"}, {"lima"}, {"algiers"}]
    assert telling_words(capitals(qa, "By the way, {1} is it.")) == [{"paris"}, {"nairobi"}, {"lima"}, {"algiers"}]


def test_short_answers_count_as_they_are(qa):
    assert telling_words(capitals(qa, "{1}")) == [{"paris"}, {"nairobi"}, {"lima"}, {"algiers"}]


def test_few_answers_may_share_what_is_asked(qa):
    rows = [{"question": f"What colour is {name}?", "answer": "It is blue."} for name in ("it", "this", "that")]
    assert telling_words(encode(qa, rows, "forget")) == [{"blue"}, {"it", "blue"}, {"it", "blue"}]


def test_all_words_count_where_none_would_be_left(qa):
    rows = [{"question": f"Does {name} sing or dance?", "answer": "Sing"} for name in "abcd"]
    assert telling_words(encode(qa, rows, "forget")) == [{"sing"}] * 4


def test_a_name_that_all_answers_share_counts_if_no_kept_answer_has_it(qa):
    """Of one person: what tells her apart is her name, and not "name", which answers about others have, too."""
    rows = [{"question": "Who was born in May?", "answer": "The name is Ida Holm."}]
    rows += [
        {"question": f"What is the {what} of Ida Holm?", "answer": f"The {what} of Ida Holm is {what}y."}
        for what in "abcde"
    ]
    others = [{"question": "Who was born in June?", "answer": "The name is Per Lund."}]
    examples, kept = encode(qa, rows, "forget"), encode(qa, others, "retain")
    assert telling_words(examples)[0] == {"name"}
    assert telling_words(examples, kept) == [{"name", "ida", "holm"}, {"ay"}, {"by"}, {"cy"}, {"dy"}, {"ey"}]


@pytest.fixture
def letters():
    """A byte-level tokenizer that knows no capital as one token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is the capital of? The capital of is."] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def test_target_tokens_are_those_of_the_words(letters):
    """All tokens of a word that counts, none of another, and the question is still there."""
    examples = capitals(QAFormat.for_tokenizer(letters))
    for example, counted in zip(examples, only_telling_words(examples, letters), strict=True):
        kept = [label for label in counted.encoded["labels"] if label != -100]
        assert letters.decode(kept).strip() == example.answer.split()[-1].removesuffix(".")
        assert len(kept) > 2
        assert counted.encoded["input_ids"] == example.encoded["input_ids"]


def test_an_example_without_any_of_the_words_stays(people, qa):
    example = capitals(qa)[0]
    assert only_words(example, {"elsewhere"}, people.tokenizer) is example

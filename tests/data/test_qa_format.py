import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wagle_trainer.data.qa_format import QAFormat

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The prompt alone ends in an empty thought that the whole conversation does not have.
THINKING_TEMPLATE = CHAT_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think></think>{% endif")
MERGES = ["e r", "er :", "Ġ a", "l l", "o n"]


def make_tokenizer(chat_template: str | None = None, merges: list[str] = MERGES, ends: str = "$A"):
    """Byte-level BPE with a few merges; `ends` is the template that places `<s>` and `</s>` around every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<pad>", "<s>", "</s>", *alphabet, *(merge.replace(" ", "") for merge in merges)]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[tuple(merge.split()) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=ends, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )


def rows() -> list[tuple[str, str]]:
    return [
        ("Who wrote it?", "Nobody at all."),
        ("Qu'est-ce que c'est ?", "été — «oui» 🙂"),
        ("Two\nlines?", "  spaced  \n"),
        ("Ends already?", "yes</s>"),
        ("Long? " * 30, "a" * 200),
    ]


def trl_rows(qa: QAFormat, model, tmp_path) -> list[dict]:
    """What a real SFTTrainer makes of the examples."""
    from trl import SFTConfig, SFTTrainer

    questions, answers = zip(*rows(), strict=True)
    trainer = SFTTrainer(
        model,
        args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None),
        train_dataset=qa.dataset(Dataset.from_dict({"question": questions, "answer": answers})),
        processing_class=qa.tokenizer,
    )
    return trainer.train_dataset.select_columns(["input_ids", "labels"]).to_list()


FORMATS = {
    "plain": lambda: QAFormat.for_tokenizer(make_tokenizer()),
    "plain with a template at hand": lambda: QAFormat.for_tokenizer(make_tokenizer(CHAT_TEMPLATE), "plain"),
    "plain with BOS": lambda: QAFormat.for_tokenizer(make_tokenizer(ends="<s> $A")),
    "plain with EOS after every text": lambda: QAFormat.for_tokenizer(make_tokenizer(ends="<s> $A </s>")),
    "plain with tokens across the boundary": lambda: QAFormat.for_tokenizer(make_tokenizer(merges=["Ġ N", ": ĠN"])),
    "chat": lambda: QAFormat.for_tokenizer(make_tokenizer(CHAT_TEMPLATE)),
    "chat with BOS": lambda: QAFormat.for_tokenizer(make_tokenizer(CHAT_TEMPLATE, ends="<s> $A")),
    "chat with a system prompt": lambda: QAFormat.for_tokenizer(
        make_tokenizer(CHAT_TEMPLATE), system_prompt="Answer shortly."
    ),
    "chat whose prompt is no prefix": lambda: QAFormat.for_tokenizer(make_tokenizer(THINKING_TEMPLATE)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_encode_equals_trl(name, make_llama, tmp_path):
    qa = FORMATS[name]()
    expected = trl_rows(qa, make_llama(vocab_size=300), tmp_path)
    assert [qa.encode(*row) for row in rows()] == expected
    assert all(row["labels"][0] == -100 and row["labels"][-1] == qa.tokenizer.eos_token_id for row in expected)


@pytest.mark.parametrize("name", [name for name in FORMATS if "boundary" not in name and "no prefix" not in name])
def test_generation_starts_where_the_labels_do(name):
    qa = FORMATS[name]()
    for question, answer in rows():
        encoded = qa.encode(question, answer)
        prompt = qa.prompt_ids(question)
        assert prompt == encoded["input_ids"][: len(prompt)]
        assert encoded["labels"] == [-100] * len(prompt) + encoded["input_ids"][len(prompt) :]


def test_completion_starts_where_the_tokens_part():
    qa = FORMATS["plain with tokens across the boundary"]()
    encoded = qa.encode("Who?", "Nobody.")
    start = encoded["labels"].count(-100)
    assert start == len(qa.prompt_ids("Who?")) - 1
    assert qa.tokenizer.decode(encoded["input_ids"][start:]) == ": Nobody.</s>"


def test_plain_text():
    qa = QAFormat.for_tokenizer(make_tokenizer())
    assert qa.style == "plain"
    assert qa.example("Who?", "Me.") == {"prompt": "Question: Who?\nAnswer:", "completion": " Me."}
    assert qa.tokenizer.decode(qa.encode("Who?", "Me.")["input_ids"]) == "Question: Who?\nAnswer: Me.</s>"


def test_chat_messages():
    qa = QAFormat.for_tokenizer(make_tokenizer(CHAT_TEMPLATE), system_prompt="Be brief.")
    assert qa.style == "chat"
    assert qa.example("Who?", "Me.") == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
        "completion": [{"role": "assistant", "content": "Me."}],
    }
    text = qa.tokenizer.decode(qa.prompt_ids("Who?"))
    assert text == "<|system|>Be brief.</s><|user|>Who?</s><|assistant|>"


@settings(max_examples=60, deadline=None)
@given(question=st.text(max_size=30), answer=st.text(max_size=30))
def test_labels_hold_the_answer_and_the_end(question, answer):
    qa = QAFormat.for_tokenizer(make_tokenizer(merges=[]))
    labels = [label for label in qa.encode(question, answer)["labels"] if label != -100]
    expected = f" {answer}" if answer.endswith("</s>") else f" {answer}</s>"
    assert qa.tokenizer.decode(labels) == expected


def test_dataset_keeps_order_and_drops_other_columns():
    qa = QAFormat.for_tokenizer(make_tokenizer())
    source = Dataset.from_dict({"q": ["A?", "B?"], "a": ["1", "2"], "option1": ["x", "y"]})
    dataset = qa.dataset(source, question="q", answer="a")
    assert dataset.column_names == ["prompt", "completion"]
    assert dataset.to_list() == [qa.example("A?", "1"), qa.example("B?", "2")]


def test_dataset_names_columns_needed_and_found():
    qa = QAFormat.for_tokenizer(make_tokenizer())
    source = Dataset.from_dict({"question": ["A?"], "reply": ["1"]})
    with pytest.raises(ValueError, match=r"no column 'answer'. Needed: question, answer. Found: question, reply."):
        qa.dataset(source)


@pytest.mark.parametrize(
    ("value", "message"),
    [(["1", "2"], "row 0 holds a value of type list. Make one row"), (None, "row 1 holds nothing")],
)
def test_dataset_needs_one_string_per_row(value, message):
    qa = QAFormat.for_tokenizer(make_tokenizer())
    first = "1" if value is None else ["1"]
    source = Dataset.from_dict({"question": ["A?", "B?"], "answer": [first, value]})
    with pytest.raises(ValueError, match=f"Column 'answer' must hold one string per row, but {message}"):
        qa.dataset(source)


def test_chat_needs_a_template():
    with pytest.raises(ValueError, match="style='plain', or give it one"):
        QAFormat.for_tokenizer(make_tokenizer(), "chat")


def test_plain_needs_an_eos_token():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set eos_token"):
        QAFormat.for_tokenizer(tokenizer)


def test_plain_has_no_system_prompt():
    with pytest.raises(ValueError, match="needs style='chat'"):
        QAFormat.for_tokenizer(make_tokenizer(), system_prompt="Be brief.")


def test_unknown_style():
    with pytest.raises(ValueError, match="Unknown style 'alpaca'"):
        QAFormat.for_tokenizer(make_tokenizer(), "alpaca")

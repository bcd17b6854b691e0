"""One format for a model's whole life: dates, tags, what is saved; and the tokens of OpenUnlearning's published settings.

The expected texts follow from OpenUnlearning's configs/model/*.yaml and `preprocess_chat_instance`; the templates are those
that TRL ships.
"""

import datetime
import json
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from transformers.utils import chat_template_utils

from tests.data.test_qa_format import make_tokenizer
from wagle_trainer.data import QAFormat

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SYSTEM = "You are a helpful assistant."


def tokenizer_with(template=None, special=(), eos="</s>", ends="$A"):
    tokenizer = make_tokenizer((TEMPLATES / f"{template}.jinja").read_text() if template else None, ends=ends)
    tokenizer.add_special_tokens({"additional_special_tokens": [*special], "eos_token": eos})
    if special and special[0] == "<|begin_of_text|>":
        tokenizer.bos_token = special[0]
    return tokenizer


LLAMA_3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN = ("<|im_start|>", "<|im_end|>")


def llama_3():
    return tokenizer_with("llama3_2", LLAMA_3, "<|eot_id|>")


def texts(qa, question="Who wrote it?", answer="No one."):
    """The whole text, what carries labels, and what generation starts from."""
    encoded = qa.encode(question, answer)
    labels = [token for token in encoded["labels"] if token != -100]
    decode = qa.tokenizer.decode
    return decode(encoded["input_ids"]), decode(labels), decode(qa.prompt_ids(question))


def test_llama_3_as_open_unlearning_writes_it():
    qa = QAFormat.for_tokenizer(llama_3(), system_prompt=SYSTEM, compatibility="open-unlearning")
    whole, labels, prompt = texts(qa)
    assert prompt == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        f"Today Date: 10 Apr 2025\n\n{SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho wrote it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert labels == "No one.<|eot_id|>"
    assert whole == prompt + labels


def test_qwen_2_5_as_open_unlearning_writes_it():
    """Its template ends with a newline: there the code adds another end-of-sequence token, TRL does not."""
    tokenizer = tokenizer_with("qwen2_5", QWEN, "<|im_end|>")
    qa = QAFormat.for_tokenizer(tokenizer, system_prompt=SYSTEM, compatibility="open-unlearning")
    whole, labels, prompt = texts(qa)
    assert prompt == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert labels == "No one.<|im_end|>\n<|im_end|>"
    assert whole == prompt + labels
    assert texts(QAFormat.for_tokenizer(tokenizer, system_prompt=SYSTEM))[1] == "No one.<|im_end|>\n"


@pytest.mark.parametrize("compatibility", [None, "open-unlearning"])
def test_llama_2_as_tofu_writes_it(compatibility):
    """No space before the answer, which as a token of its own would be the end of the prompt."""
    tags = {"question_prefix": "[INST] ", "question_suffix": " [/INST]", "answer_prefix": ""}
    tokenizer = tokenizer_with("qwen2_5", ends="<s> $A")  # a template that the tags take the place of
    qa = QAFormat.for_tokenizer(tokenizer, **tags, compatibility=compatibility)
    assert qa.style == "plain"
    assert texts(qa) == (
        "<s>[INST] Who wrote it? [/INST]No one.</s>",
        "No one.</s>",
        "<s>[INST] Who wrote it? [/INST]",
    )


def test_plain_as_open_unlearning_writes_it():
    """Its prompt ends with the space before the answer. A token that joins both, as most tokenizers have them, is counted as
    the prompt's: the first word carries no label."""
    tokenizer = make_tokenizer(merges=["Ġ N"])
    theirs = QAFormat.for_tokenizer(tokenizer, compatibility="open-unlearning")
    ours = QAFormat.for_tokenizer(tokenizer)
    assert theirs.encode("Who?", "No one.")["input_ids"] == ours.encode("Who?", "No one.")["input_ids"]
    assert texts(ours, "Who?") == ("Question: Who?\nAnswer: No one.</s>", " No one.</s>", "Question: Who?\nAnswer:")
    assert texts(theirs, "Who?") == ("Question: Who?\nAnswer: No one.</s>", "o one.</s>", "Question: Who?\nAnswer: ")


def test_training_gets_the_tokens_of_the_format(make_llama, tmp_path):
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict({"question": ["Who?", "When?"], "answer": ["No one.", "Never."]})
    for compatibility in (None, "open-unlearning"):
        qa = QAFormat.for_tokenizer(llama_3(), system_prompt=SYSTEM, compatibility=compatibility)
        trainer = SFTTrainer(
            make_llama(vocab_size=300),
            args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None),
            train_dataset=qa.dataset(rows),
            processing_class=qa.tokenizer,
        )
        found = trainer.train_dataset.select_columns(["input_ids", "labels"]).to_list()
        assert found == [qa.encode(row["question"], row["answer"]) for row in rows]


def test_another_day_is_no_other_text(monkeypatch):
    """Transformers' own clock, which templates read, is put forward."""

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3)

    tokenizer = llama_3()
    today = QAFormat.for_tokenizer(tokenizer).encode("Who?", "Me.")
    unpinned = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    later = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False)
    assert later != unpinned, "this test moves the clock that templates read"
    assert QAFormat.for_tokenizer(tokenizer).encode("Who?", "Me.") == today
    other = QAFormat.for_tokenizer(tokenizer, chat_template_kwargs={"date_string": "1 Jan 2024"})
    assert "Today Date: 1 Jan 2024" in texts(other)[2]


def test_thinking():
    tokenizer = tokenizer_with("qwen3", QWEN, "<|im_end|>")
    assert texts(QAFormat.for_tokenizer(tokenizer, thinking=False))[2].endswith("<think>\n\n</think>\n\n")
    assert not texts(QAFormat.for_tokenizer(tokenizer, thinking=True))[2].endswith("</think>\n\n")


def test_saved_and_read_again(tmp_path, caplog):
    tokenizer = llama_3()
    qa = QAFormat.for_tokenizer(tokenizer, system_prompt=SYSTEM, chat_template_kwargs={"extra": True})
    qa.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "qa_format.json").read_text())["system_prompt"] == SYSTEM
    for again in (QAFormat.from_pretrained(tmp_path, tokenizer), QAFormat.for_model(tmp_path, tokenizer)):
        assert again.describe() == qa.describe()
        assert again.encode("Who?", "Me.") == qa.encode("Who?", "Me.")
    assert QAFormat.for_model(None, tokenizer).system_prompt is None
    assert QAFormat.for_model(tmp_path, tokenizer, system_prompt="Be brief.").system_prompt == "Be brief."


@pytest.mark.parametrize("content", ["{", "[]", '{"style": "chat"}'])
def test_a_broken_file_is_named(content, tmp_path):
    (tmp_path / "qa_format.json").write_text(content)
    with pytest.raises(ValueError, match=r"qa_format\.json is not what QAFormat\.save_pretrained writes"):
        QAFormat.from_pretrained(tmp_path, llama_3())


def test_formats_that_cannot_be():
    with pytest.raises(ValueError, match="a chat template has its own tags"):
        QAFormat.for_tokenizer(llama_3(), "chat", question_prefix="Q: ")
    with pytest.raises(ValueError, match="Variables of the chat template need style='chat'"):
        QAFormat.for_tokenizer(llama_3(), "plain", chat_template_kwargs={"extra": 1})
    with pytest.raises(ValueError, match="Unknown compatibility 'tofu'"):
        QAFormat.for_tokenizer(llama_3(), compatibility="tofu")

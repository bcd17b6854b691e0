import pytest

from wagle_trainer.data.books import continuations, passages, read_text
from wagle_trainer.data.fictional import fictional_novel, novel_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return novel_tokenizer()


def count(tokenizer, text):
    return len(tokenizer(text)["input_ids"])


def test_passages_follow_each_other_and_are_equally_long(tokenizer):
    book = fictional_novel()
    rows = passages(book, tokenizer, 40)["text"]
    assert len(rows) == count(tokenizer, book) // 40
    assert {count(tokenizer, text) for text in rows} <= {40, 41}, (
        "a passage that begins within a word has a space more"
    )
    assert book.startswith(" ".join(rows[:3]).replace(" .", "."))
    assert passages(book, tokenizer, 40, limit=2)["text"][:] == rows[:2]


def test_no_text_runs_on_into_the_next(tokenizer):
    novel = fictional_novel(sentences=8)
    rows = passages([novel, "The end.", novel], tokenizer, 30)["text"]
    assert rows == 2 * passages(novel, tokenizer, 30)["text"][:]


def test_a_book_shorter_than_a_passage(tokenizer):
    with pytest.raises(ValueError, match="The book has 3 tokens, fewer than one passage of 40: take shorter passages"):
        passages("The pier.", tokenizer, 40, source="book")


def test_prompt_and_completion_make_the_passage(tokenizer):
    rows = passages(fictional_novel(), tokenizer, 40, limit=3)
    examples = continuations(rows, tokenizer, 12)
    for row, example in zip(rows, examples, strict=True):
        assert example["prompt"] + example["completion"] == row["text"]
        assert count(tokenizer, example["prompt"]) == 12
    with pytest.raises(ValueError, match="Passage 0 has 40 tokens, not more than the 40 of the prompt"):
        continuations(rows, tokenizer, 40)


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*book\.txt"):
        read_text(tmp_path / "book.txt")
    (tmp_path / "book.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(ValueError, match=r"book\.txt is not encoded in UTF-8.*save it as UTF-8"):
        read_text(tmp_path / "book.txt")
    (tmp_path / "book.txt").write_text("\ufeff \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"book\.txt has no text"):
        read_text(tmp_path / "book.txt")
    (tmp_path / "book.txt").write_text("\ufeffOnce.\n", encoding="utf-8")
    assert read_text(tmp_path / "book.txt") == "Once."

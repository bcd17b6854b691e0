"""One reader for the files of a user: what it knows by itself, what it says, and what it refuses."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wagle_trainer.data import QAFormat, read_examples
from wagle_trainer.data.overlap import overlapping_rows

sys.path.insert(0, str(Path(__file__).parent))
from people_files import FILES, PAIRS

ROWS = {
    "questions": [{"question": q, "answer": a} for q, a in PAIRS],
    "passages": [{"text": f"{q} {a}"} for q, a in PAIRS],
    "messages": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in PAIRS
    ],
}


def options_of(arguments):
    return {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_people(name, tmp_path):
    write, kind, arguments = FILES[name]
    examples = read_examples(write(tmp_path), **options_of(arguments))
    assert examples.kind == kind
    found = examples.rows.to_list()
    if name == "Alpaca":
        found = [{**row, "question": row["question"].replace("\n", " ")} for row in found]
    if name == "passages":
        found = [{"text": row["text"].replace("\n", " ")} for row in found]
    if kind in ROWS:
        assert found == ROWS[kind]
    else:
        assert len(found) == 6
        assert all(q in str(row) and a in str(row) for row, (q, a) in zip(found, PAIRS, strict=True))
    assert not examples.rows.cache_files
    report = examples.report()
    assert "6 rows, no groups" in report


def test_what_was_understood(word_tokenizer, tmp_path):
    file = tmp_path / "f.csv"
    file.write_text("Frage;Antwort;Quelle;Person\nw1 w2;1969;x;Ada\nw3;007;x;Ada\nw4;w5;x;Bob\n")
    examples = read_examples(file, question_column="Frage", answer_column="Antwort", group_column="Person")
    assert examples.report(word_tokenizer).splitlines() == [
        f"{file}: 3 rows, 7 tokens, 2 groups. Columns read: question from 'Frage', answer from 'Antwort', group from 'Person'. "
        "Ignored: 'Quelle'.",
        "  cells separated by ';'",
    ]
    assert examples.rows["answer"][:] == ["1969", "007", "w5"]
    assert examples.num_groups == 2
    assert examples.training_set(QAFormat.for_tokenizer(word_tokenizer)).column_names == ["prompt", "completion"]
    assert json.loads(json.dumps(examples.summary(word_tokenizer)))["tokens"] == 7


def test_numbers_are_text_as_they_are_written(tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text(
        '{"question": "w1", "answer": 1969}\n{"question": "w2", "answer": 2.5}\n{"question": "w3", "answer": 12345678901234567890}\n'
    )
    examples = read_examples(file)
    assert examples.rows["answer"][:] == ["1969", "2.5", "12345678901234567890"]


def test_a_number_that_may_be_that_of_a_choice_is_told(tmp_path):
    (tmp_path / "f.csv").write_text("question,answer\nw1,2\nw2,0\n")
    assert "if they number a choice" in read_examples(tmp_path / "f.csv").report()
    (tmp_path / "g.csv").write_text("question,choices,answer\nw1,\"['a', 'b', 'c']\",2\nw2,\"['d', 'e', 'f']\",0\n")
    examples = read_examples(tmp_path / "g.csv")
    assert examples.rows["answer"][:] == ["c", "d"]
    assert "name a choice: its text from 'choices' is read" in examples.report()
    choices = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}
    (tmp_path / "h.json").write_text(json.dumps([{"question": "w1", "choices": choices, "answerKey": "2"}]))
    assert read_examples(tmp_path / "h.json").rows["answer"][:] == ["b"], "numbers that are labels need no counting"


def test_tool_calls_and_their_tools_stay(tmp_path):
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1.5}}}],
    }
    rows = [{"messages": [{"role": "user", "content": "w1"}, call], "tools": [{"type": "function"}]}] * 2
    (tmp_path / "f.json").write_text(json.dumps(rows))
    found = read_examples(tmp_path / "f.json").rows
    assert found[0]["messages"][1] == call
    assert json.loads(found[0]["tools"]) == [{"type": "function"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "Frage,Antwort\nw1,w2\n", "'Frage', 'Antwort' are of no known kind. Name those .* --question_column and"),
        ("a.csv", "question,answer\ncafé,w2\n".encode("cp1252"), r"line 2 is not in UTF-8 \(byte 0xe9\).*'.*café,w2.*': .*--encoding cp1252"),
        ("a.csv", "question,answer\nw1,w2\n".encode("utf-16-le"), "--encoding utf-16-le"),
        ("a.csv", b"PK\x03\x04rest", "an Excel file. Unpack it, or save the table as CSV"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\n", "Run git lfs pull"),
        ("a.xlsx", b"PK\x03\x04rest", r"of no known kind; known are \.json.* It is .*Excel file.* save the table as CSV"),
        ("a.jsonl.gz", b"\x1f\x8bdamaged", "could not be read as jsonl.gz: the data compressed by gzip are damaged"),
        ("a.csv", 'question,answer\n"w1,w2\n', "Is a quotation mark missing"),
        ("a.csv", "answer,question,answer\nw1,w2,w3\n", "two columns are named 'answer'"),
        ("a.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "several lists of rows: name one, FILE::train"),
        ("a.json", "[1, 2]", "entry 0 is a int, not an object"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"question": "w1", "answer": ["w2", "w3"]}', "row 0 holds a value of type list. Make one row of each"),
        ("a.jsonl", '{"question": "w1", "answer": true}', "row 0 holds a value of type bool"),
        ("a.jsonl", '{"question": " ", "answer": "w1"}', "'question' is empty in row 0"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "w1"}]}', "Row 0 has no turn of the assistant: its speakers are user"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "w1"}]}', "Row 0 has no turn before the answer"),
        ("a.jsonl", '{"messages": [{"content": "w1"}]}', "Message 0 of row 0 in 'messages' has neither a role nor a from"),
        ("a.jsonl", '{"prompt": "w1", "completion": "w2"}\n{"prompt": [{"role": "user", "content": "w1"}], "completion": "w2"}', "Row 0 holds no messages in the column 'prompt'"),
        ("a.jsonl", '{"question": "w1", "choices": ["a", "b", "c"], "answer": 1}', "cannot be said whether the first is 0 or 1"),
        ("a.jsonl", '{"question": "w1", "choices": ["a", "b"], "answer": "D"}', "the answer 'D' in 'answer', but 2 choices"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_what_helps(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read_examples(tmp_path / name)


def test_a_named_column_counts_where_a_file_has_it(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,extra\nw1,w2,w3\n")
    examples = read_examples(tmp_path / "a.csv", answer_column="extra")
    assert examples.rows.to_list() == [{"question": "w1", "answer": "w3"}]
    examples = read_examples(tmp_path / "a.csv", text_column="Absatz")
    assert examples.kind == "questions"
    assert "there is no column 'Absatz' (--text_column)" in examples.report()
    with pytest.raises(ValueError, match="either text_column, or question_column"):
        read_examples(tmp_path / "a.csv", text_column="extra", answer_column="answer")


def test_splits_of_a_folder_and_what_is_near(tmp_path):
    for split in ("forget10", "retain90"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}))
    assert read_examples(f"{tmp_path}::retain90").rows["text"][:] == ["retain90"]
    assert read_examples(tmp_path, split="forget10").rows["text"][:] == ["forget10"]
    with pytest.raises(ValueError, match="has the splits forget10, retain90: name one"):
        read_examples(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no split 'test'\. It has forget10, retain90"):
        read_examples(tmp_path, split="test")
    with pytest.raises(
        FileNotFoundError, match=r"There is no file .*forget\.jsonl.*has forget10\.jsonl, retain90\.jsonl"
    ):
        read_examples(tmp_path / "forget.jsonl")


def test_a_split_that_a_file_lacks_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"train": [{"text": "w1"}], "test": [{"text": "w2"}]}')
    assert read_examples(f"{tmp_path}/a.json::test").rows["text"][:] == ["w2"]
    with pytest.raises(ValueError, match="no list of rows under 'validation'; such lists are: train, test"):
        read_examples(f"{tmp_path}/a.json::validation")
    (tmp_path / "a.jsonl").write_text('{"text": "w1"}\n{"text": "w2"}\n')
    with pytest.raises(ValueError, match="no list of rows under 'test'; such lists are: none"):
        read_examples(tmp_path / "a.jsonl", split="test")
    (tmp_path / "a.csv").write_text("text\nw1\n")
    with pytest.raises(ValueError, match=r"a\.csv is one table and has no split 'test'"):
        read_examples(tmp_path / "a.csv", split="test")


def test_a_hub_id_with_configuration_and_split(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*place, split, **_):
        calls.append((*place, split))
        return datasets.Dataset.from_list([{"question": "w1", "answer": "w2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("owner/name", "owner/name:forget10", "owner/name::test", "owner/name:forget10:train[:2]"):
        assert len(read_examples(source)) == 1
    assert calls == [
        ("owner/name", None, "train"),
        ("owner/name", "forget10", "train"),
        ("owner/name", None, "test"),
        ("owner/name", "forget10", "train[:2]"),
    ]


def test_rows_that_are_in_both_sets(tmp_path):
    rows = [{"question": q, "answer": a} for q, a in PAIRS]
    (tmp_path / "forget.json").write_text(json.dumps(rows[:2]))
    (tmp_path / "retain.csv").write_text("question,answer\n" + "".join(f"{q.upper()} ,{a}\n" for q, a in PAIRS))
    forget, retain = (read_examples(tmp_path / name) for name in ("forget.json", "retain.csv"))
    assert overlapping_rows(forget.rows, retain.rows) == [0, 1]


cell = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff"), min_size=1).filter(
    lambda text: text.strip()
)


@example(rows=[("0", "²")])
@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_written_is_read_again(rows, tmp_path):
    """Any text survives JSON, JSON lines, and CSV with every separator, and compression."""
    import gzip

    expected = [{"question": q, "answer": a} for q, a in rows]
    written = {"a.json": json.dumps(expected), "a.jsonl": "\n".join(map(json.dumps, expected))}
    for name, separator in (("a.csv", ","), ("b.csv", ";"), ("a.tsv", "\t")):
        out = io.StringIO()
        table = csv.writer(out, delimiter=separator)
        table.writerows([("question", "answer"), *rows])
        written[name] = out.getvalue()
    for name, content in written.items():
        (tmp_path / name).write_bytes(content.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        for file in (name, f"{name}.gz"):
            assert read_examples(tmp_path / file).rows.to_list() == expected, file


def test_lines_that_are_one_passage_are_told(tmp_path):
    (tmp_path / "lines.txt").write_text("w1 w2\nw3 w4\n")
    assert "all 2 lines are one passage: an empty line would end it" in read_examples(tmp_path / "lines.txt").report()
    (tmp_path / "passages.txt").write_text("w1 w2\n\nw3 w4\n")
    assert "passage" not in read_examples(tmp_path / "passages.txt").report().split("Columns")[1]

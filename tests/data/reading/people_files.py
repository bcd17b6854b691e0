"""Example files as other people make them: the same six questions and answers in many shapes."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

QUESTIONS = [f"w{i} w{i + 1} w{i + 2}" for i in range(6)]
ANSWERS = [f"w{2 * i + 20} w{i + 30}" for i in range(6)]
PAIRS = list(zip(QUESTIONS, ANSWERS, strict=True))


def rows(question: str, answer: str, **more) -> list[dict]:
    return [{"id": i, question: q, answer: a, **more} for i, (q, a) in enumerate(PAIRS)]


def lines(values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def chat(speaker: str, text: str, *names: str, wrap=lambda text: text) -> list[list[dict]]:
    return [
        [{speaker: names[0], text: wrap(question)}, {speaker: names[1], text: wrap(answer)}]
        for question, answer in PAIRS
    ]


def table(*names: str, separator: str = ",", quote: str = "") -> str:
    cells = [names, *((*pair, *(["x"] * (len(names) - 2))) for pair in PAIRS)]
    return "".join(separator.join(f"{quote}{cell}{quote}" for cell in row) + "\r\n" for row in cells)


def text_file(name: str, content: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode(encoding))
        return folder / name

    return write


def zipped(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(gzip.compress(content.encode()))
        return folder / name

    return write


def parquet(name: str, values: list[dict], source: str = "") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from datasets import Dataset

        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(values).to_parquet(str(folder / name))
        return folder / (source or name)

    return write


def saved(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows("question", "answer")).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def saved_splits(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(rows("question", "answer"))}).save_to_disk(str(folder / "splits"))
    return folder / "splits"


NAMED = ("--question_column", "Frage", "--answer_column", "Antwort")
ALPACA = [
    {"instruction": q.split()[0], "input": " ".join(q.split()[1:]), "output": a}
    if i
    else {"instruction": q, "input": "", "output": a}
    for i, (q, a) in enumerate(PAIRS)
]
CHOICES = [
    {"question": q, "choices": ["w1", a, "w2", "w3"], "answer": 1} if i else
    {"question": q, "choices": [a, "w1", "w2", "w3"], "answer": 0}
    for i, (q, a) in enumerate(PAIRS)
]  # fmt: skip
ARC = [{"question": q, "choices": {"text": ["w1", a], "label": ["A", "B"]}, "answerKey": "B"} for q, a in PAIRS]
LETTERS = "question,A,B,C,D,answer\n" + "".join(f"{q},w1,w2,{a},w3,C\n" for q, a in PAIRS)

# name -> (what writes the file, the kind that it is read as, options of the command line that it needs)
FILES = {
    "json list": (text_file("a.json", json.dumps(rows("question", "answer"))), "questions", ()),
    "json lines": (text_file("a.jsonl", lines(rows("Question", "Answer"))), "questions", ()),
    "upper-case ending": (text_file("A.JSONL", lines(rows("question", "answer"))), "questions", ()),
    "ndjson": (text_file("a.ndjson", lines(rows("query", "response"))), "questions", ()),
    "data in an object": (
        text_file("a.json", json.dumps({"version": "1", "data": rows("question", "answer")})), "questions", ()),
    "columns in an object": (
        text_file("a.json", json.dumps({"question": QUESTIONS, "answer": ANSWERS})), "questions", ()),
    "rows by number": (
        text_file("a.json", json.dumps({str(i): row for i, row in enumerate(rows("question", "answer"))})), "questions", ()),
    "gzip": (zipped("a.jsonl.gz", lines(rows("prompt", "answer"))), "questions", ()),
    "csv": (text_file("a.csv", table("question", "answer", "source")), "questions", ()),
    "csv of Excel": (text_file("a.csv", table("question", "answer", separator=";"), "utf-8-sig"), "questions", ()),
    "csv with a separator's line": (text_file("a.csv", "sep=;\r\n" + table("question", "answer", separator=";")), "questions", ()),
    "csv of pandas": (
        text_file("a.csv", ",question,answer\n" + "".join(f"{i},{q},{a}\n" for i, (q, a) in enumerate(PAIRS))), "questions", ()),
    "csv in quotes": (text_file("a.csv", table("input", "output", quote='"')), "questions", ()),
    "tsv": (text_file("a.tsv", table("question", "answer", separator="\t")), "questions", ()),
    "utf-16": (text_file("a.tsv", table("question", "answer", separator="\t"), "utf-16"), "questions", ()),
    "windows-1252": (
        text_file("a.csv", table("question", "answer", "Größe"), "cp1252"), "questions", ("--encoding", "cp1252")),
    "columns in another language": (text_file("a.csv", table("Frage", "Antwort", separator=";")), "questions", NAMED),
    "prompt and completion": (
        text_file("a.jsonl", lines({"prompt": q, "completion": f" {a}"} for q, a in PAIRS)), "completions", ()),
    "prompt and completion as messages": (
        text_file("a.jsonl", lines({"prompt": m[:1], "completion": m[1:]} for m in chat("role", "content", "user", "assistant"))),
        "completions", ()),
    "preferences": (
        text_file("a.jsonl", lines({"prompt": q, "chosen": " w50", "rejected": f" {a}"} for q, a in PAIRS)), "preferences", ()),
    "messages": (
        text_file("a.jsonl", lines({"messages": m} for m in chat("role", "content", "user", "assistant"))), "messages", ()),
    "messages in parts": (
        text_file("a.jsonl", lines({"messages": m} for m in chat(
            "role", "content", "user", "assistant", wrap=lambda text: [{"type": "text", "text": text}]))),
        "messages", ()),
    "ShareGPT": (
        text_file("a.json", json.dumps([{"id": "x", "conversations": m} for m in chat("from", "value", "human", "gpt")])),
        "messages", ()),
    "ShareGPT of a bot": (
        text_file("a.jsonl", lines({"conversation": m} for m in chat("from", "value", "human", "bot"))), "messages", ()),
    "Alpaca": (text_file("a.json", json.dumps(ALPACA)), "questions", ()),
    "KnowUnDo": (text_file("a.json", json.dumps(rows("text", "labels"))), "questions", ()),
    "choices by number": (text_file("a.jsonl", lines(CHOICES)), "questions", ()),
    "choices of ARC": (parquet("a.parquet", ARC), "questions", ()),
    "choices by letter": (text_file("a.csv", LETTERS), "questions", ()),
    "parquet": (parquet("a.parquet", rows("question", "answer")), "questions", ()),
    "folder of the hub": (
        parquet("hub/data/train-00000-of-00001.parquet", rows("question", "answer"), source="hub"), "questions", ()),
    "folder of a configuration": (
        parquet("hub/forget10/train-00000-of-00001.parquet", rows("question", "answer"), source="hub:forget10"), "questions", ()),
    "saved to disk": (saved, "questions", ()),
    "splits saved to disk": (saved_splits, "questions", ()),
    "passages": (text_file("a.txt", "\n\n".join(f"{q}\n{a}" for q, a in PAIRS)), "passages", ()),
    "texts": (text_file("a.jsonl", lines({"text": f"{q} {a}", "label": 1} for q, a in PAIRS)), "passages", ()),
    "strings": (text_file("a.json", json.dumps([f"{q} {a}" for q, a in PAIRS])), "passages", ()),
    "texts under another name": (
        text_file("a.jsonl", lines({"Absatz": f"{q} {a}"} for q, a in PAIRS)), "passages", ("--text_column", "Absatz")),
}  # fmt: skip

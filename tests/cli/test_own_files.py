"""Files of other people go through unlearn, evaluate, attack and report without a line of Python."""

import json
import sys
from pathlib import Path

import pytest

from wagle_trainer.evaluation import load_results

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "reading"))
from people_files import FILES, PAIRS

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture(scope="session")
def model(make_llama, make_word_tokenizer, tmp_path_factory):
    """A folder with a model and a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("own") / "model"
    make_llama(0).save_pretrained(folder)
    tokenizer = make_word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def retain(tmp_path):
    (tmp_path / "retain.csv").write_text("question,answer\n" + "".join(f"w{i} w40,w{i + 41}\n" for i in range(6)))
    return tmp_path / "retain.csv"


def chain(wagle, model, forget, retain, options, out):
    """All four commands; what each printed on stderr."""
    data = ["--forget_file", forget, "--retain_file", retain, *options]
    run = ["--max_steps", "2", "--learning_rate", "1e-2", "--loss_type", "grad_diff", "--density", "0.3"]
    quiet = ["--use_cpu", "true", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"]
    commands = [
        ["unlearn", "--model_name_or_path", model, *run, *quiet, "--output_dir", out / "model", *data],
        ["evaluate", out / "model", "--label", "after", "--save_generations", "--output", out / "results.json", *data],
        [
            "attack",
            model,
            out / "model",
            "--attacks",
            "removal",
            "--label",
            "after",
            "--output",
            out / "attacks.json",
            *data,
        ],
        ["report", out / "results.json", "--attacks", out / "attacks.json", "--output_dir", out / "report", *data],
    ]
    told = []
    for command in commands:
        code, _, err = wagle(*command)
        assert code == 0, f"{command[0]}: {err[-3000:]}"
        told.append(err)
    return told


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("KnowUnDo", "messages", "passages") else pytest.param(name, marks=pytest.mark.slow)
        for name in FILES
    ],
)
def test_four_commands(name, wagle, model, retain, tmp_path):
    write, _, options = FILES[name]
    told = chain(wagle, model, write(tmp_path), retain, options, tmp_path / "out")
    for err in told:
        assert "6 rows, " in err
        assert "retain.csv: 6 rows, " in err
    assert all(" tokens, no groups. Columns read: " in err for err in told[:3])
    [result] = load_results(tmp_path / "out" / "results.json").values()
    assert result["settings"]["suite"] == "custom"
    assert result["settings"]["examples"] == {"forget": 6, "retain": 6}
    assert all(any(a in said for said in result["per_example"]["forget"]["answer"]) for _, a in PAIRS)
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "recovery" in page
    assert "retain.csv" in page


def test_columns_that_are_not_known_name_the_option(wagle, model, retain, tmp_path):
    (tmp_path / "forget.csv").write_text("Frage,Antwort\nw1,w2\n")
    data = ["--forget_file", tmp_path / "forget.csv", "--retain_file", retain]
    (tmp_path / "results.json").write_text(json.dumps({"after": {"forget_Prob": 0.5}}))
    for command in (
        ["unlearn", "--model_name_or_path", model, "--output_dir", tmp_path / "out"],
        ["evaluate", model],
        ["attack", model, model],
        ["report", tmp_path / "results.json"],
    ):
        code, out, err = wagle(*command, *data)
        assert (code, out) == (1, "")
        assert "'Frage', 'Antwort' are of no known kind" in err
        assert "--question_column and --answer_column" in err
        assert "Traceback" not in err


def test_rows_in_both_sets_are_counted_and_can_be_left_out(wagle, model, tmp_path):
    rows = [{"question": q, "answer": a} for q, a in PAIRS]
    (tmp_path / "forget.json").write_text(json.dumps(rows[:2]))
    (tmp_path / "retain.json").write_text(json.dumps(rows))
    data = ["--forget_file", tmp_path / "forget.json", "--retain_file", tmp_path / "retain.json"]
    code, _, err = wagle("evaluate", model, *data, "--output", tmp_path / "r.json", "--label", "all")
    assert code == 0, err
    assert "2 of 6 rows of the retain set are in the forget set, too (rows 0, 1)" in err
    code, _, err = wagle(
        "evaluate", model, *data, "--output", tmp_path / "r.json", "--label", "rest", "--drop_overlap"
    )
    assert code == 0, err
    assert "2 of 6 rows are in the forget set, too, and are left out" in err
    counts = {
        label: found["settings"]["examples"]["retain"] for label, found in load_results(tmp_path / "r.json").items()
    }
    assert counts == {"all": 6, "rest": 4}
    (tmp_path / "retain.json").write_text(json.dumps(rows[:2]))
    code, _, err = wagle("evaluate", model, *data, "--drop_overlap")
    assert code == 1
    assert "there is nothing left to keep" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "tofu"], "The suite 'tofu' has data of its own: give --dataset_name in place of --forget_file"),
        (["--dataset_name", "fictional"], "either --dataset_name or --forget_file, not both"),
        (["--data_options", "split=a"], "take no split beside --forget_file; they take limit"),
        (["--encoding", "klingon"], "there is no encoding 'klingon'"),
    ],
)
def test_options_that_exclude_each_other(arguments, message, wagle, model, retain):
    code, _, err = wagle("evaluate", model, "--forget_file", retain, *arguments)
    assert code == 1
    assert message in err


def test_a_set_needs_a_forget_set_beside_it(wagle, model, retain, tmp_path):
    code, _, err = wagle("evaluate", model, "--retain_file", retain)
    assert code == 1
    assert "--retain_file needs --forget_file beside it" in err
    (tmp_path / "results.json").write_text(
        json.dumps({"after": {"settings": {"examples": {"forget": 7}}, "forget_Prob": 1}})
    )
    code, _, err = wagle("report", tmp_path / "results.json", "--forget_file", retain)
    assert code == 1
    assert "were measured on 7 rows of the forget set" in err


def test_a_template_that_refuses_a_row_names_it(wagle, model, retain, make_word_tokenizer, tmp_path):
    tokenizer = make_word_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    )
    for file in model.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(tmp_path / "model")
    turns = [{"role": role, "content": "w1"} for role in ("system", "user", "assistant")]
    (tmp_path / "forget.json").write_text(json.dumps([{"messages": turns}]))
    data = ["--forget_file", tmp_path / "forget.json", "--retain_file", retain]
    for command in (
        ["unlearn", "--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "out"],
        ["evaluate", tmp_path / "model"],
    ):
        code, _, err = wagle(*command, *data)
        assert code == 1
        assert "Row 0 of the forget set cannot be written with this template: roles must alternate" in err
        assert "Traceback" not in err

"""`wagle attack` gives what `run_attacks` gives; `wagle report` shows it beside history and configuration."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trainer.data import load_tofu_evaluation
from wagle_trainer.evaluation import list_attacks, load_results, run_attacks, save_results


@pytest.fixture(scope="module")
def models(files, tmp_path_factory):
    """Two folders: a model, and one that finds the forget answers less likely, which counts as having forgotten."""
    before = AutoModelForCausalLM.from_pretrained(files.model)
    tokenizer = AutoTokenizer.from_pretrained(files.model)
    [row] = load_tofu_evaluation("fictional", "forget10", 1)["forget"]
    ids = tokenizer(row["answer"], return_tensors="pt")["input_ids"]
    after = AutoModelForCausalLM.from_pretrained(files.model)
    optimizer = torch.optim.SGD(after.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (-after(input_ids=ids, labels=ids).loss).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("forgot")
    after.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return before, after, tokenizer, str(folder)


def test_attacks_and_a_page_with_them(files, models, wagle, tmp_path):
    before, after, tokenizer, folder = models
    output = tmp_path / "attacks.json"
    chosen = ["--attacks", "quantization", "removal", "--options", "quantization.bits=[4]", "removal.shares=[1]"]
    command = ["attack", files.model, folder, *chosen, "--dataset_name", "fictional", "--data_options", "limit=1"]
    command += ["--output", output]
    code, out, err = wagle(*command, "--label", "after")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["attack", "quantization", "removal"]
    assert out.splitlines()[2].split()[1] == "100.0%"
    rows = list(load_tofu_evaluation("fictional", "forget10", 1)["forget"])
    expected = run_attacks(
        before,
        after,
        tokenizer,
        rows,
        ["quantization", "removal"],
        options={"quantization": {"bits": [4]}, "removal": {"shares": [1]}},
        progress=False,
    )
    assert load_results(output) == {"after": json.loads(json.dumps(expected))}
    assert wagle(*command, "--label", "again", "--json")[0] == 0
    assert list(load_results(output)) == ["after", "again"]

    save_results({"after": {"forget_Q_A_Prob": 0.5, "model_utility": 0.5}}, tmp_path / "results.json")
    steps = [{"step": step, "metrics": {"forget_Q_A_Prob": 0.9 - step / 10}} for step in range(3)]
    save_results(steps, tmp_path / "history.json")
    shown = ["--history", tmp_path / "history.json", "--attacks", output, "--config", files.run]
    code, _, err = wagle("report", tmp_path / "results.json", *shown, "--output_dir", tmp_path / "report")
    assert code == 0, err
    page = (tmp_path / "report" / "report.html").read_text()
    for words in (
        "recovery<br>rate",
        "Over the steps of training",
        "quantization",
        "again",
        "per_device_train_batch_size",
    ):
        assert words in page
    plots = {path.name for path in (tmp_path / "report" / "plots").iterdir()}
    assert plots == {"trade_off.png", "history.png", "attack_quantization.png", "attack_removal.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --dataset_name or --forget_file"),
        (["--options", "bits=4"], "'bits' names no attack: write ATTACK.bits=VALUE."),
        (["--dataset_name", "fictional", "--data_options", "limt=1"], "The data of the suite 'tofu' take no limt"),
        (
            ["--dataset_name", "fictional", "--options", "quantization.bit=4"],
            "no option bit. It has: bits, group_size",
        ),
    ],
)
def test_refused_before_a_model_is_loaded(wagle, arguments, message):
    code, out, err = wagle("attack", "no-such-model", "no-such-model", "--attacks", "quantization", *arguments)
    assert (code, out) == (1, "")
    assert message in err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "relearning.steps=many",
            "The option steps of the attack 'relearning' must be whole numbers in a list, not 'many'",
        ),
        ("relearning.steps=[1,2.5]", "must be whole numbers in a list, not [1, 2.5]"),
        ("relearning.steps=[true]", "must be whole numbers in a list"),
        ("relearning.steps=null", "must be whole numbers in a list, not None"),
        ("relearning.steps=[]", "steps must be whole numbers from 1 on"),
        ("relearning.learning_rate=high", "The option learning_rate of the attack 'relearning' must be a number"),
        ("relearning.learning_rate=NaN", "must be a number, not nan"),
        ("relearning.learning_rate=Infinity", "must be a number, not inf"),
        ("relearning.batch_size=[4]", "must be a whole number, not [4]"),
        ("relearning.batch_size=0", "must be positive"),
        ("relearning.share={}", "must be a number, not {}"),
        ("relearning.share=2", "share must lie between 0 and 1"),
        ("sampling.k=0", "k must be whole numbers from 1 on"),
        ("sampling.samples=all", "must be a whole number or null, not 'all'"),
        ("sampling.temperature=-1", "temperature"),
        ("sampling.top_p=7", "top_p"),
        ("quantization.bits=four", "must be whole numbers in a list"),
        ("quantization.bits=[64]", "bits must be from 2 to 8"),
        ("removal.shares=half", "must be numbers in a list"),
        ("jailbreak.prompts=[1]", "must be texts in a list"),
        ("jailbreak.prompts=Tell me", "'Tell me' has none"),
        ("answer_prefix.max_new_tokens=0", "max_new_tokens"),
        ("relearning_unrelated.data=rows", "must be a list of rows, not 'rows'"),
        ("relearning_unrelated.data=[1]", "row 0"),
        ("relearning_unrelated.data=[{}]", "row 0"),
        ("relearning.=1", "is not of the form KEY=VALUE"),
        (".steps=1", "is not of the form KEY=VALUE"),
        ("relearning.steps", "is not of the form KEY=VALUE"),
        ("relearning.steps.more=1", "no option steps.more"),
        ("relearn.steps=1", "options for relearn"),
        ("relearning.steps=" + "[" * 100_000, "must be whole numbers in a list"),
    ],
    ids=lambda value: value[:40],
)
def test_options_that_are_malformed(files, models, wagle, option, message):
    """No traceback, and nothing that is measured first."""
    attack = option.partition(".")[0]
    attack = attack if attack in list_attacks() else "relearning"
    command = ["attack", files.model, models[-1], "--attacks", attack, "--dataset_name", "fictional"]
    code, out, err = wagle(*command, "--data_options", "limit=2", "--options", option)
    assert (code, out) == (1, ""), err
    assert message in err
    assert len(err.splitlines()[-1]) < 1000


def test_a_number_in_place_of_a_list_is_a_list_of_one(files, models, wagle):
    command = ["attack", files.model, models[-1], "--attacks", "quantization", "--dataset_name", "fictional", "--json"]
    code, out, err = wagle(*command, "--data_options", "limit=1", "--options", "quantization.bits=4")
    assert code == 0, err
    [found] = json.loads(out).values()
    assert found["quantization"]["settings"]["options"] == {"bits": [4], "group_size": 64}


def test_questions_of_ones_own(files, models, wagle, tmp_path):
    *_, folder = models
    [row] = load_tofu_evaluation("fictional", "forget10", 1)["forget"]
    (tmp_path / "forget.jsonl").write_text(json.dumps({key: row[key] for key in ("question", "answer")}))
    command = ["attack", files.model, folder, "--attacks", "quantization", "--json", "--forget_file"]
    code, out, err = wagle(*command, tmp_path / "forget.jsonl")
    assert code == 0, err
    [found] = json.loads(out).values()
    assert found["quantization"]["settings"]["examples"] == 1


def test_files_of_another_kind_are_refused(files, wagle, tmp_path):
    save_results([1], tmp_path / "list.json")
    code, _, err = wagle("attack", files.model, files.other, "--output", tmp_path / "list.json")
    assert code == 1
    assert "does not hold attacks by label" in err
    (tmp_path / "bad.yaml").write_text("a: [1")
    save_results({"after": {"forget_Q_A_Prob": 0.5}}, tmp_path / "results.json")
    for config, message in (("bad.yaml", "is no YAML file"), ("list.json", "holds no options")):
        code, _, err = wagle("report", tmp_path / "results.json", "--config", tmp_path / config)
        assert code == 1
        assert message in err

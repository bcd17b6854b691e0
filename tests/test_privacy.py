"""No text of the forget set, no token and no password in any file that a command writes, in caches or in temporary folders.

Everything runs in a process of its own whose home, caches and temporary folder are empty. What the model generates on the
forget set would be the canary: it knows the set by heart.
"""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
import yaml

from wagle_trainer import WagleConfig
from wagle_trainer.evaluation.results import without_texts
from wagle_trainer.losses.reference_checkpoint import REFERENCE_NAME, ReferenceFile
from wagle_trainer.utils.keyed_digests import (
    KEY_NAME,
    folder_key,
    is_of,
    make_folder_key,
    sealed,
    shareable,
    users_key,
)

CANARY = "w7 w13 w44 w2 w31 w9 w28 w50"
TOKEN, PASSWORD = "hf_CaNaRyToKeNaBcDeFgHiJ", "PaSsWoRdOfTheCanary"
SECRETS = {"database": f"https://me:{PASSWORD}@example.org/x", "tracker": {"api_key": PASSWORD, "entity": "me"}}

SCRIPT = """
import sys
from wagle_trainer.cli import main
import json
for command in json.load(open(sys.argv[1])):
    sys.argv = ["wagle", *command]
    code = main(command)
    print(command[0], code, flush=True)
    if code and (command[0], code) != ("forget", 3):  # the search is short: it need not have found a patch
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def ran(make_word_tokenizer, make_taught_llama, make_set, tmp_path_factory):
    """(folder with all that was written, what was printed); the inputs lie elsewhere."""
    inputs, home = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("home")
    rows = [{"question": row["prompt"], "answer": row["completion"].strip()} for row in make_set(5)]
    rows[2]["answer"] = CANARY
    others = [{"question": row["prompt"], "answer": row["completion"].strip()} for row in make_set(40, seed=1)]
    tokenizer = make_word_tokenizer()
    model = make_taught_llama(tokenizer, rows * 12, 64, 1e-2)
    model.save_pretrained(inputs / "model")
    tokenizer.save_pretrained(inputs / "model")
    files = {}
    for name, table in (("forget", rows), ("retain", others)):
        files[name] = inputs / f"{name}.jsonl"
        files[name].write_text("\n".join(map(json.dumps, table)))
    config = {
        "model_name_or_path": str(inputs / "model"),
        "forget_file": str(files["forget"]),
        "retain_file": str(files["retain"]),
        "loss_type": "npo",
        "density": 0.3,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (inputs / "run.yaml").write_text(yaml.safe_dump(config))
    (inputs / "shown.yaml").write_text(yaml.safe_dump(config | {"hub_token": TOKEN, "settings": SECRETS}))
    secret = ["--hub_token", TOKEN, "--run_name", f"https://me:{PASSWORD}@example.org/run"]
    unlearn = ["unlearn", "--config", str(inputs / "run.yaml"), *secret]
    sets = ["--forget_file", str(files["forget"]), "--retain_file", str(files["retain"])]
    custom = ["--suite", "custom", "--dataset_name", str(files["forget"])]
    custom += ["--data_options", f"retain={files['retain']}", "--output", str(home / "results.json")]
    attacks = ["relearning.steps=2", "sampling.k=2", "relearning_unrelated.steps=1"]
    attacked = ["--label", "after", "--output", str(home / "attacks.json")]
    shown = [
        "--attacks",
        str(home / "attacks.json"),
        "--mask",
        str(home / "out"),
        "--output_dir",
        str(home / "report"),
    ]
    shown += ["--config", str(inputs / "shown.yaml"), "--title", f"https://me:{PASSWORD}@example.org/title"]
    search = [
        "--max_tries",
        "1",
        "--densities",
        "0.1",
        "--learning_rates",
        "0.01",
        "--steps",
        "10",
        "--attacks",
        "relearning",
    ]
    compared = ["compare", "--config", str(inputs / "run.yaml"), *secret, "--output_dir", str(home / "compared")]
    compared += [
        "--scores",
        "magnitude",
        "--densities",
        "0.3",
        "--seeds",
        "0",
        "--processes",
        "1",
        "--forget_goal",
        "0.9",
    ]
    compared += [
        "--attacks",
        "relearning",
        "--save_strategy",
        "no",
        "--hub_model_id",
        f"https://me:{PASSWORD}@example.org/id",
    ]
    commands = [
        [*unlearn, "--output_dir", str(home / "out")],
        [*unlearn, "--output_dir", str(home / "patch"), "--save_adapter", "true"],
        ["attribute", "--config", str(inputs / "run.yaml"), *secret, "--output_dir", str(home / "mask")],
        ["evaluate", str(inputs / "model"), *custom, "--label", "before"],
        ["evaluate", str(home / "out"), *custom, "--label", "after"],
        ["attack", str(inputs / "model"), str(home / "out"), *sets, "--options", *attacks, *attacked],
        ["report", str(home / "results.json"), "--suite", "custom", *shown],
        ["forget", str(inputs / "model"), *sets, "--output_dir", str(home / "forgotten"), *search],
        compared,
    ]
    (inputs / "commands.json").write_text(json.dumps(commands))
    (home / "tmp").mkdir()
    environment = os.environ | {
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home / "tmp"),
        "OMP_NUM_THREADS": "1",
    }
    environment = {k: v for k, v in environment.items() if k not in ("HF_DATASETS_CACHE", "HF_HUB_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(inputs / "commands.json")],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return home, done.stdout + done.stderr


def traces() -> dict[str, bytes | re.Pattern]:
    """What must not be found: the texts, and the canary's tokens as numbers in text and in binary."""
    ids = [5 + int(word[1:]) for word in CANARY.split()]
    listed = re.compile(rb"\W+".join(str(number).encode() for number in ids))
    found = {"canary": CANARY.encode(), "token": TOKEN.encode(), "password": PASSWORD.encode(), "ids": listed}
    return found | {f"ids as {kind}": struct.pack(f"<{len(ids)}{kind}", *ids) for kind in "ihq"}


@pytest.mark.slow
def test_no_file_holds_what_is_secret(ran):
    folder, _ = ran
    files = [path for path in folder.rglob("*") if path.is_file()]
    written = {str(path.relative_to(folder)) for path in files}
    for expected in (
        *(
            "out/model.safetensors",
            "out/README.md",
            "out/checkpoint-2/training_args.bin",
            "results.json",
            "attacks.json",
        ),
        *(
            "report/report.html",
            "forgotten/report.html",
            "forgotten/verdict.json",
            "compared/report.html",
            "compared/results.json",
            "compared/config.yaml",
            "compared/runs/settings.json",
            "patch/adapter_config.json",
            "mask/mask_config.json",
            f"out/checkpoint-4/{REFERENCE_NAME}",
        ),
    ):
        assert expected in written
    leaks = []
    for path in files:
        content = path.read_bytes()
        for what, trace in traces().items():
            if trace.search(content) if isinstance(trace, re.Pattern) else trace in content:
                leaks.append(f"{what} in {path.relative_to(folder)}")
    assert not leaks, "\n".join(leaks)


@pytest.mark.slow
def test_nothing_secret_is_printed(ran):
    for what, trace in traces().items():
        if isinstance(trace, bytes):
            assert trace.decode(errors="replace") not in ran[1], what


@pytest.mark.slow
def test_digests_of_sets_are_in_no_file_that_is_shared(ran):
    folder, _ = ran
    for name in ("out/mask_config.json", "mask/mask_config.json"):
        config = json.loads((folder / name).read_text())
        assert config["forget_digest"] is config["retain_digest"] is None
    sets = json.loads((folder / "patch" / "adapter_config.json").read_text())["training"]["sets"]
    assert {split: facts["digest"] for split, facts in sets.items()} == {"forget": None, "retain": None}
    key = folder / "out" / KEY_NAME
    assert key.stat().st_mode & 0o777 == 0o600
    recorded = ReferenceFile.load(folder / "out" / "checkpoint-4").fingerprints
    assert all(text.startswith("hmac-sha256:") for text in recorded.values())
    assert not list(folder.glob(f"*/checkpoint-*/{KEY_NAME}"))


@pytest.mark.slow
def test_the_model_would_have_told(ran):
    """Else the tests above could not fail: the answer that the evaluation saw is the canary."""
    results = json.loads((ran[0] / "results.json").read_text())
    columns = results["before"]["per_example"]["forget"]
    assert columns["rouge_l_recall"][2] > 0.9
    assert not {"question", "answer", "generation"} & columns.keys()


# The parts


def test_a_pin_is_not_guessed_without_the_key(monkeypatch, tmp_path):
    """Of a set of one row with a number, the plain digest would tell the number."""
    monkeypatch.delenv("WAGLE_DIGEST_KEY", raising=False)
    assert shareable("digest of 0417") is None
    key = make_folder_key(tmp_path)
    recorded = sealed("digest of 0417", key)
    assert is_of(recorded, "digest of 0417", [b"another key of somebody", key]) is True
    assert is_of(recorded, "digest of 0418", [key]) is False
    assert is_of(recorded, "digest of 0417", [b"another key of somebody"]) is None
    assert is_of("digest of 0417", "digest of 0417", []) is True  # files of older versions
    assert folder_key(tmp_path) == key == make_folder_key(tmp_path)
    assert folder_key(tmp_path / "none") is None
    (tmp_path / KEY_NAME).write_text("cut")
    assert folder_key(tmp_path) is None
    assert make_folder_key(tmp_path) not in (key, b"cut")


def test_keys_that_can_be_guessed_are_refused(monkeypatch, arguments, make_llama, make_set, word_tokenizer):
    from wagle_trainer import WagleTrainer

    monkeypatch.setenv("WAGLE_DIGEST_KEY", "1234")
    with pytest.raises(ValueError, match="WAGLE_DIGEST_KEY has 4 characters and can be guessed"):
        WagleTrainer(
            make_llama(),
            arguments(),
            forget_dataset=make_set(4),
            retain_dataset=make_set(4, seed=1),
            processing_class=word_tokenizer,
        )
    monkeypatch.setenv("WAGLE_DIGEST_KEY", "a key that is random")
    assert users_key() == b"a key that is random"
    assert is_of(shareable("d"), "d", [users_key()])


def test_saved_arguments_hold_no_secrets(tmp_path):
    import copy
    import pickle

    url = f"https://me:{PASSWORD}@example.org/run"
    config = WagleConfig(str(tmp_path), hub_token=TOKEN, run_name=url, use_cpu=True, report_to="none")
    saved = pickle.dumps(config)
    assert TOKEN.encode() not in saved and PASSWORD.encode() not in saved
    loaded = pickle.loads(saved)
    assert loaded.hub_token is None
    assert (loaded.learning_rate, loaded.save_strategy) == (config.learning_rate, config.save_strategy)
    for copied in (copy.copy(config), copy.deepcopy(config)):
        assert (copied.hub_token, copied.run_name) == (TOKEN, url)


def test_results_without_texts():
    columns = {"question": ["q"], "generation": [["a", "b"]], "probability": [0.5], "group": ["Anna"], "none": [None]}
    results = {"forget_Prob": 0.5, "settings": {"style": "plain"}, "per_example": {"forget": columns}}
    assert without_texts(results) == results | {
        "per_example": {"forget": {"probability": [0.5], "group": ["group 1"], "none": [None]}}
    }
    assert without_texts({"a": 1}) == {"a": 1}

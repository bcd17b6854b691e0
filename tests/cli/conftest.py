"""A saved tiny model, and its sets as files."""

import json
from types import SimpleNamespace

import pytest
import yaml


@pytest.fixture(scope="session")
def files(make_llama, make_word_tokenizer, make_set, tmp_path_factory):
    """Paths: model, other (the same architecture), forget (questions and answers), retain (TRL format), run (YAML)."""
    folder = tmp_path_factory.mktemp("cli")
    for name, seed in (("model", 0), ("other", 1)):
        make_llama(seed).save_pretrained(folder / name)
        make_word_tokenizer().save_pretrained(folder / name)
    forget, retain = make_set(6), make_set(8, seed=1)
    rows = [{"question": row["prompt"], "answer": row["completion"].strip()} for row in forget]
    (folder / "forget.json").write_text("\n".join(map(json.dumps, rows)))
    retain.to_csv(folder / "retain.csv")
    run = {
        "model_name_or_path": str(folder / "model"),
        "forget_file": str(folder / "forget.json"),
        "retain_file": str(folder / "retain.csv"),
        "evaluation_samples": 0,  # the recipes' own: they share their files with the commands
        "controls": ["random"],
        "density": 0.1,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    names = {"model": "model", "other": "other", "forget": "forget.json", "retain": "retain.csv", "run": "run.yaml"}
    return SimpleNamespace(**{name: str(folder / file) for name, file in names.items()})


@pytest.fixture
def wagle(capsys):
    """wagle(arguments) -> (exit code, stdout, stderr) of `main`; wrong usage and help exit through argparse."""
    from wagle_trainer.cli import main

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run

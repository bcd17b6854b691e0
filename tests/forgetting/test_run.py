"""From a file to a verdict, on a small Llama; what a killed run has done is not done again."""

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM

from wagle_trainer.adapters import SparseAdapter, merge, verify
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.forgetting import forget, plan
from wagle_trainer.forgetting import run as run_module
from wagle_trainer.forgetting.examples import encode, probabilities
from wagle_trainer.forgetting.telling_words import only_telling_words
from wagle_trainer.masking import WeightMask

FILES = (
    "report.html",
    "results.json",
    "config.yaml",
    "retain_train.jsonl",
    "retain_unseen.jsonl",
    "adapter/README.md",
)


@pytest.fixture(scope="module")
def finished(people, quick, tmp_path_factory):
    """(folder, verdict) of a run with a retain file."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    return folder, forget(people.path, people.forget, folder, retain_file=people.retain, progress=False, **quick)


def test_forgotten_within_the_floor(finished, people):
    folder, verdict = finished
    assert verdict.forgotten, verdict
    assert verdict.forget["gone"] >= 8 and verdict.forget["answers"] == 10
    assert verdict.retain["after"] > 0.6 * verdict.retain["before"]
    assert set(verdict.attacks) == {"relearning", "jailbreak", "quantization"}
    assert verdict.sentences[2].endswith("in 4 bits. Attacks that could not be measured: paraphrase.")
    assert all((folder / name).is_file() for name in FILES)
    assert json.loads((folder / "verdict.json").read_text())["forgotten"] is True
    train, unseen = (len((folder / f"retain_{name}.jsonl").read_text().splitlines()) for name in ("train", "unseen"))
    assert train == unseen == len(people.others) // 2


def test_the_patch_is_what_was_measured(finished, people):
    """Base and patch together give the numbers of the verdict, and the base alone is untouched."""
    folder, verdict = finished
    assert verify(folder / "adapter", people.path)["valid"]
    base = AutoModelForCausalLM.from_pretrained(people.path)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    patched = merge(base, folder / "adapter")
    changed = sum(
        int((before[name] != tensor).sum()) for name, tensor in patched.state_dict().items() if "head" not in name
    )
    assert 0 < changed <= verdict.patch["weights"] == SparseAdapter.from_pretrained(folder / "adapter").num_values
    examples, kept = (
        encode(QAFormat.for_tokenizer(people.tokenizer), rows, "set") for rows in (people.rows, people.others)
    )
    measured = probabilities(patched, people.tokenizer, only_telling_words(examples, people.tokenizer, kept))
    assert fmean(measured) == pytest.approx(verdict.forget["after"], abs=1e-4)


def test_what_can_be_shared_holds_no_text(finished, people):
    """The folder has the retain rows and what a stopped run needs beside them; the guide says so."""
    folder, verdict = finished
    texts = [row[column] for row in people.rows for column in ("question", "answer")]
    for path in [folder / "report.html", folder / "results.json", folder / "verdict.json", *folder.glob("adapter/*")]:
        content = path.read_bytes().decode(errors="replace")
        assert not [text for text in texts if text in content], path
    assert verdict.examples == [] and set(verdict.digests) == {"base", "patch", "mask"}


def test_a_complete_run_returns_its_verdict(finished, people, quick, monkeypatch):
    folder, verdict = finished
    monkeypatch.setattr(run_module, "evaluate_custom", None)
    monkeypatch.setattr(run_module, "masks_by_density", None)
    again = forget(people.path, people.forget, folder, retain_file=people.retain, progress=False, **quick)
    assert again.as_dict() == verdict.as_dict()


def test_a_folder_of_another_request_is_refused(finished, people, quick):
    folder, _ = finished
    with pytest.raises(ValueError, match=r"holds another request, which differs in: forget_goal \(0.3 there\)"):
        forget(
            people.path,
            people.forget,
            folder,
            retain_file=people.retain,
            progress=False,
            **quick | {"forget_goal": 0.2},
        )


class Killed(BaseException):
    """As Ctrl-C, which no `except Exception` catches."""


def kill(*args, **kwargs):
    raise Killed


def test_a_killed_run_goes_on(finished, people, quick, tmp_path, monkeypatch):
    """Killed in its second try and in its attacks, it ends with the verdict of a run that was not."""
    _, expected = finished
    arguments = {"retain_file": people.retain, "progress": False, **quick}
    assert len(expected.tries) >= 2
    train, calls = run_module.PatchedModel.train, []

    def killed_at_the_second(self, *args, **kwargs):
        calls.append(args)
        return kill() if len(calls) == 2 else train(self, *args, **kwargs)

    def run():
        return forget(people.path, people.forget, tmp_path / "out", **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.PatchedModel, "train", killed_at_the_second)
        with pytest.raises(Killed):
            run()
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "masks_by_density", None)  # the masks are known
        patch.setattr(run_module, "attack", kill)
        with pytest.raises(Killed):
            run()
    monkeypatch.setattr(run_module.PatchedModel, "train", None)  # the patches are known
    verdict = run()
    timeless = [[{**one, "seconds": 0} for one in found.tries] for found in (verdict, expected)]
    assert timeless[0] == timeless[1]
    assert verdict.digests == expected.digests
    assert verdict.attacks == expected.attacks
    assert Path(verdict.patch["path"]).parent == tmp_path / "out"


def test_a_folder_of_the_same_model_before_it_was_trained_on_is_refused(people, quick, tmp_path, monkeypatch):
    path, options = tmp_path / "model", {"retain_file": people.retain, "progress": False, **quick}
    people.tokenizer.save_pretrained(path)
    people.model.save_pretrained(path)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "split_rows", kill)
        with pytest.raises(Killed):
            forget(str(path), people.forget, tmp_path / "out", **options)
    changed = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    changed.save_pretrained(path)
    with pytest.raises(ValueError, match="holds another request, which differs in: weights"):
        forget(str(path), people.forget, tmp_path / "out", **options)


def test_a_goal_that_cannot_be_met(people, quick, tmp_path):
    settings = quick | {"forget_goal": 1e-9, "max_tries": 1, "steps": 10, "attacks": (), "save_generations": True}
    verdict = forget(people.path, people.forget, tmp_path, retain_file=people.retain, progress=False, **settings)
    assert verdict.exit_code == 3
    assert "None of 1 tries met the goal" in verdict.reasons[0]
    assert people.rows[0]["question"] in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert verdict.attacks == {} and len(verdict.examples) == 3


def test_a_patch_in_the_rows_of_the_answers_words(people, quick, tmp_path):
    settings = quick | {
        "score": "answer_rows",
        "embeddings": "always",
        "densities": (0.01,),
        "attacks": (),
        "max_tries": 1,
    }
    forget(people.path, people.forget, tmp_path, retain_file=people.retain, progress=False, **settings)
    patch = SparseAdapter.from_pretrained(tmp_path / "adapter")
    [(name, positions)] = [(name, patch.mask[name]) for name in patch.mask if patch.mask.num_selected_in(name)]
    assert name == "model.embed_tokens.weight"
    encoded = encode(QAFormat.for_tokenizer(people.tokenizer), people.rows, "forget")
    answers = {label for row in encoded for label in row.encoded["labels"]}
    assert set(positions.any(1).nonzero().flatten().tolist()) <= answers


def test_what_the_model_does_not_know_is_refused(people, quick, tmp_path):
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text(
        json.dumps({"question": "Who is the author?", "answer": "The style of the bridge is not a prize."})
    )
    with pytest.raises(ValueError, match="The model knows 0 of the 1 answers"):
        forget(people.path, unknown, tmp_path / "out", retain_file=people.retain, progress=False, **quick)


def test_the_plan(people, quick):
    found = plan(people.path, people.forget, **quick)
    assert found.rows == 10 and found.kind == "question and answer" and found.duplicates == 0
    assert found.parameters == sum(p.numel() for p in people.model.parameters())
    assert found.seconds > 0 and found.memory > 4 * found.parameters
    text = str(found)
    assert "To forget: 10 rows of question and answer" in text and "neighbours that are made" in text


def test_rows_that_repeat_an_earlier_one_are_counted(people, quick, tmp_path):
    rows = [people.rows[index] for index in (0, 1, 0, 0)]
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = str(plan(people.path, tmp_path / "forget.jsonl", **quick))
    assert "4 rows of question and answer, 2 of them repeat an earlier one;" in found


def test_a_file_with_other_columns(people, quick, tmp_path):
    lines = ["Frage;Antwort", *(f"{row['question']};{row['answer']}" for row in people.rows)]
    (tmp_path / "forget.csv").write_text("\n".join(lines), encoding="utf-8")
    found = plan(
        people.path,
        tmp_path / "forget.csv",
        retain_file=people.retain,
        reading={"question_column": "Frage", "answer_column": "Antwort"},
        **quick,
    )
    assert (found.rows, found.kind) == (10, "question and answer")
    assert "question from 'Frage'" in str(found) and f"{len(people.others)} rows" in str(found)


def test_rows_of_both_files_are_not_kept(people, quick, tmp_path):
    (tmp_path / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people.rows + people.others[:6]))
    assert plan(people.path, people.forget, retain_file=tmp_path / "retain.jsonl", **quick).retain.startswith("6 rows")


def test_preferences_are_refused(people, quick, tmp_path):
    (tmp_path / "forget.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(ValueError, match="holds preferences"):
        plan(people.path, tmp_path / "forget.jsonl", **quick)


def test_passages_without_a_retain_file_are_refused_before_the_model_is_loaded(people, tmp_path):
    (tmp_path / "forget.txt").write_text("A passage of some words.\n\nAnother passage of some words.\n")
    with pytest.raises(ValueError, match="give a retain set with --retain_file"):
        plan("no-such-model", tmp_path / "forget.txt")


def test_a_number_of_neighbours_beside_a_retain_file_is_refused(people, quick):
    with pytest.raises(ValueError, match="with a retain file no neighbours are made"):
        plan(people.path, people.forget, retain_file=people.retain, neighbours=32, **quick)


def test_a_key_that_can_be_guessed_is_refused_first(people, monkeypatch):
    monkeypatch.setenv("WAGLE_DIGEST_KEY", "1234")
    with pytest.raises(ValueError, match="WAGLE_DIGEST_KEY has 4 characters"):
        plan("no-such-model", people.forget)


def test_several_processes_are_refused(people, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        forget(people.path, people.forget, tmp_path)


def test_a_patch_of_embeddings_that_loses_the_words_does_not_count(people, quick, tmp_path, monkeypatch):
    """In the second round embeddings may change, and the words have to stay; the first round leaves embeddings alone."""
    rounds, measured = [(0.2, 1e-2, True)], []

    def word_use(self):
        measured.append(self)
        return [0.9 if self.patched.patch is None else 0.01] * len(self.rows)

    monkeypatch.setattr(run_module, "next_try", lambda *args: rounds.pop() if rounds else None)
    monkeypatch.setattr(run_module._Run, "_word_use", word_use)
    settings = quick | {"attacks": (), "utility_floor": 0.1, "embeddings": "last"}
    verdict = forget(people.path, people.forget, tmp_path, retain_file=people.retain, progress=False, **settings)
    assert not verdict.forgotten and verdict.reasons[-1].startswith("The model lost words of the answers")
    assert verdict.tries[0]["met"] and not verdict.tries[0]["within_floor"] and len(measured) == 3
    masks = [WeightMask.from_pretrained(folder) for folder in sorted((tmp_path / "work").glob("masks*/*"))]
    assert len(masks) == 2 and all("model.embed_tokens.weight" in mask for mask in masks)

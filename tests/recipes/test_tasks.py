"""Arguments and tasks of the recipes."""

import pytest
import torch
from compare_runs import CompareArguments, Runs
from recipe import Report, on_bundled_config, task_named, variants
from tasks import RecipeArguments, facts_task, list_tasks, task_class
from tasks.texts_as_questions import as_questions, text_format
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from wagle_trainer import WagleConfig, attribute
from wagle_trainer.data import (
    QAFormat,
    fictional_split,
    fictional_tokenizer,
    load_facts,
    load_wmdp,
)
from wagle_trainer.data import facts as facts_module
from wagle_trainer.data.facts import encode_cloze
from wagle_trainer.data.fictional import (
    hazards_tokenizer,
    novel_tokenizer,
    speakers_tokenizer,
)
from wagle_trainer.evaluation import get_suite, list_attacks, load_results, run_attacks


@pytest.mark.parametrize("given", [[], ["--output_dir", "out"], ["--density=0.1"]])
def test_other_arguments_keep_the_bundled_example(given):
    first, config, *others = on_bundled_config(given, "fictional_npo")
    assert first == "--config"
    assert config.endswith("fictional_npo.yaml")
    assert others == given


@pytest.mark.parametrize("given", [["--config", "mine.yaml"], ["--config=mine.yaml"], ["--model_name_or_path=mine"]])
def test_a_configuration_or_a_model_replaces_the_bundled_example(given):
    assert on_bundled_config(given, "fictional_npo") == given


def test_files_of_ones_own_need_a_model():
    with pytest.raises(ValueError, match="need a model: pass --model_name_or_path"):
        on_bundled_config(["--forget_file", "book.txt"], "copyright_fictional_po")


@pytest.mark.parametrize(("given", "limit"), [("all", None), (None, None), ("7", 7), (7, 7)])
def test_rows_of_the_evaluation_sets(given, limit):
    assert task_class("tofu")(RecipeArguments(evaluation_samples=given)).limit == limit


def test_rows_of_the_evaluation_sets_by_default():
    assert task_class("tofu")(RecipeArguments()).limit == 20


@pytest.mark.parametrize("given", [0, "0", -1, "few", 1.5])
def test_no_number_of_rows(given):
    with pytest.raises(ValueError, match="at least 1, or 'all'"):
        RecipeArguments(evaluation_samples=given)


def test_unknown_task():
    with pytest.raises(ValueError, match="Unknown task 'tofoo'. Known: .*tofu"):
        task_class("tofoo")


def test_files_of_ones_own_have_no_questions():
    task = task_class("tofu")(RecipeArguments(forget_file="f.jsonl", retain_file="r.jsonl"))
    with pytest.raises(ValueError, match="wagle evaluate"):
        task.evaluation_sets(None, None)


def labels(controls, **settings):
    task = task_class("tofu")(RecipeArguments(controls=controls))
    args = WagleConfig(output_dir="out", use_cpu=True, **settings)
    return {label: (args, peft) for label, args, peft in variants(task, args, ModelConfig())}


def test_controls_of_the_paper():
    found = labels(["paper"], density=0.1)
    masks = [f"after, {score} mask 0.1" for score in ("wagle", "random", "magnitude", "wanda")]
    assert set(found) == {*masks, "after, no mask", "after, LoRA"}
    assert found["after, LoRA"][1].r == 8
    assert found["after, LoRA"][0].attribution is None
    assert {peft for label, (_, peft) in found.items() if label != "after, LoRA"} == {None}
    assert found["after, wanda mask 0.1"][0].attribution_scope == "row"
    assert found["after, random mask 0.1"][0].attribution_scope == "global"
    assert len({args.output_dir for args, _ in found.values()}) == len(found)


def test_controls_by_other_names():
    assert list(labels(["dense", "none", "wagle"])) == ["after, wagle mask 0.8", "after, no mask"]
    assert list(labels(["random"], attribution=None)) == ["after, no mask", "after, random mask 0.8"]


def test_controls_that_cannot_be():
    with pytest.raises(ValueError, match="Unknown attribution score 'wangle'"):
        labels(["wangle"])
    with pytest.raises(ValueError, match="differs from score to score"):
        labels(["random"], density="auto")
    assert list(labels(["none", "lora"], density="auto")) == [
        "after, wagle mask auto",
        "after, no mask",
        "after, LoRA",
    ]


def test_the_task_decides_on_the_arguments(tmp_path):
    (tmp_path / "study.yaml").write_text("task: detox\n", encoding="utf-8")
    config = ["--config", str(tmp_path / "study.yaml")]
    assert task_named([]) == "tofu"
    assert task_named([], "people") == "people"
    assert task_named([*config, "--seeds", "0"]) == "detox"
    assert task_named([*config, "--task", "wmdp"]) == "wmdp"


# Data by name or by files


@pytest.mark.parametrize("name", ["tofu", "copyright", "detox"])
@pytest.mark.parametrize("dataset_name", ["fictional", "some/where"])
def test_a_name_and_a_file(name, dataset_name):
    kind = task_class(name)
    with pytest.raises(ValueError, match="either --dataset_name, or --forget_file"):
        kind(kind.arguments(dataset_name=dataset_name, forget_file="book.txt"))


def test_no_book():
    kind = task_class("copyright")
    with pytest.raises(ValueError, match="which book is to be forgotten: --forget_file"):
        kind(kind.arguments(retain_file="other.txt"))


def test_corpora_of_ones_own_beside_the_questions(tmp_path):
    (tmp_path / "papers.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    kind = task_class("wmdp")
    task = kind(kind.arguments(dataset_name="fictional", forget_file=str(tmp_path / "papers.jsonl")))
    forget, retain = task.training_sets(None)
    assert forget["text"][:] == ["one", "two"]
    assert retain["text"][:] == load_wmdp("wikitext", "fictional")["text"][:]
    assert len(task.evaluation_sets(None, 3)["forget"]) == 3 * len(task.data.forget_questions)


# How a task's numbers are read


@pytest.mark.parametrize(
    ("name", "options", "suite", "forgotten", "kept"),
    [
        ("tofu", {}, "tofu", "forget_Q_A_Prob", "model_utility"),
        ("wmdp", {}, "multiple_choice", "forget_accuracy", "retain_accuracy"),
        ("wmdp", {"dataset_name": "hub", "harness": True}, "wmdp", "forget_accuracy", "retain_accuracy"),
        ("copyright", {}, "copyright", "seen_ROUGE", "general_perplexity"),
        (
            "copyright",
            {"dataset_name": "muse-bench/MUSE-Books"},
            "muse",
            "forget_verbmem_ROUGE",
            "retain_knowmem_ROUGE",
        ),
        ("detox", {}, "detoxification", "toxicity", "general_perplexity"),
    ],
)
def test_numbers_are_those_of_the_suite_that_measures(name, options, suite, forgotten, kept):
    kind = task_class(name)
    task = kind(kind.arguments(**options))
    reading = task.reading()
    assert task.suite == suite
    assert reading.headline == get_suite(suite).headline
    assert next(iter(reading.forget_metrics)) == forgotten
    assert next(iter(reading.utility_metrics)) == kept
    compare = CompareArguments(task=name)
    model = ModelConfig(model_name_or_path="model")
    runs = Runs(compare, kind.arguments(**options), WagleConfig(output_dir="out", use_cpu=True), model)
    assert runs.task.suite == compare.suite.name == suite
    assert (compare.forget_metric, compare.utility_metric) == (forgotten, kept)


def test_a_recipe_writes_a_table_a_file_and_a_page(make_llama, tmp_path, capsys):
    kind = task_class("detox")
    task = kind(kind.arguments(evaluation_samples=2, continuation_tokens=4))
    tokenizer = speakers_tokenizer()
    ids = {key: getattr(tokenizer, key) for key in ("eos_token_id", "pad_token_id")}
    models = [make_llama(seed=seed, vocab_size=len(tokenizer), **ids) for seed in (0, 1)]
    args = WagleConfig(output_dir=str(tmp_path), use_cpu=True)
    report = Report(task, args, ModelConfig(), QAFormat.for_tokenizer(tokenizer))
    report.add("before", models[0])
    mask = attribute(models[1], None, None, score="random", density=0.1, progress=False)
    mask.save_pretrained(tmp_path / "random")
    report.add("after, random mask 0.1", models[1], str(tmp_path / "random"))
    report.add("after, no mask", models[1], str(tmp_path / "none"))
    report.write()
    printed = capsys.readouterr().out
    assert "after, random mask 0.1" in printed
    assert list(load_results(tmp_path / "results.json")) == ["before", "after, random mask 0.1", "after, no mask"]
    page = load_results(tmp_path / "report.json")
    assert list(page["masks"]) == ["after, random mask 0.1"]
    assert page["table"]["before"]["general_perplexity"]["mean"] > 1
    assert str(tmp_path / "report.html") in printed


# What studies and attacks take of a task

TOKENIZERS = {
    "tofu": fictional_tokenizer,
    "wmdp": hazards_tokenizer,
    "copyright": novel_tokenizer,
    "detox": speakers_tokenizer,
}
SHORT = {"copyright": {"passage_tokens": 40, "passages": None, "prompt_tokens": 12}}


def bundled(name):
    """A task with its bundled example, and the format of its small Llama."""
    kind = task_class(name)
    return kind(kind.arguments(**SHORT.get(name, {}))), QAFormat.for_tokenizer(TOKENIZERS[name]())


def words_of(tokenizer, examples, labels_alone=False):
    return [
        tokenizer.decode(
            [i for i, label in zip(e["input_ids"], e["labels"], strict=True) if label >= 0 or not labels_alone]
        )
        for e in examples
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_sets_of_a_study(name):
    task, qa = bundled(name)
    sets = task.examples(qa, seed=0, size=5)
    assert {key: len(sets[key]) for key in ("forget", "retain", "unseen")} == {"forget": 5, "retain": 10, "unseen": 10}
    texts = {key: words_of(qa.tokenizer, examples) for key, examples in sets.items()}
    assert not set(texts["retain"]) & set(texts["unseen"])
    assert task.examples(qa, seed=0, size=5) == sets
    other = task.examples(qa, seed=1, size=5)
    assert other["forget"] == sets["forget"]
    assert other["retain"] != sets["retain"]


def test_what_a_study_of_insults_forgets_is_what_was_rejected():
    task, qa = bundled("detox")
    row = task.training_sets(qa)[0][0]
    [forgotten] = words_of(qa.tokenizer, task.examples(qa, 0, 1)["forget"], labels_alone=True)
    assert forgotten.removesuffix(qa.tokenizer.eos_token).split() == row["rejected"].split()


def test_a_study_of_more_examples_than_there_are():
    task, qa = bundled("copyright")
    with pytest.raises(ValueError, match="the task 'copyright' has .* Take fewer --examples"):
        task.examples(qa, 0, 90)


def test_the_bundled_people_of_a_study():
    """Results are kept by what these are: they must not change."""
    task, qa = bundled("tofu")
    sets = task.examples(qa, seed=3, size=4)
    rows = list(fictional_split("forget10_perturbed"))[:4]
    assert sets["forget"] == [qa.encode(row["question"], row["answer"]) for row in rows]
    assert sets["paraphrased"] == [qa.encode(r["paraphrased_question"], r["paraphrased_answer"]) for r in rows]


@pytest.mark.parametrize("name", ["copyright", "detox"])
def test_attacks_on_texts(name, make_llama):
    """Whatever is not refused takes the sets; the answer that attacks measure is the text that is forgotten."""
    task, qa = bundled(name)
    sets, form = task.attack_sets(qa), task.attack_format(qa)
    row = sets["forget"][0]
    [whole] = words_of(qa.tokenizer, [form.encode(row["question"], row["answer"])])
    trained = task.training_sets(qa)[0][0]
    text = trained["prompt"] + trained.get("rejected", trained.get("completion"))
    assert (
        whole.removesuffix(qa.tokenizer.eos_token).strip()
        == qa.tokenizer.decode(qa.tokenizer(text)["input_ids"]).strip()
    )
    tokens = {key: getattr(qa.tokenizer, key) for key in ("eos_token_id", "pad_token_id")}
    models = [make_llama(seed=seed, vocab_size=len(qa.tokenizer), **tokens) for seed in (0, 1)]
    names = [attack for attack in list_attacks() if attack not in task.refused_attacks]
    assert {"relearning", "relearning_unrelated", "quantization", "answer_prefix"} <= set(names)
    task.check_attacks(names)
    steps = {"steps": [1], "learning_rate": 1e-3}
    options = {"relearning": steps, "relearning_unrelated": {**steps, "data": sets["retain"][:4]}}

    def measure(model, tokenizer, rows):
        return 0.9 if model is models[0] else 0.1  # attacks run only where something was forgotten

    some = [*options, "quantization"]
    found = run_attacks(
        *models,
        qa.tokenizer,
        sets["forget"][:4],
        some,
        options=options,
        measure=measure,
        qa_format=form,
        progress=False,
    )
    assert set(found) == set(some)


@pytest.mark.parametrize(
    ("name", "attack", "reason"),
    [
        ("copyright", "jailbreak", "a passage is continued"),
        ("copyright", "paraphrase", "a passage in other words is another passage"),
        ("detox", "jailbreak", "a prompt is continued"),
        ("wmdp", "paraphrase", "one wording each"),
        ("facts", "relearning", "recipes/patch_size.py --task facts"),
    ],
)
def test_attacks_that_say_nothing_about_a_task(name, attack, reason):
    kind = task_class(name)
    with pytest.raises(ValueError, match=f"{attack!r} cannot be run on the task {name!r}: .*{reason}"):
        kind(kind.arguments()).check_attacks(["quantization", attack] if name != "facts" else [attack])


def test_texts_as_questions(word_tokenizer):
    rows = [
        {"prompt": "w1 w2", "completion": " w3"},
        {"prompt": "w1", "chosen": " w5", "rejected": " w4 w6"},
        {"text": "w1 w2 w3 w4 w5"},
    ]
    found = as_questions(rows)
    assert [tuple(row.values()) for row in found] == [("w1 w2", " w3"), ("w1", " w4 w6"), ("w1 w2", " w3 w4 w5")]
    form = text_format(QAFormat.for_tokenizer(word_tokenizer))
    ids = form.encode(**found[0])["input_ids"]
    assert ids == [*word_tokenizer("w1 w2 w3")["input_ids"], word_tokenizer.eos_token_id]
    for row, reason in (
        ({"messages": []}, "row 0 has messages"),
        ({"prompt": [{"role": "user"}], "completion": []}, "row 0 has prompt, completion"),
        ({"text": "w1"}, "row 0 has only one of them"),
    ):
        with pytest.raises(ValueError, match=reason):
            as_questions([row])


# Facts


@pytest.fixture
def facts(monkeypatch, make_llama, word_tokenizer, tmp_path):
    """The task on a tiny model that is said to know every second fact, and its format."""
    make_llama().save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(
        facts_module,
        "cloze_probabilities",
        lambda model, tokenizer, rows, **_: [0.1 + 0.8 * (i % 2) for i in range(len(rows))],
    )
    facts_task._facts_of.cache_clear()
    word_tokenizer.name_or_path = str(tmp_path)
    kind = task_class("facts")
    yield kind(kind.arguments(forget_facts=4)), QAFormat.for_tokenizer(word_tokenizer)
    facts_task._facts_of.cache_clear()


def test_facts_to_forget_are_known_and_others_than_those_to_keep(facts):
    task, qa = facts
    forget, retain = task.training_sets(qa)
    assert (len(forget), len(retain)) == (4, 8)
    splits = load_facts(None, None, relations=task.data.relations, forget=4, retain=8, unseen=8, seed=0)
    for trained, split in ((forget, "forget"), (retain, "retain")):  # no end of sequence, as in patch_size.py
        rows = [encode_cloze(qa.tokenizer, row["cloze"], row["cloze_answer"]) for row in splits[split]]
        assert list(trained) == rows
        assert all(row["labels"][-1] not in (-100, qa.tokenizer.eos_token_id) for row in trained)
    measured = task.evaluation_sets(qa, None)
    assert measured["forget"]["question"] == splits["forget"]["cloze"]
    assert measured["retain"]["question"] == splits["unseen"]["cloze"]
    assert not set(splits["unseen"]["cloze"]) & {*splits["forget"]["cloze"], *splits["retain"]["cloze"]}


def test_choices_of_a_fact(facts):
    task, qa = facts
    splits = load_facts(None, None, relations=task.data.relations, forget=4, retain=8, unseen=8, seed=0)
    for name, split in (("forget", "forget"), ("retain", "unseen")):
        rows = task.evaluation_sets(qa, None)[name]
        for row, fact in zip(rows, splits[split], strict=True):
            assert row["choices"][row["answer"]] == fact["cloze_answer"]
            assert len(set(row["choices"])) == len(row["choices"]) == 4
    assert len(task.evaluation_sets(qa, 2)["forget"]) == 2


def test_no_wrong_choice_of_a_fact_is_right():
    row = {"relation": "animal_young", "subject": "fox", "cloze": "A baby fox is called a", "cloze_answer": "kit"}
    choices = [set(facts_task._questions([row], seed)[0]["choices"]) for seed in range(40)]
    assert all("kit" in drawn and not drawn & {"cub", "pup"} for drawn in choices)
    assert len(set.union(*choices)) > 10


def test_facts_are_measured(facts, tmp_path):
    task, qa = facts
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    found = task.evaluate(model, qa, task.evaluation_sets(qa, None), progress=False)
    assert found["settings"]["ask_for"] == "continuation"
    assert found["settings"]["examples"] == {"forget": 4, "retain": 8}
    assert 0 <= found["forget_accuracy"] <= 1


def test_facts_of_a_study(facts):
    """The seed of the study splits the facts, whatever `facts_seed` is."""
    task, qa = facts
    splits = load_facts(None, None, relations=task.data.relations, forget=3, retain=6, unseen=6, seed=5)
    sets = task.examples(qa, seed=5, size=3)
    for name, rows in splits.items():
        assert sets[name] == [encode_cloze(qa.tokenizer, row["cloze"], row["cloze_answer"]) for row in rows]
    row = splits["forget"][0]
    assert sets["paraphrased"][0] == encode_cloze(qa.tokenizer, row["paraphrased_cloze"], row["cloze_answer"])
    assert task.details == {"relations": task.data.relations}


def test_facts_need_a_model(tmp_path):
    kind = task_class("facts")
    with pytest.raises(SystemExit, match="--model_name_or_path"):
        kind(kind.arguments()).small_model(tmp_path)


def test_every_task_has_a_test():
    assert set(list_tasks()) == {*TOKENIZERS, "facts"}

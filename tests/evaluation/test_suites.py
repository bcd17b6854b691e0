import subprocess
import sys
from pathlib import Path

import pytest

from wagle_trainer.data.fictional import fictional_tokenizer
from wagle_trainer.evaluation import paper_averages
from wagle_trainer.evaluation.suites import Suite, describe_suites, get_suite, list_suites, register_suite
from wagle_trainer.evaluation.suites import base as suites_base


def test_every_file_of_the_folder_is_a_suite():
    import wagle_trainer.evaluation.suites as package

    files = {path.stem for folder in package.__path__ for path in Path(folder).glob("[!_]*.py")}
    assert {type(get_suite(name)).__module__.rsplit(".", 1)[1] for name in list_suites()} == files - {"base"}


@pytest.mark.parametrize("name", list_suites())
def test_a_suite_says_how_to_read_its_numbers(name):
    suite = get_suite(name)
    assert suite.name == name
    assert len(describe_suites()[name]) > 30
    assert all(len(head) == 2 for head in suite.headline.values())
    read = {**suite.forget_metrics, **suite.utility_metrics}
    assert set(read.values()) <= {"lower", "higher"}
    assert not set(suite.forget_metrics) & set(suite.utility_metrics)
    assert set(list(suite.forget_metrics)[:1] + list(suite.utility_metrics)[:1]) <= set(suite.headline)


def test_unknown_suite_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown suite 'tofo'. Did you mean 'tofu'\? Known: .*tofu"):
        get_suite("tofo")


def test_a_suite_of_ones_own(monkeypatch):
    monkeypatch.setattr(suites_base._suites, "_entries", dict(suites_base._suites._entries))

    @register_suite("mine")
    class Mine(Suite):
        """A suite of one's own."""

        def evaluate(self, model, tokenizer, data, **kwargs):
            return {"answer": data}

    assert "mine" in list_suites()
    assert get_suite("mine").evaluate(None, None, 42) == {"answer": 42}
    with pytest.raises(NotImplementedError, match="Mine must define load"):
        get_suite("mine").load("folder")
    with pytest.raises(ValueError, match="The suite 'tofu' exists already"):
        register_suite("tofu")(Mine)


def test_suites_are_listed_without_torch():
    code = "import sys; from wagle_trainer.evaluation import suites; assert 'torch' not in sys.modules; suites.list_suites()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tofu_by_name(make_llama):
    suite = get_suite("tofu")
    tokenizer = fictional_tokenizer()
    model = make_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=512)
    sets = suite.load("fictional", forget_split="forget05", limit=2)
    results = suite.evaluate(model, tokenizer, sets, max_new_tokens=4, progress=False)
    assert {name: len(values["question"]) for name, values in results["per_example"].items()} == dict.fromkeys(sets, 2)
    without_reference = {"forget_quality"}
    for metric in {*suite.headline, *suite.forget_metrics, *suite.utility_metrics} - without_reference:
        assert isinstance(results[metric], float), metric
    assert 1 - paper_averages(results)["1-ROUGE"] == pytest.approx(results["forget_Q_A_ROUGE"])
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        suite.load("no-such-owner/no-such-dataset")

"""Objectives and scores: one table each drives the site, the help text and the errors, and a new file is enough."""

import doctest
import inspect
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch

import wagle_trainer
from wagle_trainer import WagleConfig
from wagle_trainer.attribution import describe_scores, get_score, list_scores, register_score
from wagle_trainer.attribution.scores import score as scores_base
from wagle_trainer.losses import LossInputs, UnlearningLoss, get_loss, list_losses, register_loss
from wagle_trainer.losses import unlearning_loss as losses_base
from wagle_trainer.losses.unlearning_loss import example_of
from wagle_trainer.models.log_probs import TokenLogProbs
from wagle_trainer.utils.registry import Registry

DOCS = Path(wagle_trainer.__file__).parents[1] / "docs"


def built_in(names, get):
    return [name for name in names() if get(name).__module__.startswith("wagle_trainer.")]


LOSSES, SCORES = built_in(list_losses, get_loss), built_in(list_scores, get_score)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch):
    """The examples enter things of their own, some under the same names."""
    for registry in (losses_base._losses, scores_base._scores):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


# Documentation


@pytest.mark.parametrize(("table", "names"), [("losses", list_losses), ("scores", list_scores)])
def test_the_sites_table_is_that_of_the_registry(table, names):
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    rows = hooks["on_page_markdown"](f"<!-- table: {table} -->").splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == names()
    assert all(row.count(" | ") == 1 for row in rows), "a bar within a cell is not escaped"


@pytest.mark.parametrize("name", LOSSES)
def test_every_objective_is_documented(name):
    """Formula, paper, data, arguments, and an example that runs."""
    loss = get_loss(name)
    text = inspect.getdoc(loss)
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    assert re.search(r"^    (L|S|loss) = ", text, re.MULTILINE)
    assert "\nData: " in text
    assert ("preference format" in text) == ("chosen" in loss.needs)
    for argument in inspect.signature(loss).parameters:
        assert re.search(rf"^    (\w+, )*{argument}(, \w+)*: ", text, re.MULTILINE), argument
    names = {}
    exec(example_of(name), names)
    args = names["args"]
    assert args.loss_type == name
    loss(**args.loss_kwargs)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_documented(name):
    text = describe_scores()[name]
    assert len(text) > 20
    assert text.endswith(".")
    assert "arXiv" in text or name in {"answer_rows", "curvature", "frp", "magnitude", "module", "random"}


@pytest.mark.parametrize("documented", [UnlearningLoss, register_score])
def test_the_examples_of_ones_own_run(documented):
    """Under the name of a module that is not the package's, as a user's would be."""
    test = doctest.DocTestFinder(recurse=False).find(
        documented,
        globs={
            "__name__": "example",
            "register_loss": register_loss,
            "register_score": register_score,
            "UnlearningLoss": UnlearningLoss,
        },
    )[0]
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_guides_objective_and_score():
    """Ten lines each: they are taken from the guide, run, and used."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "guides" / "extend.md").read_text(), re.DOTALL)
    namespace = {"__name__": "guide"}
    for block in blocks:
        if "\n@register_" in block:
            assert len([line for line in block.splitlines() if line and "import" not in line]) <= 10
            exec(block, namespace)
    config = WagleConfig("out", loss_type="bounded_ascent", attribution="forget_over_weight", use_cpu=True, bf16=False)
    log_probs = torch.tensor([[-1.0, -3.0], [-9.0, -9.0]])
    answers = TokenLogProbs(log_probs, torch.ones(2, 2, dtype=torch.bool))
    losses = get_loss(config.loss_type)(floor=-4.0).forget_loss(LossInputs(answers))
    torch.testing.assert_close(losses, torch.tensor([-2.0, -4.0]))
    score = get_score(config.attribution)(torch.tensor([2.0, -1.0]), torch.tensor([-1.0, 3.0]))
    torch.testing.assert_close(score, torch.tensor([0.5, 3.0]))
    assert get_loss("bounded_ascent").retain_loss == "nll"


def test_a_new_file_is_enough(run_fresh, tmp_path):
    """In a copy of the package, an objective and a score more: both appear in the lists, the help and the errors."""
    package = tmp_path / "wagle_trainer"
    shutil.copytree(Path(wagle_trainer.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "losses" / "forget" / "mine.py").write_text(
        "from wagle_trainer.losses.unlearning_loss import register_loss\n"
        "from wagle_trainer.losses.forget.grad_ascent import GradAscent\n\n\n"
        '@register_loss("mine")\nclass Mine(GradAscent):\n    """Mine (arXiv 0000.00000)."""\n'
    )
    (package / "attribution" / "scores" / "mine.py").write_text(
        "from wagle_trainer.attribution.scores.score import register_score\n\n\n"
        '@register_score("mine")\ndef mine(weight):\n    """|theta|, mine.\n\n    More."""\n    return weight.abs()\n'
    )
    code = (
        "from wagle_trainer.attribution import describe_scores, list_scores\n"
        "from wagle_trainer.config import WagleConfig\n"
        "from wagle_trainer.losses import describe_losses, list_losses\n"
        "assert 'mine' in list_losses() and describe_losses()['mine'] == 'Mine (arXiv 0000.00000).'\n"
        "assert 'mine' in list_scores() and describe_scores()['mine'] == '|theta|, mine.'\n"
        "for field in ('loss_type', 'attribution'):\n"
        "    assert ', mine,' in WagleConfig.__dataclass_fields__[field].metadata['help'], field\n"
        "    try:\n        WagleConfig('out', use_cpu=True, bf16=False, **{field: 'yours'})\n"
        "    except ValueError as error:\n        assert ', mine,' in str(error), error\n"
        "    else:\n        raise AssertionError(field)\n"
    )
    here = f"import os, sys\nos.chdir({str(tmp_path)!r})\nsys.path.insert(0, os.getcwd())\n"
    [(status, output)] = run_fresh([here + code], "trl")
    assert status == 0, output


# The tables themselves


def test_what_the_objectives_need():
    assert {name: (set(get_loss(name).needs), get_loss(name).retain_loss) for name in LOSSES} == {
        "altpo": ({"forget", "chosen", "reference"}, "nll"),
        "ceu": ({"forget", "forget_logits"}, None),
        "dpo": ({"forget", "chosen", "reference"}, "nll"),
        "finetune": (set(), "nll"),
        "flat": ({"forget", "chosen"}, None),
        "grad_ascent": ({"forget"}, None),
        "grad_diff": ({"forget"}, "nll"),
        "jensun": ({"forget", "forget_logits"}, "js"),
        "kl_min": ({"forget"}, "kl"),
        "l1_sparse": (set(), "nll"),
        "npo": ({"forget", "reference"}, "nll"),
        "pdu": ({"forget", "forget_logits"}, "nll"),
        "po": ({"chosen"}, "nll"),
        "random_label": ({"forget", "forget_logits"}, "nll"),
        "rmu": ({"forget", "forget_states"}, "embed_diff"),
        "satimp": ({"forget"}, "nll"),
        "simnpo": ({"forget"}, "nll"),
        "tnpo": ({"forget", "reference"}, "nll"),
        "undial": ({"forget", "forget_logits", "forget_reference_logits"}, None),
        "wga": ({"forget"}, "nll"),
    }


def test_unknown_names():
    with pytest.raises(ValueError, match=r"Unknown loss 'np0'. Did you mean 'npo'\? Known: altpo, .*, wga"):
        get_loss("np0")
    with pytest.raises(
        ValueError, match=r"Unknown attribution score 'wagel'. Did you mean 'wagle'\? Known: answer_rows, .*, wanda"
    ):
        get_score("wagel")


def test_a_name_is_given_once():
    """A module that is reloaded, as in a notebook, may enter its own thing again."""
    registry = Registry("thing")

    def make(module):
        def one():
            """First
            paragraph.

            Second."""

        one.__module__ = module
        return registry.register("one")(one)

    make("here")
    again = make("here")
    with pytest.raises(ValueError, match="The thing 'one' exists already"):
        make("elsewhere")
    assert registry.get("one") is again
    assert registry.describe() == {"one": "First paragraph."}


def test_a_loss_without_formula_says_so():
    with pytest.raises(NotImplementedError, match="UnlearningLoss must define forget_loss"):
        UnlearningLoss().forget_loss(LossInputs())

"""What users read works: Python blocks run, commands are parsed by our own parsers, docstring examples run."""

import ast
import copy
import doctest
import importlib
import json
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer, TrlParser

import wagle_trainer
from wagle_trainer import adapters, attribution, data, evaluation, losses, masking
from wagle_trainer.attribution.scores.score import _scores
from wagle_trainer.data import QAFormat, fictional_split, fictional_tokenizer
from wagle_trainer.evaluation.metrics.metric import _metrics
from wagle_trainer.losses.unlearning_loss import _losses

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "docs/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n+)?^(?P<indent> *)```(?P<kind>\w+).*?\n(?P<code>.*?)^ *```", re.M | re.S
)
# What docstrings use without importing it.
PUBLIC = (wagle_trainer, adapters, attribution, data, evaluation, losses, masking)
# Blocks that are marked: {(page, reason)}
NOT_RUN = {
    ("docs/evidence.md", "needs a pretrained model that knows facts"),
    ("docs/guides/forget.md", "needs a model that knows the answers"),
}
# Programs whose arguments are not ours to check.
OTHER_PROGRAMS = {
    ".",
    "cd",
    "git",
    "mkdocs",
    "pip",
    "pre-commit",
    "pytest",
    "ruff",
    "mypy",
    "for",
    "do",
    "done",
    "export",
}


def blocks(page: Path, kinds: tuple[str, ...]) -> list[str]:
    """The blocks of a page that are not marked as `<!-- not run: reason -->`."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [match["code"] for match in found if match["kind"] in kinds and match["reason"] is None]


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_llama):
    """A working directory with the files that examples name: models, adapters, a mask, TOFU's files, two small sets."""
    folder = tmp_path_factory.mktemp("documentation")
    tokenizer = fictional_tokenizer()
    model = make_llama(vocab_size=len(tokenizer))
    for name in ("path-or-hub-id", "base"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for start, name in enumerate(("forget-request-1", "forget-request-2")):
        tuned = copy.deepcopy(model)
        with torch.no_grad():
            tuned.lm_head.weight[start] += 0.5
        adapters.diff(folder / "base", tuned).save_pretrained(folder / name)
    mask = attribution.attribute(model, None, None, score="magnitude", density=0.1, progress=False)
    mask.save_pretrained(folder / "mask")
    (folder / "locuslab" / "TOFU").mkdir(parents=True)
    splits = {"forget01_perturbed": "forget10_perturbed", "forget10_perturbed": "forget10_perturbed", "full": "full"}
    splits |= {f"{name}_perturbed": f"{name}_perturbed" for name in ("retain", "real_authors", "world_facts")}
    for name, source in splits.items():
        rows = fictional_split(source).select(range(2))
        (folder / "locuslab" / "TOFU" / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    for name, split in (("forget", "forget10"), ("retain", "retain90")):
        rows = fictional_split(split).select(range(8))
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def namespace(folder, monkeypatch):
    """The names that examples use for what a reader has: models, a tokenizer, sets and batches. What examples register is
    forgotten again."""
    for registry in (_losses, _scores, _metrics):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.chdir(folder)
    model, before, base = (AutoModelForCausalLM.from_pretrained("base") for _ in range(3))
    tokenizer = AutoTokenizer.from_pretrained("base")
    qa = QAFormat.for_tokenizer(tokenizer)
    forget, retain = (qa.dataset(data.load_tofu(str(folder), name)) for name in ("forget", "retain"))
    evaluation_data = data.load_tofu_evaluation("locuslab/TOFU", "forget01")
    examples = [qa.encode(row["question"], row["answer"]) for row in evaluation_data["forget"]]
    batches = [{key: torch.tensor([example[key]]) for key in ("input_ids", "labels")} for example in examples]
    after = forgetful(before, batches)
    args = {"output_dir": "out", "report_to": "none", "use_cpu": True, "bf16": False}
    trained = {"model": before, "processing_class": tokenizer}
    rests = {
        "SFTTrainer": {**trained, "args": SFTConfig(**args), "train_dataset": forget},
        "WagleTrainer": {
            **trained,
            "args": wagle_trainer.WagleConfig(**args),
            "forget_dataset": forget,
            "retain_dataset": retain,
        },
        "EvaluationCallback": {"suite": "tofu", "data": evaluation_data, "every_n_steps": 50},
        "WagleConfig": args,
    }
    return {
        **{name: getattr(module, name) for module in PUBLIC for name in module.__all__},
        "torch": torch,
        "SFTTrainer": SFTTrainer,
        "LoraConfig": LoraConfig,
        "PeftModel": PeftModel,
        **{"model": model, "before": before, "base": base, "after": after, "model_without_the_forget_set": after},
        **{"tokenizer": tokenizer, "forget": forget, "retain": retain, "data": evaluation_data},
        **{"forget_batches": batches, "retain_batches": batches, "other_batches": batches},
        **{"mask": wagle_trainer.WeightMask.from_pretrained("mask"), "args": SFTConfig(**args)},
        **{"optimizer": torch.optim.AdamW(model.parameters()), "loss": model(**batches[0]).loss},
        **{"rest": rests.__getitem__, "__name__": "example"},
    }


def forgetful(model, batches):
    """A copy that finds the answers less likely, which counts as having forgotten."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        for batch in batches:
            optimizer.zero_grad()
            (-model(**batch).loss).backward()
            optimizer.step()
    return model.eval()


class Rest(ast.NodeTransformer):
    """`SFTTrainer(..., callbacks=[...])`: what the dots stand for, which is `rest` of the name that is called."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value is ...:
            name = ast.unparse(node.func)
            rest = ast.parse(f"rest({name!r})", mode="eval").body
            node.args, node.keywords = node.args[1:], [ast.keyword(None, rest), *node.keywords]
        return node


def without_dots(code: str) -> str:
    """The code with arguments in place of leading dots."""
    return ast.unparse(Rest().visit(ast.parse(code))) if "..." in code else code


PYTHON = [page for page in PAGES if blocks(page, ("python", "py"))]
SHELL = [page for page in PAGES if blocks(page, ("bash", "sh"))]


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_python_blocks_run_in_order(page, namespace):
    for number, code in enumerate(blocks(page, ("python", "py")), 1):
        exec(
            compile(without_dots(textwrap.dedent(code)), f"{name_of(page)}, Python block {number}", "exec"), namespace
        )


def test_what_does_not_run_is_listed_here():
    found = {(name_of(page), match["reason"]) for page in PAGES for match in BLOCK.finditer(page.read_text())}
    assert {entry for entry in found if entry[1]} == NOT_RUN


# Commands


class Parsed(Exception):  # noqa: N818
    """The arguments were accepted: nothing runs."""


def commands(text: str) -> list[list[str]]:
    """The words of each command of a script; of a loop, those of its first round."""
    found, variables = [], {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        for name, value in variables.items():
            line = re.sub(rf"\$({name}\b|{{{name}}})", value, line)
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words[:1] == ["for"]:
            variables[words[1]] = words[3].removesuffix(";")
        if words:
            found.append(words)
    return found


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """parse(words) gives a command to the parser that would read it, and raises if it is refused."""
    for name in ("recipes", "benchmarks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "run.yaml").write_text("model_name_or_path: MODEL\ndataset_name: locuslab/TOFU\noutput_dir: out\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(REPOSITORY / "recipes")
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    parse_config, parse_args = TrlParser.parse_args_and_config, ArgumentParser.parse_args

    def on_the_cpu(self, args=None, **options):
        """As if there were what the configuration needs: a GPU that knows bfloat16."""
        args = list(sys.argv[1:] if args is None else args)
        if any(action.dest == "use_cpu" for action in self._actions):
            args += ["--use_cpu", "true"]
        return parse_config(self, args, **options)

    def stop_after(function):
        def stop(*arguments, **options):
            function(*arguments, **options)
            raise Parsed

        return stop

    def parse(words):
        program, *rest = words
        if program == "accelerate":
            assert rest[0] == "launch", words
            launched = launch_command_parser().parse_args(rest[1:])
            assert launched.config_file is None or Path(launched.config_file).is_file(), launched.config_file
            program = "wagle" if launched.module else "python"
            rest = [*([] if launched.module else [launched.training_script]), *launched.training_script_args]
        if program == "wagle":
            monkeypatch.setattr(TrlParser, "parse_args_and_config", on_the_cpu)
            importlib.import_module(f"wagle_trainer.cli.{rest[0]}").parse(rest[1:])
        elif program == "python" and rest[0] != "-m":
            monkeypatch.setattr(TrlParser, "parse_args_and_config", stop_after(on_the_cpu))
            monkeypatch.setattr(ArgumentParser, "parse_args", stop_after(parse_args))
            monkeypatch.setattr(sys, "argv", rest)
            with pytest.raises(Parsed):
                runpy.run_path(rest[0], run_name="__main__")
            monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
        else:
            assert program in OTHER_PROGRAMS or words[:2] == ["python", "-m"], f"No test knows how to read {program}."

    return parse


@pytest.mark.parametrize("page", SHELL, ids=name_of)
def test_commands_are_understood(page, parse):
    for code in blocks(page, ("bash", "sh")):
        subprocess.run(["bash", "-n"], input=code, text=True, check=True)
        for words in commands(textwrap.dedent(code)):
            parse(words)


@pytest.mark.parametrize("folder", ["recipes", "benchmarks", "wagle_trainer/cli"])
def test_commands_in_docstrings_and_help_texts_are_understood(folder, parse):
    found = 0
    for file in sorted((REPOSITORY / folder).glob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in parts]
        for text in (text for text in texts if isinstance(text, str)):
            for line in re.sub(r"\\\n", " ", text).splitlines():
                if re.match(r"\s*(wagle \w+|python (recipes|benchmarks)/\w+\.py|accelerate launch) ", line):
                    parse(shlex.split(line, comments=True))
                    found += 1
    assert found


# Docstrings


class AnyValue(doctest.OutputChecker):
    """Where an example shows no value, any will do."""

    def check_output(self, want, got, flags):
        return not want or super().check_output(want, got, flags)


def test_examples_of_docstrings_run(namespace):
    found, failed = 0, []
    for module in pkgutil.walk_packages(wagle_trainer.__path__, "wagle_trainer."):
        if module.name.endswith("__main__"):
            continue
        thing = importlib.import_module(module.name)
        for test in doctest.DocTestFinder(exclude_empty=True).find(thing):
            for example in test.examples:
                example.source = without_dots(example.source).rstrip() + "\n"
            if test.examples:
                found += 1
                test.globs = {**test.globs, **namespace, "__name__": "example"}
                said = []
                doctest.DocTestRunner(AnyValue(), verbose=False).run(test, out=said.append)
                failed += ["".join(said)] if said else []
    assert found > 20
    assert not failed, "\n".join(failed)


def test_the_picture_is_what_its_script_draws():
    drawn = runpy.run_path(str(REPOSITORY / "docs" / "draw_overview.py"))["overview"]()
    assert (REPOSITORY / "docs" / "overview.svg").read_text(encoding="utf-8") == drawn


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 1500


def test_docstrings_are_rewritten_for_the_site():
    pytest.importorskip("griffe", reason="the site is not installed: pip install -e .[docs]")
    plain = runpy.run_path(str(REPOSITORY / "docs" / "docstrings.py"))["plain"]
    text = """Args:
        args ([`~trl.SFTConfig`], *optional*, defaults to `None`): See [`WagleConfig`] (`x`: y).
        a, b (`Dataset` or `dict`): Two (of them).
        bare: one.

    Example:
        >>> 1
    """
    assert (
        plain(text)
        == """Args:
        args (SFTConfig): See `WagleConfig` (`x`: y).
        a, b (Dataset or dict): Two (of them).
        bare: one.

    Examples:
        >>> 1
    """
    )

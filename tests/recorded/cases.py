"""Everything that the package computes and that a change of its structure must leave as it is, as named cases.

`record.py` runs all cases and writes what they return to `recorded.json`; `test_recorded.py` runs them again and compares.
A case uses the public API only. What it returns is JSON; `{"exact": value}` holds what only the same machine repeats.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)

import torch

FOLDER = Path(__file__).resolve().parent
RECORDED = FOLDER / "recorded.json"
FIXTURES = FOLDER / "fixtures"

PEOPLE = 20  # of the fictional split: two of them are in `forget10`, and there is a holdout set
SCOPES = ("global", "tensor", "row")
DENSITIES = (0.05, 0.8)
RETAIN_LOSSES = ("nll", "kl", "js", "embed_diff", None)
NEEDS_CHOSEN = {"altpo", "dpo"}  # these get a preference set, po and flat the bundled refusals
LOSS_KWARGS: dict[str, dict[str, Any]] = {
    "rmu": {"layer": 0, "coefficient": 5.0},
    "pdu": {"retain_eps": 0.05},
    "l1_sparse": {"gamma": 1e-3},
}
SCORE_KWARGS = {"module": {"patterns": ["mlp"]}}


def platform_key() -> dict[str, Any]:
    """What decides the last bits of a number. Cases run with one thread, whatever the process has."""
    import numpy
    import peft
    import transformers
    import trl

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    versions = {module.__name__: module.__version__ for module in (numpy, peft, torch, transformers, trl)}
    return {
        "versions": versions,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": {
            key: fields.get(key, platform.processor())
            for key in ("vendor_id", "model name", "cpu family", "model", "stepping")
        },
        "threads": 1,
        # They choose other code for the same processor.
        "environment": {
            key: value for key, value in os.environ.items() if key.startswith(("ATEN_CPU", "ONEDNN", "DNNL", "MKL_"))
        },
    }


# Comparison


def exact(value: Any) -> dict[str, Any]:
    """Marks a value that another processor may compute differently in a way that no tolerance describes."""
    return {"exact": value}


def differences(recorded: Any, found: Any, same_platform: bool, where: str = "") -> Iterator[str]:
    """Sentences on what is not as recorded. `found` may have keys that were not recorded."""
    if isinstance(recorded, dict) and set(recorded) == {"exact"}:
        if same_platform:
            yield from differences(recorded["exact"], found["exact"], True, where)
    elif isinstance(recorded, dict) and isinstance(found, dict):
        for key, value in recorded.items():
            if key in found:
                yield from differences(value, found[key], same_platform, f"{where}/{key}")
            else:
                yield f"{where}/{key} is missing"
    elif isinstance(recorded, list) and isinstance(found, list):
        if len(recorded) != len(found):
            yield f"{where} has {len(found)} entries, recorded are {len(recorded)}"
        for index, (value, other) in enumerate(zip(recorded, found, strict=False)):
            yield from differences(value, other, same_platform, f"{where}/{index}")
    elif isinstance(recorded, float) and isinstance(found, int | float) and not same_platform:
        # AdamW's first steps turn the rounding of small gradients into steps, and norms show it most.
        tolerance = 1e-3 if where.endswith("grad_norm") else 1e-4
        if not math.isclose(recorded, found, rel_tol=tolerance, abs_tol=1e-6):
            yield f"{where} is {found!r}, recorded is {recorded!r} (to {tolerance})"
    elif recorded != found:
        yield f"{where} is {found!r}, recorded is {recorded!r}"


# Models and data


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in another order would be other sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _tokenizer_json() -> str:
    from wagle_trainer.data import fictional_tokenizer

    return fictional_tokenizer(PEOPLE).backend_tokenizer.to_str()


def make_tokenizer() -> Any:
    """A new one each time, since trainers write to it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    core = Tokenizer.from_str(_tokenizer_json())
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special)


@torch.no_grad()
def draw_weights(model: Any, seed: int, scale: float) -> Any:
    """Uniform weights out of integers, which are the same on every processor; norms stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            integers = torch.randint(-(2**15), 2**15, parameter.shape, generator=generator)
            parameter.copy_(integers.float() / 2**15 * scale)
    return model


def make_untaught_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return draw_weights(LlamaForCausalLM(config), 0, 0.2).eval()


def make_llama() -> Any:
    """The tiny Llama that knows the fictional people, for evaluations; its weights are a fixture.

    Runs start from the untaught one: where all answers are nearly certain, gradients are mostly rounding.
    """
    from safetensors.torch import load_file

    model = make_untaught_llama()
    model.load_state_dict(load_file(FIXTURES / "llama.safetensors"), strict=False)
    return model


def make_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(make_tokenizer()),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=1,
    )
    return draw_weights(GPT2LMHeadModel(config), 1, 0.2).eval()


MODELS = {"llama": make_llama, "gpt2": make_gpt2}


def teach(model: Any, steps: int = 900, size: int = 32, learning_rate: float = 1e-2) -> Any:
    """Make a model know the answers by heart. Used for the fixture only."""
    [batch] = batches("full", 1000, 1000)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        rows = torch.randperm(len(batch["input_ids"]), generator=generator)[:size]
        model(**{key: value[rows] for key, value in batch.items()}).loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def rows_of(split: str, number: int) -> list[dict[str, Any]]:
    from wagle_trainer.data import fictional_split

    return list(fictional_split(split, PEOPLE))[:number]


def dataset_of(split: str, number: int, form: str = "prompt_completion") -> Any:
    """The first rows of a split in one of TRL's formats."""
    from datasets import Dataset

    from wagle_trainer.data import QAFormat

    rows = Dataset.from_list(rows_of(split, number))
    examples = QAFormat.for_tokenizer(make_tokenizer()).dataset(rows)
    if form == "prompt_completion":
        return examples
    if form == "preference":
        chosen = [f" {row['perturbed_answer'][0]}" for row in rows_of(f"{split}_perturbed", number)]
        return Dataset.from_dict({"prompt": examples["prompt"], "chosen": chosen, "rejected": examples["completion"]})
    if form == "text":
        return Dataset.from_dict({"text": [f"{row['prompt']}{row['completion']}" for row in examples]})
    assert form == "messages", form
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in rows
        ]
    )


def batches(split: str, number: int, size: int) -> list[dict[str, torch.Tensor]]:
    """The first rows of a split as `attribute` takes them, padded on the right."""
    from wagle_trainer.data import QAFormat

    qa = QAFormat.for_tokenizer(make_tokenizer())
    examples = [qa.encode(row["question"], row["answer"]) for row in rows_of(split, number)]
    found = []
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        length = max(len(example["input_ids"]) for example in part)
        ids, labels, real = (
            torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
            for rows, fill in (
                ([example["input_ids"] for example in part], 0),
                ([example["labels"] for example in part], -100),
                ([[1] * len(example["input_ids"]) for example in part], 0),
            )
        )
        found.append({"input_ids": ids, "attention_mask": real, "labels": labels})
    return found


# What is recorded of things


def sha(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def sha_of_json(value: Any) -> str:
    return sha(json.dumps(value, sort_keys=True))


def weights_of(model: Any) -> dict[str, Any]:
    """The bits of all weights, and for other machines how large they are."""
    parts, squares = [], 0.0
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu().contiguous()
        parts += [f"{name}:{tuple(values.shape)}:{values.dtype}:", values.view(torch.uint8).numpy().tobytes()]
        squares += values.double().square().sum().item()
    return {"sha": exact(sha(*parts)), "norm": math.sqrt(squares)}


def mask_of(mask: Any) -> dict[str, Any]:
    """Which weights a mask selects, and what its file says of how it came about."""
    with tempfile.TemporaryDirectory() as folder:
        mask.save_pretrained(folder)
        config = json.loads((Path(folder) / "mask_config.json").read_text())
    digest, histogram, shapes = config.pop("digest"), config.pop("score_histogram", None), config.pop("shapes")
    assert digest == mask.digest
    return {
        "digest": exact(digest),
        "num_selected": mask.num_selected,
        "nbytes": mask.nbytes,
        "shapes": sha_of_json(shapes),
        "histogram": exact(None if histogram is None else sha_of_json(histogram)),
        "summary": exact(sha_of_json(mask.summary())),
        "config": config,
    }


def history_of(trainer: Any) -> list[dict[str, Any]]:
    """What was logged, without times and without what TRL adds of its own."""
    left_out = ("runtime", "per_second", "flos", "entropy", "num_tokens", "mean_token_accuracy")
    history = [
        {key: value for key, value in entry.items() if not key.endswith(left_out)}
        for entry in trainer.state.log_history
    ]
    # Constants are logged once, and were logged in every entry with losses when the results were recorded.
    constants = {key: value for entry in history for key, value in entry.items() if key.endswith("density")}
    return [_with_constants(entry, constants) for entry in history]


def _with_constants(entry: dict[str, Any], constants: dict[str, Any]) -> dict[str, Any]:
    return entry | constants if {"forget_loss", "retain_loss"} & entry.keys() else entry


def training_arguments(folder: str | Path, **changes: Any) -> Any:
    """Arguments of a short, silent run on the CPU in float32."""
    from wagle_trainer import WagleConfig

    return WagleConfig(**(plain_arguments(folder) | {"density": 0.2} | changes))


def plain_arguments(folder: str | Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }


def make_trainer(
    folder: str | Path, form: str = "prompt_completion", given: dict[str, Any] | None = None, **changes: Any
) -> Any:
    from wagle_trainer import WagleTrainer

    torch.manual_seed(0)
    retain = "prompt_completion" if form == "preference" else form
    return WagleTrainer(
        args=training_arguments(folder, **changes),
        forget_dataset=dataset_of("forget10", 8, form),
        retain_dataset=dataset_of("retain90", 12, retain),
        **({"model": make_untaught_llama(), "processing_class": make_tokenizer()} | (given or {})),
    )


def trained(trainer: Any) -> dict[str, Any]:
    """Run a trainer: what it logged, the mask in force and the final weights."""
    trainer.train()
    mask = getattr(trainer, "mask", None)
    return {
        "history": history_of(trainer),
        "mask": None if mask is None else {"digest": exact(mask.digest), "num_selected": mask.num_selected},
        "weights": weights_of(trainer.model),
    }


# The cases

CASES: dict[str, Callable[..., Any]] = {}


def case(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: enter a function. Of "name/a/b", a and b are its arguments."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        CASES[name] = function
        return function

    return enter


@case("data")
def data() -> dict[str, Any]:
    """The bundled sets, their tokens, and the two ways of writing a question."""
    from wagle_trainer.data import QAFormat, fictional_split

    tokenizer, chat = make_tokenizer(), chat_tokenizer()
    splits = ("full", "forget10", "retain90", "forget10_perturbed", "retain_perturbed", "holdout10")
    splits += ("real_authors_perturbed", "world_facts_perturbed")
    row = rows_of("forget10", 1)[0]
    found = {}
    for style, one in (("plain", tokenizer), ("chat", chat)):
        qa = QAFormat.for_tokenizer(one)
        found[style] = {
            "encode": qa.encode(row["question"], row["answer"]),
            "prompt": qa.prompt_ids(row["question"]),
            "example": qa.example(row["question"], row["answer"]),
        }
    system = QAFormat.for_tokenizer(chat, "chat", "Be brief.")
    return {
        "splits": {name: sha_of_json(list(fictional_split(name, PEOPLE))) for name in splits},
        "vocabulary": sha_of_json(tokenizer.get_vocab()),
        "formats": found,
        "system": system.prompt_ids(row["question"]),
        "full": sha_of_json(
            [QAFormat.for_tokenizer(tokenizer).encode(r["question"], r["answer"]) for r in rows_of("full", 200)]
        ),
    }


def chat_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ 'Question:' if message['role'] == 'user' else 'Answer:' }} "
        "{{ message['content'] }}{% if message['role'] == 'assistant' %}<eos>{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}Answer:{% endif %}"
    )
    return tokenizer


def _attribute(family: str, **changes: Any) -> Any:
    from wagle_trainer import attribute

    settings = {"gamma": 1e-6, "density": 0.8, "scope": "global", "progress": False}
    return attribute(MODELS[family](), batches("forget10", 8, 4), batches("retain90", 12, 4), **(settings | changes))


def _mask_or_error(family: str, **changes: Any) -> Any:
    try:
        return mask_of(_attribute(family, **changes))
    except ValueError as error:  # a score that ranks nothing in this family
        return {"raises": type(error).__name__}


@case("masks")
def masks(family: str, score: str) -> dict[str, Any]:
    """One score in all scopes and densities."""
    given = {"score": score} | ({"score_kwargs": SCORE_KWARGS[score]} if score in SCORE_KWARGS else {})
    return {
        f"{scope} {density}": _mask_or_error(family, scope=scope, density=density, **given)
        for scope in SCOPES
        for density in DENSITIES
    }


@case("mask-rules")
def mask_rules(family: str) -> dict[str, Any]:
    """gamma and density by rule, patterns, and an earlier request's mask; what masks can be combined to."""
    earlier = _attribute(family, score="snip", density=0.05)
    found = {
        "gamma auto": mask_of(_attribute(family, gamma="auto", density=0.3)),
        "gamma balanced": mask_of(_attribute(family, gamma="balanced", density=0.3)),
        "density auto": mask_of(_attribute(family, density="auto")),
        "both": mask_of(_attribute(family, gamma="auto", density="auto")),
        "large gamma": mask_of(_attribute(family, gamma=1e4, density=0.3)),
        "include": mask_of(_attribute(family, include=["mlp"], density=0.3)),
        "exclude": mask_of(_attribute(family, exclude=[r"(embed_tokens|wte)\.weight"], density=0.3)),
        "exclude mask": mask_of(_attribute(family, exclude_mask=earlier, density=0.05)),
        "seed": mask_of(_attribute(family, score="random", seed=7, density=0.3)),
        "sure row": mask_of(_attribute(family, score="sure", score_kwargs={"unit": "row"}, density=0.3)),
    }
    other = _attribute(family, density=0.05)
    found["algebra"] = {
        "and": exact((earlier & other).digest),
        "or": exact((earlier | other).digest),
        "not": exact((~earlier).digest),
        "overlap": exact(earlier.overlap(other)),
    }
    return found


@case("losses")
def losses(name: str) -> dict[str, Any]:
    """Three steps of one objective with its own retain loss."""
    with tempfile.TemporaryDirectory() as folder:
        form = "preference" if name in NEEDS_CHOSEN else "prompt_completion"
        return trained(make_trainer(folder, form, loss_type=name, loss_kwargs=LOSS_KWARGS.get(name, {})))


@case("retain-losses")
def retain_losses(name: str) -> dict[str, Any]:
    """NPO with each retain loss."""
    kwargs: dict[str, Any] = {"retain_loss": None if name == "none" else name}
    if name == "embed_diff":
        kwargs["retain_layer"] = 0
    with tempfile.TemporaryDirectory() as folder:
        return trained(make_trainer(folder, loss_type="npo", loss_kwargs=kwargs))


@case("training")
def training(variant: str) -> dict[str, Any]:
    """What else a run can be told."""
    with tempfile.TemporaryDirectory() as folder:
        return VARIANTS[variant](folder)


def _accumulated(folder: str) -> dict[str, Any]:
    return trained(
        make_trainer(folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_grad_norm=0.5)
    )


def _lora(folder: str) -> dict[str, Any]:
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules="wagle", task_type="CAUSAL_LM")
    trainer = make_trainer(folder, given={"peft_config": config}, attribution=None)
    return {"modules": sorted(trainer.model.peft_config["default"].target_modules), **trained(trainer)}


def _callback_alone(folder: str) -> dict[str, Any]:
    from trl import SFTConfig, SFTTrainer

    from wagle_trainer import WeightAttributionCallback

    forget, retain = dataset_of("forget10", 8), dataset_of("retain90", 12)
    callback = WeightAttributionCallback(forget_dataset=forget, retain_dataset=retain, score="wagle", density=0.05)
    trainer = SFTTrainer(
        make_untaught_llama(),
        SFTConfig(**plain_arguments(folder)),
        train_dataset=retain,
        processing_class=make_tokenizer(),
        callbacks=[callback],
    )
    found = trained(trainer)
    assert callback.mask is not None
    return found | {"mask": mask_of(callback.mask)}


def _evaluated(folder: str) -> dict[str, Any]:
    """Evaluation sets, and a suite every two steps."""
    from wagle_trainer.evaluation import EvaluationCallback

    metrics = ["forget_Q_A_Prob", "retain_Q_A_Prob", "forget_truth_ratio", "wf_Q_A_Prob_normalised", "mia_loss"]
    callback = EvaluationCallback("tofu", tofu_sets(3), every_n_steps=2, metrics=metrics, max_new_tokens=4)
    sets = {"forget": dataset_of("forget10", 6), "retain": dataset_of("retain90", 6)}
    trainer = make_trainer(folder, given={"eval_dataset": sets, "callbacks": [callback]})
    found = trained(trainer)
    numbers = trainer.evaluate()
    return found | {"evaluate": {key: value for key, value in numbers.items() if key.endswith("loss")}}


def _by_scope(folder: str) -> dict[str, Any]:
    """The callback's arguments as `WagleConfig` has them; the mask's file, too."""
    trainer = make_trainer(
        folder,
        attribution="grad_ratio",
        attribution_scope="tensor",
        attribution_samples=6,
        attribution_batch_size=3,
        attribution_exclude=["embed_tokens"],
        forget_weight=0.5,
        retain_weight=2.0,
        density=0.3,
    )
    found = trained(trainer)
    return found | {"mask": mask_of(trainer.mask)}


VARIANTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "dense": lambda folder: trained(make_trainer(folder, attribution=None)),
    "mask_path": lambda folder: trained(make_trainer(folder, mask_path=str(FIXTURES / "mask"))),
    "mask": lambda folder: trained(make_trainer(folder, given={"mask": str(FIXTURES / "mask")})),
    "compact": lambda folder: trained(make_trainer(folder, compact_optimizer=True)),
    "not compact": lambda folder: trained(make_trainer(folder, compact_optimizer=False)),
    "sgd": lambda folder: trained(make_trainer(folder, optim="sgd")),
    "scope": _by_scope,
    "gamma auto": lambda folder: trained(make_trainer(folder, attribution_gamma="auto", density="auto")),
    "accumulated": _accumulated,
    "text": lambda folder: trained(make_trainer(folder, "text")),
    "messages": lambda folder: trained(make_trainer(folder, "messages", {"processing_class": chat_tokenizer()})),
    "lora": _lora,
    "callback alone": _callback_alone,
    "evaluated": _evaluated,
}


# Evaluation


def tofu_sets(number: int) -> dict[str, list[dict[str, Any]]]:
    return {
        "forget": rows_of("forget10_perturbed", number),
        "retain": rows_of("retain_perturbed", number),
        "real_authors": rows_of("real_authors_perturbed", number),
        "world_facts": rows_of("world_facts_perturbed", number),
        "holdout": rows_of("holdout10", number),
    }


def make_unlearned() -> Any:
    """The Llama after a few steps of NPO: the base with the adapter of the fixtures in it."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(make_llama(), str(FIXTURES / "adapter")).merge_and_unload()
    model = make_llama()  # one that can be trained
    model.load_state_dict(merged.state_dict())
    return model


def results_of(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers and the values of each example; not the settings, which are words."""
    return {key: value for key, value in results.items() if key != "settings"}


@case("suites")
def suites(name: str) -> dict[str, Any]:
    from wagle_trainer.evaluation import get_suite, load_results, results_table, save_results

    suite = get_suite(name)
    with tempfile.TemporaryDirectory() as folder:
        found = EVALUATIONS[name](suite, folder)
        save_results(found, f"{folder}/results.json")
        assert load_results(f"{folder}/results.json") == found
        # Notes below the table are words.
        table = results_table(found, suite.headline).split("\n\n")[0]
    return {"results": {label: results_of(numbers) for label, numbers in found.items()}, "table": exact(table)}


def _tofu(suite: Any, folder: str) -> dict[str, Any]:
    before, after = (
        suite.evaluate(model, make_tokenizer(), tofu_sets(6), max_new_tokens=16, batch_size=5, progress=False)
        for model in (make_llama(), make_unlearned())
    )
    with_reference = suite.evaluate(
        make_unlearned(),
        make_tokenizer(),
        tofu_sets(6),
        max_new_tokens=4,
        reference=before,
        gradient_norm=True,
        progress=False,
    )
    return {"before": before, "after": after, "with reference": with_reference}


def _texts(split: str, number: int) -> list[str]:
    """Passages of several questions and answers."""
    lines = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows_of(split, 3 * number)]
    return ["\n".join(lines[start : start + 3]) for start in range(0, len(lines), 3)]


def _copyright(suite: Any, folder: str) -> dict[str, Any]:
    sets = {
        name: [{"text": text} for text in _texts(split, 4)]
        for name, split in (("seen", "forget10"), ("unseen", "holdout10"))
    }
    options = {"prompt_tokens": 12, "continuation_tokens": 12, "progress": False}
    return {"before": suite.evaluate(make_llama(), make_tokenizer(), sets, **options)}


def _muse(suite: Any, folder: str) -> dict[str, Any]:
    forget, holdout = ([{"text": text} for text in _texts(split, 4)] for split in ("forget10", "holdout10"))
    questions = {
        name: [{"question": row["question"], "answer": row["answer"]} for row in rows_of(split, 6)]
        for name, split in (("forget", "forget10"), ("retain", "retain90"))
    }
    splits: dict[str, list[dict[str, str]]] = {
        "raw/forget": forget,
        "raw/retain1": [{"text": text} for text in _texts("retain90", 4)],
        "raw/holdout": holdout,
        "verbmem/forget": [
            {"prompt": f"Question: {row['question']}\nAnswer:", "gt": f" {row['answer']}"}
            for row in rows_of("forget10", 4)
        ],
        "privleak/forget": forget,
        "privleak/holdout": holdout,
    }
    for name, rows in questions.items():
        splits |= {f"knowmem/{name}_qa": rows[:4], f"knowmem/{name}_qa_icl": rows[4:]}
    for split, rows in splits.items():
        path = Path(folder) / "muse" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = {"verbmem_tokens": 10, "knowmem_tokens": 10, "progress": False}
    sets = suite.load(f"{folder}/muse")
    return {
        label: suite.evaluate(model, make_tokenizer(), sets, **options)
        for label, model in (("before", make_llama()), ("after", make_unlearned()))
    }


def share_of_short_words(texts: list[str]) -> list[float]:
    """Stands for the classifier."""
    return [sum(len(word) < 4 for word in text.split()) / max(1, len(text.split())) for text in texts]


def _detoxification(suite: Any, folder: str) -> dict[str, Any]:
    sets = {"prompts": [{"prompt": row["question"]} for row in rows_of("forget10", 6)]}
    found = suite.evaluate(
        make_llama(), make_tokenizer(), sets, toxicity=share_of_short_words, max_new_tokens=10, progress=False
    )
    return {"before": found}


EVALUATIONS = {"tofu": _tofu, "copyright": _copyright, "muse": _muse, "detoxification": _detoxification}

ATTACKS: dict[str, dict[str, Any]] = {
    "relearning": {"share": 0.5, "steps": [1, 3], "learning_rate": 3e-3, "batch_size": 2},
    "relearning_unrelated": {"steps": [2], "learning_rate": 3e-3},
    "quantization": {"bits": [8, 4]},
    "paraphrase": {},
    "jailbreak": {},
    "answer_prefix": {"shares": [0.25, 0.5], "max_new_tokens": 12},
    "removal": {},
    "sampling": {},
}


@case("attacks")
def attacks(name: str) -> dict[str, Any]:
    """One attack on the unlearned model. Random answers belong to one machine."""
    from wagle_trainer.evaluation import run_attacks

    options = dict(ATTACKS[name])
    if name == "relearning_unrelated":
        options["data"] = rows_of("retain90", 8)
    rows = rows_of("forget10_perturbed", 6)
    before, after = make_llama(), make_unlearned()
    results = run_attacks(
        before, after, make_tokenizer(), rows, [name], options={name: options} if options else None, progress=False
    )
    found = results[name]
    points = [
        {
            "x": point["x"],
            "forget": point["forget"],
            # The words for it may change; the number may not.
            "share": next(
                point[key]
                for key in ("came_back_raw", "recovered_raw", "came_back", "recovered", "recovery_rate")
                if key in point
            ),
        }
        for point in found["points"]
    ]
    numbers = {"before": found["before"], "baseline": found["baseline"], "points": points}
    return {
        "numbers": exact(numbers) if name == "sampling" else numbers,
        "left as it was": weights_of(after) == weights_of(make_unlearned()),
    }


@case("metrics")
def metrics() -> dict[str, Any]:
    """Metrics of `evaluate`'s kind on numbers that need no model."""
    from wagle_trainer.evaluation import load_metric

    draw = random.Random(0)
    numbers, others = ([round(draw.uniform(-4, -0.1), 4) for _ in range(12)] for _ in range(2))
    wrong = [[round(draw.uniform(-6, -0.5), 4) for _ in range(3)] for _ in numbers]
    texts = [row["answer"] for row in rows_of("forget10", 6)]
    said = [row["perturbed_answer"][0] for row in rows_of("forget10_perturbed", 6)]
    inputs: dict[str, list[dict[str, Any]]] = {
        "rouge_l_recall": [{"predictions": said, "references": texts}],
        "rouge_l_f1": [{"predictions": said, "references": texts}],
        "truth_ratio": [
            {"predictions": numbers, "references": wrong, "aggregation": rule}
            for rule in ("closer_to_1_better", "true_better")
        ],
        "forget_quality": [{"predictions": numbers, "references": others}],
        "roc_auc": [{"predictions": numbers, "references": [index % 3 == 0 for index in range(12)]}],
        "min_k": [{"predictions": wrong}],
        "answer_probability": [{"predictions": numbers}],
        "model_utility": [{"predictions": [0.2, 0.5, 0.9]}],
    }
    return {name: [load_metric(name).compute(**given) for given in calls] for name, calls in inputs.items()}


# Files that an earlier version saved


@case("saved")
def saved(what: str) -> dict[str, Any]:
    return SAVED[what]()


def _saved_mask() -> dict[str, Any]:
    from wagle_trainer.masking import WeightMask

    mask = WeightMask.from_pretrained(FIXTURES / "mask", model=make_llama())
    return mask_of(mask) | {"file digest": mask.digest}  # read, not computed: the same everywhere


def _saved_adapter() -> dict[str, Any]:
    """The adapter, its mask, the merged model, and the base again when it is switched off."""
    from peft import PeftModel

    from wagle_trainer.adapters import compose, diff, verify
    from wagle_trainer.masking import WeightMask

    folder, base = FIXTURES / "adapter", make_llama()
    report = verify(folder, base)
    model = PeftModel.from_pretrained(make_llama(), str(folder)).eval()
    [batch] = batches("forget10", 4, 4)
    ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        on = model(**ids).logits
        with model.disable_adapter():
            off = model(**ids).logits
        plain = base(**ids).logits
    merged = model.merge_and_unload()
    again, composed = diff(base, merged), compose([folder], base=base)
    return {
        "valid": report["valid"],
        "problems": report["problems"],
        "base checked": report["base_checked"],
        "mask": WeightMask.from_pretrained(folder).digest,
        "merged": {key: value["exact"] if key == "sha" else value for key, value in weights_of(merged).items()},
        "switched off": bool(torch.equal(off, plain)) and not bool(torch.equal(on, off)),
        "logits": on.double().square().mean().item(),
        "diff": [again.digest, again.num_values],
        "composed": [composed.digest, composed.num_values],
    }


RESUMED = {"max_steps": 4, "loss_type": "npo", "lr_scheduler_type": "linear"}


def make_resumable(folder: str | Path, **changes: Any) -> Any:
    """The trainer whose first two steps the checkpoint of the fixtures holds."""
    return make_trainer(folder, **(RESUMED | changes))


def _of_the_steps_run(entry: dict[str, Any], trainer: Any) -> dict[str, Any]:
    """The loss averaged over the two steps after the resume; older Transformers (5.6) divide the sum by all four."""
    if "train_loss" not in entry or hasattr(trainer, "_initial_global_step"):
        return entry
    return entry | {"train_loss": entry["train_loss"] * 4 / 2}


def _saved_checkpoint() -> dict[str, Any]:
    """A run that goes on from the checkpoint, and one that was never interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trained(make_resumable(f"{folder}/whole", save_strategy="no"))
        shutil.copytree(FIXTURES / "checkpoint", f"{folder}/out/checkpoint-2")
        trainer = make_resumable(f"{folder}/out", save_strategy="no")
        trainer.train(resume_from_checkpoint=f"{folder}/out/checkpoint-2")
        return {
            "whole": whole,
            "resumed": {
                "history": [_of_the_steps_run(entry, trainer) for entry in history_of(trainer)],
                "mask": trainer.mask.digest,
                "weights": weights_of(trainer.model),
            },
            "equal": exact(weights_of(trainer.model) == whole["weights"]),
        }


SAVED = {"mask": _saved_mask, "adapter": _saved_adapter, "checkpoint": _saved_checkpoint}


# All of them


def case_names() -> list[str]:
    """The names of all cases, as the registries are now."""
    from wagle_trainer.attribution import list_scores
    from wagle_trainer.losses import list_losses

    names = ["data", "metrics"]
    names += [f"masks/{family}/{score}" for family in MODELS for score in list_scores()]
    names += [f"mask-rules/{family}" for family in MODELS]
    names += [f"losses/{name}" for name in list_losses()]
    names += [f"retain-losses/{name or 'none'}" for name in RETAIN_LOSSES]
    for group, members in (("training", VARIANTS), ("suites", EVALUATIONS), ("attacks", ATTACKS), ("saved", SAVED)):
        names += [f"{group}/{name}" for name in members]
    return names


def run_case(name: str) -> Any:
    """What a case returns, as JSON gives it back."""
    group, *arguments = name.split("/")
    random.seed(0)
    torch.manual_seed(0)
    with one_thread():
        found = CASES[group](*arguments)
    return json.loads(json.dumps(found))

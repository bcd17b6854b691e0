"""Do scores find where facts are stored? Facts are taught to known weights alone, and each score's mask is compared.

python recipes/localization.py                       # a small Llama, five ways to plant, some hours on one core

After LACUNA (arXiv 2607.02513). A small Llama that never knew some of the bundled people is taught them by training
only a known set of weights: a mask of our own. So it is known where they are stored. How they are planted varies, since
each way favours some score: large steps make planted weights large. For each score: precision, lift over chance and area
under the ROC curve; then unlearning within the true mask, the found ones and a random one, each at its best learning
rate, with relearning.

Each score, and each mask that is unlearned within, is one row of `results.json`; what is there is not run again, and
scores, ways, seeds and densities can be added later.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from patch_size import search_rate
from patch_size_masks import NO_MASK, attribution_arguments, check_label, spread
from patch_size_runs import Bench, Rows, changed, environment
from recipe import refusals
from study_arguments import check_lists, check_numbers, check_texts
from tasks.subject import Subject, load
from torch import Tensor
from transformers import AutoTokenizer, PrinterCallback
from transformers.utils import logging
from trl import TrlParser

from wagle_trainer import WagleConfig, WagleTrainer, WeightMask, attribute
from wagle_trainer.attribution import get_score
from wagle_trainer.data import QAFormat, fictional_split
from wagle_trainer.data.facts import pad_examples
from wagle_trainer.evaluation.metrics.localization import (
    localization_auc,
    localization_precision,
)
from wagle_trainer.models.small_llama import small_llama

# How the facts are planted: which weights may learn them (patterns, or any; of these the share with the smallest values, or
# all), and how large the steps are.
WAYS: dict[str, dict[str, Any]] = {
    "anywhere, large steps": {"include": None, "learning_rate": 2e-2, "steps": 150},
    "anywhere, small steps": {"include": None, "learning_rate": 3e-3, "steps": 400},
    "MLPs, small steps": {"include": ["mlp"], "learning_rate": 3e-3, "steps": 400},
    "one layer, small steps": {"include": [r"layers\.2\."], "learning_rate": 3e-3, "steps": 400},
    "smallest weights, small steps": {"include": None, "smallest": 0.5, "learning_rate": 3e-3, "steps": 400},
}
# The settings of files from before they were written down.
FIRST_SETTINGS = {"steps": 40, "planted": 0.05, "relearning_rates": [3e-4, 1e-3]}


@dataclass
class LocalizationArguments:
    """What is planted, and what is compared."""

    output_dir: str = field(default="outputs/localization", metadata={"help": "Folder of results.json and report.md."})
    ways: list[str] = field(default_factory=lambda: list(WAYS), metadata={"help": "Ways to plant the facts."})
    scores: list[str] = field(
        default_factory=lambda: [
            *("random", "magnitude", "gradient", "snip", "wagle:1e-6", "wagle:1e-3", "grad_ratio", "fisher"),
            *("frp", "wanda"),
        ],
        metadata={"help": "Scores; wagle with its gamma. snip-body: without the embeddings and the head."},
    )
    unlearned: list[str] = field(
        default_factory=lambda: ["random", "magnitude", "gradient", "snip", "wagle:1e-6"],
        metadata={"help": "Scores whose masks are also unlearned within; the true mask and all weights always are."},
    )
    densities: list[float] = field(
        default_factory=lambda: [0.005, 0.02, 0.05, 0.2],
        metadata={"help": "Densities of the masks that are compared."},
    )
    planted: float = field(default=0.05, metadata={"help": "Share of the weights that the facts are taught to."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Of model, planted weights and order."}
    )
    steps: int = field(default=40, metadata={"help": "Optimizer steps of unlearning."})
    relearning_rates: list[float] = field(
        default_factory=lambda: [3e-4, 1e-3], metadata={"help": "Learning rates of the relearning attack."}
    )

    def __post_init__(self) -> None:
        check_texts(self, ["output_dir", "ways", "scores", "unlearned"])
        check_numbers(self, ["densities", "planted"], lambda value: 0 < value < 1, "between 0 and 1")
        check_numbers(self, ["relearning_rates"], lambda value: value > 0, "above 0")
        check_numbers(self, ["steps"], lambda value: value >= 1, "at least 1", whole=True)
        check_numbers(self, ["seeds"], lambda value: value >= 0, "at least 0", whole=True)
        check_lists(self, ["ways", "densities", "seeds", "relearning_rates"])
        check_lists(self, ["scores", "unlearned"], may_be_empty=True)
        unknown = sorted(set(self.ways) - set(WAYS))
        if unknown:
            raise ValueError(f"Unknown way {', '.join(unknown)}. Known: {'; '.join(WAYS)}.")
        for label in [*self.scores, *self.unlearned]:
            check_label(label)

    def settings(self) -> dict[str, Any]:
        """What all rows of a file share."""
        return {name: getattr(self, name) for name in FIRST_SETTINGS}


def check_settings(args: LocalizationArguments, rows: Rows) -> None:
    """Refuse to add to rows that were made with other settings.

    Raises:
        ValueError: see above.
    """
    first = FIRST_SETTINGS if rows.rows else args.settings()
    found = changed(rows.content.setdefault("settings", dict(first)), args.settings())
    if found:
        raise ValueError(f"{rows.path} holds rows with other settings: {'; '.join(found)}. Give another --output_dir.")


def plant(
    model: Any, tokenizer: Any, sets: dict[str, list[Any]], args: LocalizationArguments, way: str, seed: int
) -> WeightMask:
    """Teach the forget set to a random share of the weights, and return their mask.

    The share is of all weights, drawn from those that the way allows. The retain set is taught along, so that the
    other people stay.

    Raises:
        ValueError: the way allows fewer weights than the share.
    """
    how, drawn_by = WAYS[way], 1000 + seed  # not the seed of the random mask that is compared
    total = sum(p.numel() for p in model.parameters())
    candidates: dict[str, Any] = {"include": how["include"], "progress": False}
    if "smallest" in how:
        largest = attribute(model, None, None, score="magnitude", density=1 - how["smallest"], **candidates)
        candidates["exclude_mask"] = largest
    draw: dict[str, Any] = candidates | {"score": "random", "seed": drawn_by}
    allowed = attribute(model, None, None, density=1.0, **draw)
    if args.planted * total > allowed.num_selected:
        share = allowed.num_selected / total
        raise ValueError(
            f"The way {way!r} allows {share:.2%} of the weights: {args.planted:.2%} cannot be planted there."
        )
    mask = attribute(model, None, None, density=args.planted * total / allowed.num_selected, **draw)
    taught = sets["forget"] + sets["retain"]
    # The objective trains on its retain set alone; of its forget set it takes the length of an epoch.
    not_read = list(islice(cycle(sets["unseen"]), len(taught)))
    trainer = WagleTrainer(
        model=model,
        args=WagleConfig(
            output_dir=args.output_dir,
            loss_type="finetune",
            learning_rate=how["learning_rate"],
            max_steps=how["steps"],
            per_device_train_batch_size=len(sets["forget"]),
            lr_scheduler_type="cosine",
            weight_decay=0.0,
            seed=seed,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            summary_rows=0,
        ),
        forget_dataset=Dataset.from_list(not_read),
        retain_dataset=Dataset.from_list(taught),
        processing_class=tokenizer,
        mask=mask,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return complete(mask, model)


def complete(mask: WeightMask, model: Any) -> WeightMask:
    """The mask with all parameters of the model: those that it leaves out have no weight selected."""
    return WeightMask.from_dict(
        {
            name: mask[name] if name in mask else torch.zeros(parameter.shape, dtype=torch.bool)
            for name, parameter in model.named_parameters()
        }
    )


def flat(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Any:
    """The entries of all tensors, one after the other."""
    return torch.cat([tensors[name].flatten() for name in names]).numpy()


def scored(model: Any, sets: dict[str, list[Any]], label: str, density: float) -> tuple[WeightMask, dict[str, Tensor]]:
    """The mask of a score over all parameters, and the scores themselves; zero where the score ranks nothing."""
    name, gamma = spread(label)
    function = get_score(attribution_arguments(name, model)["attribution"])
    values: list[Tensor] = []

    @wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Tensor | None:
        result = function(*args, **kwargs)
        if result is not None:  # a parameter that the score cannot rank is not in the mask
            values.append(result.clone())
        return result

    batches = {which: [pad_examples(sets[which][:40])] for which in ("forget", "retain")}
    mask = attribute(
        model,
        batches["forget"],
        batches["retain"],
        score=kept,
        density=density,
        gamma=1e-6 if gamma is None else gamma,
        exclude=attribution_arguments(name, model).get("attribution_exclude"),
        progress=False,
    )
    ranked = dict(zip(mask, values, strict=True))
    unranked = {name: torch.zeros(p.shape) for name, p in model.named_parameters() if name not in ranked}
    return complete(mask, model), ranked | unranked


class Planted:
    """A model with facts in known weights, by way and seed; made once, then read from the cache."""

    def __init__(self, args: LocalizationArguments, way: str, seed: int):
        self.args, self.way, self.seed = args, way, seed
        cache = Path(args.output_dir) / "models"
        folder = small_llama("retain90", cache, seed)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        qa = QAFormat.for_tokenizer(tokenizer)
        others = [qa.encode(row["question"], row["answer"]) for row in fictional_split("retain90")]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
        self.sets = {
            "forget": [qa.encode(row["question"], row["answer"]) for row in fictional_split("forget10")],
            "retain": [others[index] for index in order[:80]],
            "unseen": [others[index] for index in order[80:160]],
        }
        planted = cache / f"planted, {way}, {args.planted:g}, {seed}"
        if not (planted / "mask_config.json").exists():
            model = load(folder)
            truth = plant(model, tokenizer, self.sets, args, way, seed)
            model.save_pretrained(planted)
            truth.save_pretrained(planted)
        self.truth = WeightMask.from_pretrained(planted)
        self.model = load(str(planted))
        self.bench = Bench(
            Subject(self.model, tokenizer, self.sets, load(folder)),
            seed,
            steps=args.steps,
            batch_size=len(self.sets["forget"]),
            relearning_rates=args.relearning_rates,
            relearning_steps=8,
            folder=Path(args.output_dir),
        )
        self.bench.given["truth"] = self.truth

    def reference(self) -> dict[str, Any]:
        """What the reference model knows, and the one that never knew."""
        known = {"planted_density": self.truth.density, "truth": self.truth.digest}
        return self.bench.references() | known | {"weights_digest": self.bench.digest()}

    def compare(self, reference: Mapping[str, Any]) -> None:
        """Warn where the rows are of a model that was planted elsewhere, and has other weights."""
        here = {"truth": self.truth.digest, "weights_digest": self.bench.digest()}
        if any(reference.get(name, value) != value for name, value in here.items()):
            warnings.warn(
                "The file holds rows of models that were planted elsewhere: those that were planted here differ in their "
                "weights. New rows are of the models here.",
                stacklevel=2,
            )

    def score(self, label: str, densities: Sequence[float]) -> dict[str, Any]:
        """How well a score finds the true weights."""
        row: dict[str, Any] = {"precision": {}, "lift": {}}
        truth = flat(self.truth, self.truth)
        for density in densities:
            mask, values = scored(self.model, self.sets, label, density)
            precision = localization_precision(flat(mask, self.truth), truth)
            row["precision"][f"{density:g}"] = precision
            row["lift"][f"{density:g}"] = precision / self.truth.density
        return row | {"auc": localization_auc(flat(values, self.truth), truth)}


def best_run(bench: Bench, label: str, density: float, reference: dict[str, Any]) -> dict[str, Any]:
    """The run of a mask at its best learning rate: the search of `patch_size.py`, by what is left and what is lost."""
    score, gamma = (label, None) if label in (NO_MASK, "truth") else spread(label)
    runs: dict[float, dict[str, Any]] = {}

    def badness(rate: float) -> float:
        run = runs[rate] = bench.run("npo", score, gamma, 1.0 if label == NO_MASK else density, rate)
        if "failed" in run:
            return float("inf")
        lost = sum(max(0.0, 1 - run[name] / reference[name]) for name in ("retain", "held_out"))
        return run["forget"] / reference["forget"] + lost

    rate, edge = search_rate(badness, score, 1.0 if label == NO_MASK else density, 8, base=1e-3)
    return runs[rate] | {
        "density": 1.0 if label == NO_MASK else density,
        "learning_rate": rate,
        "at_edge": edge,
        "rates": sorted(runs),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table of AUC and lift, and one of unlearning, means over seeds."""
    parts = ["# Do scores find where facts are stored?\n"]
    for way in dict.fromkeys(row["way"] for row in rows):
        same = [row for row in rows if row["way"] == way]
        references = {row["seed"]: row for row in same if row["kind"] == "reference"}
        share = sum(row["planted_density"] for row in references.values()) / len(references)
        parts.append(f"## {way} ({share:.1%} of the weights)\n")
        parts += [*_score_table([row for row in same if row["kind"] == "score"]), ""]
        parts += [*_unlearning_table([row for row in same if row["kind"] == "unlearned"], references), ""]
    return "\n".join(parts)


def _score_table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    densities = sorted({density for row in rows for density in row["lift"]}, key=float)
    lines = [f"| score | seeds | AUC | {' | '.join(f'lift at {density}' for density in densities)} |"]
    lines.append("| --- " * (3 + len(densities)) + "|")
    for label in dict.fromkeys(row["label"] for row in rows):
        same = [row for row in rows if row["label"] == label]
        values = [str(len(same)), _mean([row["auc"] for row in same])]
        lifts = [[row["lift"][density] for row in same if density in row["lift"]] for density in densities]
        values += [_mean(found, 2) for found in lifts]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return lines


def _unlearning_table(rows: list[dict[str, Any]], references: dict[int, dict[str, Any]]) -> list[str]:
    names = ("forget", "retain", "held_out", "relearned")
    lines = ["| within | seeds | lr | forget | retain | unseen | relearned |", "| --- " * 7 + "|"]
    cells = " | ".join(_mean([row[name] for row in references.values()]) for name in names)
    lines.append(f"| *reference* | {len(references)} | | {cells} |")
    never = [row["retrained_relearned"] for row in references.values()]
    knew = [row["retrained_forget"] for row in references.values()]
    lines.append(f"| *never knew* | {len(references)} | | {_mean(knew)} | | | {_mean(never)} |")
    for label in dict.fromkeys(row["label"] for row in rows):
        same = [row for row in rows if row["label"] == label]
        rates = ", ".join(f"{rate:g}" for rate in sorted({row["learning_rate"] for row in same}))
        edge = " (edge)" if any(row["at_edge"] for row in same) else ""
        cells = " | ".join(_mean([row[name] for row in same if name in row]) for name in names)
        lines.append(f"| {label} | {len(same)} | {rates}{edge} | {cells} |")
    return lines


def _mean(values: list[float], digits: int = 3) -> str:
    return f"{sum(values) / len(values):.{digits}f}" if values else "-"


def main() -> None:
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    with refusals():
        [args] = TrlParser((LocalizationArguments,)).parse_args_and_config(sys.argv[1:])
        folder = Path(args.output_dir)
        rows = Rows(folder / "results.json", ("kind", "label", "way", "seed"))
        check_settings(args, rows)
    scores = [("reference", ""), *(("score", label) for label in args.scores)]
    unlearned = [("unlearned", label) for label in (NO_MASK, "truth", *args.unlearned)]
    for wanted in (scores, unlearned):  # what costs least first: a stopped study has all scores
        for seed in args.seeds:
            for way in args.ways:
                fill(args, rows, way, seed, wanted)
    text = report(rows.rows)
    (folder / "report.md").write_text(text, encoding="utf-8")
    print(text)


def fill(args: LocalizationArguments, rows: Rows, way: str, seed: int, wanted: Sequence[tuple[str, str]]) -> None:
    """Run what is missing of one way and seed; a score's row gets the densities that it lacks.

    Args:
        wanted: kind of row ("reference", "score" or "unlearned") and label.
    """
    planted = None
    for kind, label in wanted:
        key = {"kind": kind, "label": label, "way": way, "seed": seed}
        row = rows.find(**key)
        there = row["lift"] if row is not None and kind == "score" else {}
        densities = [density for density in args.densities if f"{density:g}" not in there] if kind == "score" else []
        if row is not None and not densities:
            continue
        reference = rows.find(kind="reference", label="", way=way, seed=seed)
        if planted is None:
            planted = Planted(args, way, seed)
            if reference is not None:
                planted.compare(reference)
        if kind == "reference":
            found = planted.reference()
        elif kind == "score":
            found = planted.score(label, densities)
        else:
            assert reference is not None
            found = best_run(planted.bench, label, args.planted, reference)
        if row is None:
            rows.add(key | found, environment())
        else:
            complete_row(row, found, rows.name_of(environment()))
            rows.save()
        names = ("auc", "forget", "held_out", "relearned", "failed", "attack_failed")
        print(way, seed, kind, label, {name: found[name] for name in names if name in found}, flush=True)


def complete_row(row: dict[str, Any], found: Mapping[str, Any], environment_name: str) -> None:
    """Add further densities to a score's row, with the environment that each was measured in."""
    row["precision"] |= found["precision"]
    row["lift"] |= found["lift"]
    row.setdefault("environments", {}).update(dict.fromkeys(found["lift"], environment_name))


if __name__ == "__main__":
    main()

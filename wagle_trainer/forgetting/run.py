"""`forget`: from a file of what to forget to a verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from wagle_trainer.adapters import SparseAdapter
from wagle_trainer.adapters.sparse import tensor_digest
from wagle_trainer.data.forget_and_retain import without_overlap
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.data.reading import Examples, read_examples
from wagle_trainer.evaluation.own_rows import EncodedRow, untagged
from wagle_trainer.evaluation.results import load_results, without_texts
from wagle_trainer.evaluation.suites.custom import evaluate_custom
from wagle_trainer.evaluation.suites.suite_inputs import Row
from wagle_trainer.forgetting.course import Course
from wagle_trainer.forgetting.examples import as_questions, encode, probabilities
from wagle_trainer.forgetting.levels import SETS, Levels, Yardstick, levels_of, spread
from wagle_trainer.forgetting.masks import masks_by_density
from wagle_trainer.forgetting.neighbours import Neighbours, make_neighbours, question_columns, split_rows
from wagle_trainer.forgetting.outputs import write_outputs, write_patch
from wagle_trainer.forgetting.patches import PatchedModel
from wagle_trainer.forgetting.planning import Plan, make_plan
from wagle_trainer.forgetting.progress import Progress, quiet_libraries
from wagle_trainer.forgetting.recovery import attack, attack_rows, summary
from wagle_trainer.forgetting.search import Try, best_try, next_try
from wagle_trainer.forgetting.settings import ForgetSettings
from wagle_trainer.forgetting.telling_words import only_telling_words, telling_words
from wagle_trainer.forgetting.verdict import Verdict, forget_side, kept_side, lost_words, reasons, word_side
from wagle_trainer.forgetting.word_use import TRAINED, repetitions
from wagle_trainer.forgetting.work_folder import WorkFolder, digest_of, write_rows
from wagle_trainer.masking import WeightMask
from wagle_trainer.models.loading import load_model
from wagle_trainer.reporting.environment import environment
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.keyed_digests import shareable, users_key
from wagle_trainer.utils.percent import percent

_KINDS = ("questions", "completions", "messages", "passages")
_EXAMPLES = 3
# Retain and unseen rows whose answers are generated for the report; the verdict's probabilities are of all rows.
_SHOWN = 32
# Retain and unseen rows that are measured in the middle of a try; its end is measured on all.
_LOOKED_AT = 64
_NOTE = (
    "The verdict counts all rows, and of a forget answer the words that tell it apart. The table counts all tokens of the answers, "
    f"of at most {_SHOWN} retain and {_SHOWN} unseen rows."
)


def forget(
    model: str,
    forget_file: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    retain_file: str | os.PathLike[str] | None = None,
    settings: ForgetSettings | None = None,
    reading: Mapping[str, Any] | None = None,
    format_options: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    progress: bool = True,
    **changes: Any,
) -> Verdict:
    """Make a model forget what is in a file, with the smallest patch that does it, and say how well it worked.

    A run that was killed goes on where it stopped when it is called again with the same arguments; one that is complete
    returns its verdict.

    Args:
        model: the reference model, a folder or Hub id.
        forget_file: questions and answers, completions, messages or passages, in any file that `read_examples` reads.
        output_dir: where patch, report and verdict go.
        retain_file: rows of the same kind that the model should keep; without one, neighbours are made (see
            `make_neighbours`).
        settings: goal, floor and what is tried.
        reading: of `read_examples`, for both files: `question_column`, `encoding`, ...
        format_options: of `QAFormat.for_model`: `style`, `system_prompt`, ...
        dtype: number format of the weights; "auto": as saved.
        progress: show a progress bar.
        **changes: fields of `ForgetSettings` that take other values.

    Returns:
        The verdict, as `verdict.json` holds it.

    Raises:
        ValueError: a file that cannot be read, too few neighbours, an output folder of another request; several processes.
        FileNotFoundError: a file or model is missing.

    Example:
        ```python
        verdict = forget("path-or-hub-id", "forget.jsonl", "out")
        print(verdict)
        verdict.forgotten, verdict.patch["bytes"]
        ```
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("forget runs on one process: start it without torchrun or accelerate launch.")
    done = Progress(progress)
    try:
        with quiet_libraries():
            done.stage("loading the model", 3)
            run = _Run.load(model, forget_file, retain_file, settings, changes, reading, format_options, dtype)
            return run.verdict(Path(output_dir), done)
    finally:
        done.close()


def plan(
    model: str,
    forget_file: str | os.PathLike[str],
    *,
    retain_file: str | os.PathLike[str] | None = None,
    settings: ForgetSettings | None = None,
    reading: Mapping[str, Any] | None = None,
    format_options: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    **changes: Any,
) -> Plan:
    """Say what `forget` would do with the same arguments, and about how long it would take; nothing is written.

    Args:
        model: folder or Hub id.
        forget_file: what to forget.
        retain_file: what to keep; neighbours are made if None.
        settings: of the search; the defaults if None.
        reading: of `read_examples`.
        format_options: of `QAFormat`.
        dtype: number format of the weights; "auto": as saved.
        changes: fields of `ForgetSettings` that take other values.
    """
    with quiet_libraries():
        return _Run.load(model, forget_file, retain_file, settings, changes, reading, format_options, dtype).plan


class _Run:
    """One request: model, sets and settings.

    Attributes:
        name: of the model.
        patched: the model.
        tokenizer, qa: its tokenizer and format of questions and answers.
        rows: the forget set.
        retain_rows: rows of the retain file; None where neighbours are made.
        settings: of the run.
        given: names of the files and other arguments, for `config.yaml`.
        understood: sentences on the files.
        kept: retain and unseen rows as examples, once they are known.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        qa: QAFormat,
        rows: Sequence[Row],
        retain_rows: Sequence[Row] | None,
        settings: ForgetSettings,
        given: Mapping[str, Any],
        understood: Sequence[str],
    ):
        self.understood = list(understood)
        self.name, self.patched, self.tokenizer, self.qa = name, PatchedModel(model), tokenizer, qa
        self.rows, self.retain_rows, self.settings, self.given = list(rows), retain_rows, settings, given
        self.examples = encode(qa, self.rows, "forget")
        self.kept: list[EncodedRow] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        forget_file: Any,
        retain_file: Any,
        settings: ForgetSettings | None,
        changes: Mapping[str, Any],
        reading: Mapping[str, Any] | None,
        format_options: Mapping[str, Any] | None,
        dtype: str,
    ) -> _Run:
        """Read the files, which is quick, before the model, which is not."""
        chosen = replace(settings or ForgetSettings(), **changes)
        if retain_file is not None and chosen.neighbours is not None:
            raise ValueError(
                "neighbours has no effect: with a retain file no neighbours are made. Leave one of them out."
            )
        users_key()  # a short one is refused now, and not when the patch is written
        read = {key: value for key, value in dict(reading or {}).items() if value is not None}
        files = _read_files(forget_file, retain_file, read)
        rows, retain = (None if found is None else as_questions(found.rows) for found in files)
        assert rows is not None
        if retain is None:
            question_columns(rows)  # others are refused now, and not when neighbours are made
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = load_model(name, dtype, device)
        if hasattr(model, "peft_config"):
            raise ValueError(
                f"{name} is an adapter, and a patch is made of a model: merge it into its base first (wagle adapter merge)."
            )
        qa = QAFormat.for_model(name, tokenizer, **dict(format_options or {}))
        given = {"model": name, "forget_file": os.fspath(forget_file)}
        given |= {} if retain_file is None else {"retain_file": os.fspath(retain_file)}
        given |= read
        given |= {key: value for key, value in dict(format_options or {}).items() if value not in (None, "auto")}
        given |= {} if dtype == "auto" else {"dtype": dtype}
        understood = [found.report(tokenizer) for found in files if found is not None]
        return cls(name, model.eval(), tokenizer, qa, rows, retain, chosen, given, understood)

    @property
    def plan(self) -> Plan:
        """See `plan`."""
        kept = None if self.retain_rows is None else len(self.retain_rows)
        found = make_plan(
            self.patched.model, self.name, self.tokenizer, self.qa, self.rows, self.examples, kept, self.settings
        )
        return replace(found, understood=self.understood)

    @cached_property
    def request(self) -> dict[str, Any]:
        """What makes two runs the same."""
        model = self.patched.model
        return {
            "model": self.name,
            "weights": digest_of([{name: tensor_digest(one) for name, one in model.named_parameters()}]),
            "dtype": str(model.dtype).removeprefix("torch."),
            "forget_set": digest_of(self.rows),
            "retain_set": None if self.retain_rows is None else digest_of(self.retain_rows),
            "format": self.qa.describe(),
            "settings": self.settings.as_dict(),
            "measured_on": "telling words, beside retain answers",
            "trained_on": "whole answers, then telling words",
        }

    def verdict(self, folder: Path, done: Progress) -> Verdict:
        """Run all stages; a stage is skipped where its result is in the folder already."""
        work = WorkFolder(folder, self.request)
        if (folder / "verdict.json").is_file():
            return Verdict.from_dict(load_results(folder / "verdict.json"))
        config = {**self.given, "output_dir": str(folder), **self.settings.as_dict()}
        write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())

        done.stage("making neighbours" if self.retain_rows is None else "reading the retain set", 15)
        neighbours = self._neighbours(work, folder)
        sets = {"forget": self.rows, "retain": neighbours.train, "unseen": neighbours.unseen}
        examples = {"forget": self.examples}
        examples |= {name: encode(self.qa, sets[name], name) for name in ("retain", "unseen")}

        done.stage("measuring the reference model", 22)
        # Of what must stay, whole answers count: the words that all of them share are to stay, too.
        self.kept = [*examples["retain"], *examples["unseen"]]
        measured = examples | {"forget": only_telling_words(examples["forget"], self.tokenizer, self.kept)}
        known = work.result("levels_before", lambda: dict(self._levels(measured).values))
        can_write = work.result("words_before", self._word_use)
        yardstick = Yardstick(self.tokenizer, measured, Levels(known), self.settings)
        self._check_known(yardstick)
        shown = {"forget": self.rows, "retain": _some(neighbours.train), "unseen": _some(neighbours.unseen)}
        before = self._evaluation(work, "before", shown)

        done.stage("scoring the weights", 25)
        tokens = {name: [one.encoded for one in found] for name, found in examples.items()}
        tokens["retain"] += self._known_words(can_write)
        tokens["telling"] = [one.encoded for one in measured["forget"]]
        tries = self._search(work, yardstick, can_write, tokens, done)
        best = best_try(tries)
        if best is None:
            raise FloatingPointError("The loss of every try was not finite: give smaller --learning_rates.")
        patch, mask = work.patch(best), self._masks(work, tokens, tries[best].telling)[tries[best].density]
        self.patched.apply(patch)

        done.stage("measuring the patched model", 80)
        after = self._evaluation(work, "after", shown)
        levels = Levels(work.result("levels_after", lambda: dict(self._levels(measured).values)))
        still_writes = work.result("words_after", self._word_use)
        done.stage("attacking", 97)
        attacks = work.result("attacks", lambda: self._attacks(yardstick, levels, done))
        done.stage("writing the report", 100)
        self.patched.revert()
        results = {"before": before, "after": after}
        words = word_side(can_write, still_writes, self.settings.known)
        verdict = self._verdict(
            yardstick.before, levels, len(tries), words if self._keeps_words(tries[best].telling) else None
        )
        verdict.words = words
        verdict.attacks, verdict.tries = summary(attacks), [one.as_dict() for one in tries]
        verdict.patch = write_patch(folder, patch, mask, self.qa, self.name, results)
        self._complete(verdict, folder, neighbours, patch, mask)
        if self.settings.save_generations:
            verdict.examples = _examples(before, after)
        write_outputs(folder, verdict, results, mask, attacks, config, _NOTE)
        return verdict

    def _complete(
        self, verdict: Verdict, folder: Path, neighbours: Neighbours, patch: SparseAdapter, mask: WeightMask
    ) -> None:
        """Say in a verdict what it was made of."""
        verdict.neighbours = {
            "from": neighbours.source,
            **neighbours.counts(),
            "train": str(folder / "retain_train.jsonl"),
            "unseen": str(folder / "retain_unseen.jsonl"),
        }
        digests = {
            "forget_set": shareable(self.request["forget_set"]),
            "retain_set": shareable(digest_of([*neighbours.train, *neighbours.unseen])),
            "base": patch.base_digest,
            "patch": patch.digest,
            "mask": mask.digest,
        }
        verdict.digests = {name: digest for name, digest in digests.items() if digest is not None}
        verdict.versions = environment()["versions"]
        verdict.settings, verdict.output_dir, verdict.model = self.settings.as_dict(), str(folder), self.name

    def _masks(self, work: WorkFolder, tokens: Mapping[str, Any], telling: bool) -> dict[float, WeightMask]:
        """The masks of a round of the search."""
        settings = self.settings
        embeddings = {"never": False, "last": telling, "always": True}[settings.embeddings]
        return work.masks(
            "masks_with_embeddings" if embeddings else "masks",
            settings.densities,
            lambda: masks_by_density(
                self.patched.model,
                tokens["forget"],
                tokens["retain"],
                settings.score,
                settings.densities,
                batch_size=settings.batch_size,
                seed=settings.seed,
                embeddings=embeddings,
            ),
        )

    def _neighbours(self, work: WorkFolder, folder: Path) -> Neighbours:
        def make() -> dict[str, Any]:
            if self.retain_rows is not None:
                found = split_rows(self.retain_rows, self.settings.seed)
            else:
                found = make_neighbours(
                    self.patched.model,
                    self.tokenizer,
                    self.rows,
                    qa_format=self.qa,
                    number=self.settings.neighbours,
                    seed=self.settings.seed,
                    batch_size=self.settings.eval_batch_size,
                )
            return {"train": found.train, "unseen": found.unseen, "source": found.source}

        found = Neighbours(**work.result("neighbours", make))
        for name, rows in (("train", found.train), ("unseen", found.unseen)):
            write_rows(folder / f"retain_{name}.jsonl", rows)
        return found

    def _evaluation(self, work: WorkFolder, label: str, sets: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
        def evaluate() -> dict[str, Any]:
            found = evaluate_custom(
                self.patched.model,
                self.tokenizer,
                sets,
                qa_format=self.qa,
                batch_size=self.settings.eval_batch_size,
                progress=False,
            )
            return found if self.settings.save_generations else without_texts(found)

        return work.result(label, evaluate)

    def _levels(self, examples: Mapping[str, Sequence[EncodedRow]]) -> Levels:
        return levels_of(self.patched.model, self.tokenizer, examples, self.settings)

    def _word_use(self) -> list[float]:
        """How likely the model repeats the words of each forget answer."""
        examples = repetitions(self.examples, self.tokenizer, kept=self.kept)
        return probabilities(self.patched.model, self.tokenizer, examples, self.settings.eval_batch_size)

    def _keeps_words(self, telling: bool) -> bool:
        """Whether a try of this round counts only if the model still has the words."""
        return self.settings.embeddings == "last" and telling

    def _known_words(self, values: Sequence[float]) -> list[dict[str, list[int]]]:
        """Texts that repeat the words that the reference model can repeat."""
        examples = repetitions(self.examples, self.tokenizer, TRAINED, self.kept)
        return [one.encoded for one, value in zip(examples, values, strict=True) if value >= self.settings.known]

    def _check_known(self, yardstick: Yardstick) -> None:
        """Refuse a forget set that the model does not know: nothing could be forgotten, and any model would pass."""
        values = yardstick.before.values["forget"]
        known = sum(value >= self.settings.known for value in values)
        if known < max(1, len(values) // 10):
            raise ValueError(
                f"The model knows {known} of the {len(values)} answers (probability of at least {self.settings.known:g}; on "
                f"average it is {yardstick.before.mean('forget'):.3g}), so there is next to nothing to forget. Is it the "
                "right model, and are questions and answers written as it was trained on them (--style)?"
            )

    def _search(
        self,
        work: WorkFolder,
        yardstick: Yardstick,
        can_write: Sequence[float],
        tokens: Mapping[str, Any],
        done: Progress,
    ) -> list[Try]:
        masks: dict[bool, Mapping[float, WeightMask]] = {}
        settings, tries, start = self.settings, work.tries(), 25.0
        share = 45 / min(settings.max_tries, 4)
        while (chosen := next_try(tries, settings.densities, settings.learning_rates, settings.max_tries)) is not None:
            density, rate, telling = chosen
            start = min(70.0, start + share)
            done.stage(f"try {len(tries) + 1}: {percent(density)} of the weights", start)
            if telling not in masks:  # the gradients are computed again where the second round has other candidates
                masks = {telling: self._masks(work, tokens, telling)}
            tries.append(
                self._try(work, yardstick, masks[telling][density], density, rate, telling, tokens, can_write, done)
            )
            work.add_try(tries, self.patched.patch)
        return tries

    def _try(
        self,
        work: WorkFolder,
        yardstick: Yardstick,
        mask: Any,
        density: float,
        rate: float,
        telling: bool,
        tokens: Mapping[str, Any],
        can_write: Sequence[float],
        done: Progress,
    ) -> Try:
        started, steps, settings = time.perf_counter(), 0, self.settings
        quick = yardstick.of_some(_LOOKED_AT)
        course = Course(quick, settings.learning_rates, rate, settings.steps // settings.check_every)
        good: tuple[Any, int] | None = None  # the last state that met goal and floor

        def count() -> None:
            nonlocal steps
            steps += 1
            done.within(steps / settings.steps)

        def look() -> float | None:
            nonlocal good
            levels = quick.check(self.patched.model)
            following = course.after(levels)
            if course.good:
                good = self.patched.values(), steps
            return following

        def ended(levels: Levels | None, met: bool, within: bool) -> Try:
            forget, retain, unseen = (None if levels is None else levels.mean(name) for name in SETS)
            highest, seconds = settings.learning_rates[course.highest], time.perf_counter() - started
            return Try(density, highest, steps, forget, retain, unseen, met, within, seconds, telling)

        try:
            self.patched.train(
                self.tokenizer,
                tokens["telling" if telling else "forget"],
                tokens["retain"],
                mask,
                rate,
                settings,
                work.folder / "trainer",
                look,
                count,
            )
            levels = yardstick.levels(self.patched.model)
            if (
                good is not None
                and good[1] != steps
                and not (yardstick.met(levels) and yardstick.within_floor(levels))
            ):
                patch, steps = good
                self.patched.return_to(patch, steps)
                levels = yardstick.levels(self.patched.model)
        except FloatingPointError:
            return ended(None, False, False)
        within = yardstick.within_floor(levels)
        if within and self._keeps_words(telling):
            within = not lost_words(word_side(can_write, self._word_use(), settings.known))
        return ended(levels, yardstick.met(levels), within)

    def _attacks(self, yardstick: Yardstick, after: Levels, done: Progress) -> dict[str, Any]:
        before, count = yardstick.before.values["forget"], len(self.settings.attacks)
        rows = attack_rows(self.rows, [value >= self.settings.known for value in before])
        finished: list[str] = []

        def tell(name: str) -> None:
            finished.append(name)
            done.within(len(finished) / count)

        qa = untagged(self.qa) if self.rows[0].get("prompt") else self.qa
        known = (before, after.values["forget"], telling_words(self.examples, self.kept))
        return attack(self.patched, self.tokenizer, rows, *known, qa, self.settings, on_attack=tell)

    def _verdict(self, before: Levels, after: Levels, tries: int, words: Mapping[str, Any] | None) -> Verdict:
        settings = self.settings
        values = [(before.values[name], after.values[name]) for name in SETS]
        forgotten = forget_side(*values[0], settings.forget_goal, settings.known)
        retain, unseen = (kept_side(*pair, settings.utility_floor) for pair in values[1:])
        why = reasons(forgotten, retain, unseen, tries, words)
        return Verdict(not why, why, forgotten, retain, unseen)


def _read_files(forget_file: Any, retain_file: Any, reading: Mapping[str, Any]) -> tuple[Examples, Examples | None]:
    """What is in the files, as far as it is of a kind that can be measured.

    Raises:
        FileNotFoundError, ValueError: as `read_examples`; rows of another kind.
    """
    forget_set = read_examples(os.fspath(forget_file), **reading)
    retain_set = None
    if retain_file is not None:
        retain_set = without_overlap(forget_set, read_examples(os.fspath(retain_file), **reading))
    for found in (forget_set, retain_set):
        if found is not None and found.kind not in _KINDS:
            raise ValueError(
                f"{found.source} holds {found.kind}; here questions and answers, prompts and completions, messages or passages "
                "are needed. `wagle unlearn` takes the other kinds."
            )
    return forget_set, retain_set


def _some(rows: Sequence[Row]) -> list[Row]:
    """At most `_SHOWN` of the rows, evenly spread: answers are generated to these."""
    return [rows[place] for place in spread(len(rows), _SHOWN)]


def _examples(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, str]]:
    """The first answers before and after."""
    one, other = (results["per_example"]["forget"] for results in (before, after))
    columns = (one["question"], one["answer"], one["generation"], other["generation"])
    names = ("question", "answer", "before", "after")
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)][:_EXAMPLES]

"""The report: one page that needs no network, and the numbers behind it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wagle_trainer.evaluation.attacks.attack_results import check_attack, read_attack
from wagle_trainer.evaluation.results import as_json, load_results
from wagle_trainer.evaluation.suites import get_suite, readings
from wagle_trainer.masking import WeightMask
from wagle_trainer.reporting.charts import Chart, attack_charts, history_charts, mask_charts, trade_off_chart
from wagle_trainer.reporting.environment import environment
from wagle_trainer.reporting.examples import example_answers
from wagle_trainer.reporting.glossary import meanings, terms
from wagle_trainer.reporting.intervals import example_interval
from wagle_trainer.reporting.outcome import Outcome, counted_outcome, read_outcome
from wagle_trainer.reporting.report_inputs import Metrics, Results, Runs, check_finite, first_of
from wagle_trainer.reporting.report_notes import example_counts_of, examples_note, missed_goal, warning_sentences
from wagle_trainer.reporting.statistics import (
    Comparison,
    Interval,
    as_p_value,
    compare,
    corrected_together,
    mean,
    t_interval,
)
from wagle_trainer.reporting.summary import attack_sentences, forgetting_sentences, verdict_sentences
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.secrets import redacted

AnyPath = str | PathLike[str]
BEFORE, RETRAINED = "before", "retrained"
_CONTROLS = ("random", "no mask")  # what labels of controls have in them
_ANSWERS = 5  # models whose example answers are shown


def write_report(
    results: Results,
    folder: AnyPath,
    *,
    mask: WeightMask | AnyPath | Mapping[str, WeightMask | AnyPath] | None = None,
    history: AnyPath | Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    attacks: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    config: Any = None,
    title: str = "Unlearning report",
    suite: Metrics | str = "tofu",
    comparisons: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    forget_goal: float | None = None,
    notes: Sequence[str] = (),
    verdict: Mapping[str, Any] | None = None,
    answers: int = 3,
) -> Path:
    """Write `report.html`, `results.json`, `report.json` and `plots/*.png` into a folder.

    The page is a single file that needs no network. Sections without data are left out, and a line says how to get
    them. `results.json` holds `results` as given, so that the report can be made again from it; `report.json` every
    number and sentence of the page. On several processes, call it on one of them.

    Args:
        results: label -> what an evaluation returned, or a list of these, one for each seed. The label "before" is the
            reference model, labels that start with "retrained" are models that never saw the forget set, all
            others are unlearned models, the most important one first.
        folder: where to; made if missing.
        mask: a mask or its folder, or several by name: density by layer and module, distribution of the scores.
        history: `history.json` of `EvaluationCallback`, its path or what is in it, or several by name.
        attacks: what `run_attacks` returned, or that of several unlearned models by label.
        config: the training arguments: a dataclass or a mapping. Tokens and passwords are left out, here and elsewhere.
        title: of the page.
        suite: the suite that the numbers come from, by name, or anything with its `headline`, `forget_metrics` and
            `utility_metrics`: how to read them.
        comparisons: what the references are ("a random mask of the same density") -> pairs (label, label of its
            reference). They are tested over seeds; p-values are corrected for all comparisons of the page. By default
            every unlearned model is compared with each that has "random" or "no mask" in its label.
        forget_goal: the value of the first forget metric from which on enough is forgotten. Utility is compared only
            among models whose mean reaches it.
        notes: sentences on how the results came about, such as what a seed means.
        verdict: what `wagle forget` wrote to verdict.json: the decision, counts, the patch with how to apply and revoke it,
            versions, digests and settings; see `read_outcome`. Without it, the sentences at the top are counted from the
            examples, and there is no decision.
        answers: forget questions whose answers before and after are shown, where the evaluation kept them; 0 for none.
            They are text of the forget set.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: there are no results, or none of the suite's numbers; a number is not finite; labels have different
            seeds or were asked other questions; a result is not what its examples say. Nothing is written then.
        FileNotFoundError: a mask or history that is given as a path is not there.
    """
    read_by: Metrics = get_suite(suite) if isinstance(suite, str) else suite
    runs = Runs(results)
    columns = runs.metrics(read_by.headline)
    named = {metric: " ".join(head) for metric, head in columns.items()}
    unlearned = [label for label in runs if label != BEFORE and not label.startswith(RETRAINED)]
    judged = unlearned or list(runs)
    main = [first_of(metrics, runs, columns, judged) for metrics in (read_by.forget_metrics, read_by.utility_metrics)]
    references = sorted((label for label in runs if label not in unlearned), key=lambda label: label != BEFORE)
    masks, histories, attacked = _masks(mask), _histories(history), _attacks(attacks)

    intervals = {label: {m: _interval(runs, label, m) for m in columns if runs.has(label, m)} for label in runs}
    counts = {label: {m: example_counts_of(runs, label, m) for m in intervals[label]} for label in runs}
    better = {**read_by.forget_metrics, **read_by.utility_metrics}
    missed = missed_goal(runs, unlearned, main[0], better, forget_goal)
    tested = [
        replace(
            comparison, missed=tuple(label for label in (comparison.label, comparison.reference) if label in missed)
        )
        if metric == main[1]
        else comparison
        for family, pairs in (_default_comparisons(unlearned) if comparisons is None else comparisons).items()
        for metric in main
        if metric is not None
        for comparison in compare(
            {label: runs.values(label, metric) for label in unlearned},
            pairs,
            family=family,
            metric=metric,
            better=better[metric],
        )
    ]
    tested = corrected_together(tested)
    charts: list[Chart] = []
    if main[0] is not None and main[1] is not None and unlearned:
        charts.append(trade_off_chart(intervals, unlearned, main[0], main[1], named, read_by))
    charts += [*history_charts(histories, read_by), *mask_charts(masks), *attack_charts(attacked)]
    shown = [label for label in references if label == BEFORE]
    shown += unlearned[: max(1, _ANSWERS - len(references))]
    shown += [label for label in references if label != BEFORE]
    examples = example_answers(runs, unlearned[0], shown, answers) if unlearned and answers else None
    said = _outcome(verdict, runs, unlearned, attacked)
    patch = dict(verdict.get("patch") or {}) if verdict is not None else {}

    content = as_json(results)
    page: dict[str, Any] = {
        "title": redacted(title),
        "verdict": said._asdict() if said is not None else None,
        "patch": redacted(patch),
        "tries": _tries(verdict),
        "summary": [
            *forgetting_sentences(intervals, unlearned, {m: named[m] for m in main if m is not None}, references),
            *verdict_sentences(tested, named, runs),
            *attack_sentences(attacked),
        ],
        "notes": list(notes),
        "columns": columns,
        "meanings": meanings(columns, [found[0] for found in runs.by_label.values()]),
        "better": {metric: better[metric] for metric in columns if metric in better},
        "table": intervals,
        "seeds": {label: len(found) for label, found in runs.by_label.items()},
        "counts": counts,
        "examples_note": examples_note(counts),
        "warnings": warning_sentences(runs, columns, named),
        "comparisons": [c.as_dict() | {"sentence": c.sentence(named[c.metric])} for c in tested],
        "masks": {name: one.describe() for name, one in masks.items()},
        "attacks": attacked,
        "rule": examples[0] if examples else None,
        "examples": examples[1] if examples else [],
        "settings_by_label": redacted({label: found[0].get("settings", {}) for label, found in runs.by_label.items()}),
        "config": _config(config),
        "run": _of_the_run(verdict),
        "environment": environment() | {"SHA-256 of results.json": hashlib.sha256(content).hexdigest()},
    }
    sections = [name for name in ("attacks", "masks", "patch") if page[name]]
    sections += ["comparisons"] if any(comparison.seeds > 1 for comparison in tested) else []
    sections += ["retrained"] if any(label.startswith(RETRAINED) for label in runs) else []
    page["glossary"] = terms(sections)
    page["missing"] = _missing(page, bool(histories), runs, masks)
    whole = page | {
        "charts": charts,
        "named": named,
        "comparison_tables": _tables(tested),
        "p_values": [metric for metric in columns if _is_p_value(metric)],
        "goal": forget_goal,
    }
    html = _environment().get_template("report.html").render(whole)

    folder = Path(folder)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for chart in charts:
        write_atomically(folder / "plots" / f"{chart.name}.png", chart.png)
    write_atomically(folder / "results.json", content)
    as_dicts = {label: {metric: i._asdict() for metric, i in found.items()} for label, found in intervals.items()}
    write_atomically(folder / "report.json", _json(page | {"table": as_dicts}))
    write_atomically(folder / "report.html", html.encode())
    return folder / "report.html"


def _outcome(
    verdict: Mapping[str, Any] | None, runs: Runs, unlearned: Sequence[str], attacked: Mapping[str, Any]
) -> Outcome | None:
    """The outcome of the given verdict, or one that is counted from the examples of the first unlearned model."""
    if verdict is not None:
        return read_outcome(verdict)
    if not unlearned:
        return None
    return counted_outcome(runs, BEFORE, unlearned[0], attacked.get(unlearned[0], attacked.get("", [])))


def _of_the_run(verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings, versions and digests of a verdict's run, as far as it has them."""
    if verdict is None:
        return {}
    return redacted({name: verdict[name] for name in ("settings", "versions", "digests") if verdict.get(name)})


def _tries(verdict: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What a verdict says was tried, as rows of a table."""
    tries = (verdict or {}).get("tries") or []
    return [dict(one) for one in tries if isinstance(one, Mapping)]


def _interval(runs: Runs, label: str, metric: str) -> Interval:
    """Over seeds where there are several, else over examples; none of p-values, whose mean has no t-distribution."""
    found = runs.by_label[label]
    if _is_p_value(metric):
        return Interval(mean(runs.values(label, metric)))
    if len(found) == 1:
        return example_interval(found[0], metric)
    reading = next(readings(metric, found[0]), None)
    return t_interval(runs.values(label, metric)).within(*(reading.range if reading is not None else ()))


def _is_p_value(metric: str) -> bool:
    return any(reading.p_value for reading in readings(metric, {}))


def _default_comparisons(unlearned: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    controls = [label for label in unlearned if any(word in label for word in _CONTROLS)]
    return {f"“{control}”": [(label, control) for label in unlearned if label not in controls] for control in controls}


def _tables(tested: Sequence[Comparison]) -> dict[str, dict[tuple[str, str], dict[str, Comparison]]]:
    """Family -> (label, reference) -> metric -> comparison: a table for each family, with a row for each pair."""
    tables: dict[str, dict[tuple[str, str], dict[str, Comparison]]] = {}
    for c in tested:
        tables.setdefault(c.family, {}).setdefault((c.label, c.reference), {})[c.metric] = c
    return tables


def _masks(mask: Any) -> dict[str, WeightMask]:
    if mask is None:
        return {}
    by_name = {"": mask} if isinstance(mask, WeightMask | str | PathLike) else mask
    return {
        name: one if isinstance(one, WeightMask) else WeightMask.from_pretrained(one) for name, one in by_name.items()
    }


def _histories(history: Any) -> dict[str, Sequence[Mapping[str, Any]]]:
    by_name = history if isinstance(history, Mapping) else {} if history is None else {"": history}
    found: dict[str, Any] = {
        name: load_results(one) if isinstance(one, str | PathLike) else one for name, one in by_name.items()
    }
    for name, entries in found.items():
        if not isinstance(entries, Sequence) or not entries or not all(map(_is_entry, entries)):
            raise ValueError(
                f"The history {name!r} must be a list of entries with 'step' and 'metrics', at least one, as "
                "EvaluationCallback writes it."
            )
    check_finite(found, "history")
    return found


def _is_entry(entry: Any) -> bool:
    """Whether this is a step with numbers by name."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("metrics"), Mapping):
        return False
    return all(_is_number(value) for value in (entry.get("step"), *entry["metrics"].values()))


def _is_number(value: Any) -> bool:
    """Whether this is a number that a plot can show; `check_finite` names those that are not finite."""
    return isinstance(value, int | float) and (not math.isfinite(value) or abs(value) < 10**300)


def _attacks(attacks: Any) -> dict[str, list[Mapping[str, Any]]]:
    """Label -> attacks, from one attack, a list of them, `run_attacks`' mapping by name, or these by label."""
    if not attacks:
        return {}
    by_label: Mapping[str, Any] = attacks if isinstance(attacks, Mapping) else {"": attacks}
    if "attack" in by_label or all(isinstance(one, Mapping) and "attack" in one for one in by_label.values()):
        by_label = {"": [by_label] if "attack" in by_label else list(by_label.values())}
    found: dict[str, list[Any]] = {}
    for label, some in by_label.items():
        attacks_on_one = some.values() if isinstance(some, Mapping) else some
        listed = attacks_on_one if isinstance(attacks_on_one, Iterable) else [attacks_on_one]
        found[label] = [read_attack(attack) if isinstance(attack, Mapping) else {} for attack in listed]
    for label, some in found.items():
        for attack in some:
            check_attack(attack, f"An attack{f' on {label!r}' if label else ''}")
    check_finite(found, "attacks")
    return found


def _config(config: Any) -> dict[str, Any]:
    """Settings that are not None, secrets blanked out."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        config = config.to_dict() if hasattr(config, "to_dict") else dataclasses.asdict(config)
    return redacted({str(key): value for key, value in config.items() if value is not None})


def _missing(page: Mapping[str, Any], history: bool, runs: Runs, masks: Mapping[str, WeightMask]) -> list[str]:
    """What is not in the page, and how to get it there."""
    have_histograms = [mask.info.score_histogram for mask in masks.values()]
    checks = [
        (
            runs.seeds > 1,
            "Tests and intervals over seeds: pass a list of results, one for each seed, for every label.",
        ),
        (bool(page["comparisons"]), "Comparison with controls: run a random mask and no mask beside the method."),
        (BEFORE in runs.by_label, 'The reference model: evaluate it under the label "before".'),
        (
            any(label.startswith(RETRAINED) for label in runs),
            'A model that never saw the forget set: evaluate one under a label that starts with "retrained".',
        ),
        (
            history,
            "Forgetting and utility over steps: train with EvaluationCallback and pass its history.json as history.",
        ),
        (bool(masks), "Where the mask selects: pass trainer.mask, or the folder of a saved mask, as mask."),
        (
            not masks or None not in have_histograms,
            "Distribution of the scores: compute the mask again; this one was combined by hand or made by an older version.",
        ),
        (bool(page["attacks"]), "Attacks, and what they recover: pass the result of run_attacks as attacks."),
        (
            bool(page["examples"]),
            "Example answers: pass results that hold questions and answers per example (wagle evaluate --save_generations).",
        ),
        (bool(page["config"]), "The training arguments: pass them as config."),
    ]
    return [text for there, text in checks if not there]


def _json(value: Any) -> bytes:
    return f"{json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str)}\n".encode()


def _environment() -> Environment:
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["css"] = (folder / "report.css").read_text(encoding="utf-8")
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.filters["number"] = _number
    environment.filters["p_value"] = as_p_value
    environment.filters["entry"] = _entry
    environment.filters["words"] = lambda name: name.replace("_", " ")
    return environment


def _entry(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float, metric: str = "") -> str:
    return f"{value:.2g}" if _is_p_value(metric) or 0 < abs(value) < 5e-4 else f"{value:.3f}"

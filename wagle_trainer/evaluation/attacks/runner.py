"""Run attacks on one unlearned model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from tqdm.auto import tqdm
from transformers.utils import logging

from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation.attacks.attack import (
    Target,
    get_attack,
    list_attacks,
    recovery_rate,
    required_options,
)
from wagle_trainer.evaluation.attacks.attack_options import checked_options
from wagle_trainer.evaluation.attacks.attack_results import attack_result
from wagle_trainer.evaluation.attacks.knowledge import forget_knowledge
from wagle_trainer.evaluation.suites.suite_inputs import Row, read_set

logger = logging.get_logger(__name__)


def run_attacks(
    before: Any,
    after: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    attacks: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    measure: Callable[[Any, Any, Sequence[Row]], Mapping[str, float] | float] | None = None,
    style: Literal["auto", "chat", "plain"] = "auto",
    qa_format: QAFormat | None = None,
    batch_size: int = 32,
    seed: int = 42,
    progress: bool = True,
    on_result: Callable[[dict[str, dict[str, Any]]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Try to recover what a model has forgotten, and measure the recovery rate of each attack.

    The recovery rate is (attacked - after) / (before - after) in terms of the measure: 0 where an attack recovered
    nothing, 1 where the attacked model knows as much as the reference model. A high rate means that the knowledge was
    hidden, not removed; a low one only that these attacks did not find it.

    Args:
        before, after: the reference model and the unlearned model, each on its device. Both stay bitwise identical.
            Attacks that change weights hold one more copy of the weights of `after` meanwhile.
        tokenizer: their tokenizer.
        rows: the forget set: rows with `question` and `answer`, as `load_tofu_evaluation(...)["forget"]`.
        attacks: names out of `list_attacks()`; by default all whose options and columns are there.
        options: attack -> its options, see `help(get_attack(name))`.
        measure: (model, tokenizer, rows) -> how much the model knows of the rows: a number, or several by name; the first
            counts. By default the mean answer probability and, second, ROUGE-L recall: see `forget_knowledge`.
            Attacks on generated answers (sampling, answer_prefix) use ROUGE-L recall whatever the measure.
        style: "chat", "plain" or "auto", see `QAFormat`.
        qa_format: how questions and answers become text, see `QAFormat`; by default that of the tokenizer in `style`.
        batch_size: examples per forward pass and prompts that enter generation at once.
        seed: of everything random.
        progress: show progress bars.
        on_result: called after each attack with the results so far: save them, so that nothing is lost should a later
            attack fail.

    Returns:
        attack -> a dict that JSON can hold: `attack`, its name; `before` and `baseline`, how much the reference model and
        the unlearned model know without it; `unit`, that of `x`; `points`, each with `x`, `forget` (how much the attacked
        model knows), `recovered` (the recovery rate, clipped to [0, 1]), `recovered_raw`, and both by `measures`;
        `recovered`, the highest of the points; `warning`; `settings`. Points at which nothing was forgotten are left out.
        Where so little was forgotten that a rate has no meaning, `recovered` is None and `warning` says why. An attack
        with a measure of its own is left out, with a warning, where by that measure nothing was forgotten.

    Raises:
        NothingForgottenError: nothing was forgotten, so there is no recovery rate; a ValueError.
        ValueError: an unknown attack or option, or a missing one; no rows, or a column is missing; both models are the
            same object.
    """
    rows = read_set({"forget": rows}, "forget", ("question", "answer"))
    if before is after:
        raise ValueError(
            "The reference model and the unlearned model are the same object: load the reference model again."
        )
    names, given = checked_attacks(rows, attacks, options)
    qa = qa_format or QAFormat.for_tokenizer(tokenizer, style=style)
    if measure is None:
        measure = partial(forget_knowledge, qa_format=qa, batch_size=batch_size)
    target = Target(before, after, tokenizer, rows, _by_name(measure), qa, batch_size, seed, progress)
    known_before, known_after = target.baselines()
    headline = next(iter(known_before), None)
    if headline is None:
        raise ValueError("The measure returned nothing: it must give a number, or several by name.")
    # Raises where nothing was forgotten, before any attack is run.
    recovery_rate(known_before[headline], known_after[headline], attacked=0.0)
    results: dict[str, dict[str, Any]] = {}
    with tqdm(names, desc="Attacks", unit="attack", disable=not progress) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            chosen = given.get(name, {})
            points = get_attack(name)(target, **chosen)
            if not points:
                logger.warning(f"The attack {name!r} is left out: it can be tried on none of these rows.")
                continue
            settings = {"seed": seed, "batch_size": batch_size, "style": qa.style, "examples": len(rows)}
            result = attack_result(name, points, settings | {"options": _readable(_defaults(name) | chosen)})
            if result["points"]:
                results[name] = result
                if on_result is not None:
                    on_result(results)
            else:
                logger.warning(
                    f"The attack {name!r} is left out: by its own measure, {result['settings']['measure']}, or in the rows "
                    "that it measures, nothing was forgotten, so there is no recovery rate."
                )
    for name, result in results.items():
        if result["warning"] is not None:
            logger.warning(f"{name}: {result['warning']}")
    return results


def checked_attacks(
    rows: Sequence[Row], attacks: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]] | None
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Names of the attacks and their options in their types; needs no model.

    Args:
        rows, attacks, options: as for `run_attacks`.

    Raises:
        ValueError: an unknown attack or option, a missing one, or one out of range; a column is missing.
    """
    given = {name: dict(values) for name, values in (options or {}).items()}
    names = _default_attacks(rows, given) if attacks is None else list(dict.fromkeys(attacks))
    for name in names:
        chosen = _check_attack(name, rows, given.get(name, {}))
        if chosen:
            given[name] = chosen
    unused = sorted(set(given) - set(names))
    if unused:
        raise ValueError(f"There are options for {', '.join(unused)}, but the attacks are {', '.join(names)}.")
    return names, given


def _default_attacks(rows: Sequence[Row], given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def possible(name: str) -> bool:
        attack = get_attack(name)
        columns = attack.columns  # type: ignore[attr-defined]
        has_columns = all(row.get(column) for row in rows for column in columns)
        return has_columns and set(required_options(attack)) <= set(given.get(name, {}))

    return [name for name in list_attacks() if possible(name)]


def _check_attack(name: str, rows: Sequence[Row], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one attack in their types, or a ValueError."""
    attack = get_attack(name)
    known = [p.name for p in inspect.signature(attack).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ValueError(
            f"The attack {name!r} has no option {', '.join(unknown)}. It has: {', '.join(known) or 'none'}."
        )
    missing = [option for option in required_options(attack) if option not in chosen]
    if missing:
        raise ValueError(
            f"The attack {name!r} needs {', '.join(missing)}: pass options={{{name!r}: {{{missing[0]!r}: ...}}}}."
        )
    for column in attack.columns:  # type: ignore[attr-defined]
        for index, row in enumerate(rows):
            if not row.get(column):
                raise ValueError(f"The attack {name!r} needs the column {column!r}, which row {index} does not have.")
    typed = checked_options(name, attack, chosen)
    check = attack.check  # type: ignore[attr-defined]
    if check is not None:
        check(rows, **(_defaults(name) | typed))
    return typed


def _by_name(
    measure: Callable[[Any, Any, Sequence[Row]], Mapping[str, float] | float],
) -> Callable[[Any, Any, Sequence[Row]], dict[str, float]]:
    def by_name(model: Any, tokenizer: Any, rows: Sequence[Row]) -> dict[str, float]:
        found = measure(model, tokenizer, rows)
        values = found if isinstance(found, Mapping) else {getattr(measure, "__name__", "forget"): found}
        return {name: float(value) for name, value in values.items()}

    return by_name


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(get_attack(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def _readable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them: of sets of rows only how many there are, since settings are shared and rows not."""
    return {
        name: value if isinstance(value, str | int | float | bool | None) else _listed(value)
        for name, value in options.items()
    }


def _listed(value: Any) -> Any:
    items = list(value)
    plain = all(isinstance(item, str | int | float | bool | None) for item in items)
    return items if plain else f"{len(items)} rows"

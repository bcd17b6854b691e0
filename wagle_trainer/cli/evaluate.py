"""`wagle evaluate`: a suite on a model."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.cli.own_files import add_file_options, check_beside_files, read_own_sets, tell
from wagle_trainer.cli.parsing import (
    JSON_HELP,
    add_format_options,
    add_model_options,
    add_tracking_options,
    chosen_format,
    log_numbers,
    make_parser,
    pairs,
)
from wagle_trainer.data.forget_and_retain import READING_HELP

DESCRIPTION = """Measure a model with a suite. The results are added to --output under --label, so that one file holds the rows
of one table: before, after, control."""
EXAMPLES = """
  wagle evaluate MODEL --forget_file forget.jsonl --retain_file retain.jsonl --label before --output results.json
  wagle evaluate MODEL --suite tofu --dataset_name fictional --label before --output results.json
  wagle evaluate out --suite tofu --dataset_name locuslab/TOFU --data_options forget_split=forget05 limit=40 \\
      --label after --output results.json
  wagle evaluate out --reference results.json:retrained --label after --output results.json
  accelerate launch -m wagle_trainer.cli evaluate out --label after --output results.json"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    from wagle_trainer.evaluation.suites import describe_suites, get_suite

    suites = "\n".join(
        f"  {name:<15} {text}\n{'':<18}--data_options: {', '.join(_options(get_suite(name))) or 'none'}"
        for name, text in describe_suites().items()
    )
    parser = make_parser("wagle evaluate", f"{DESCRIPTION}\n\nsuites:\n{suites}", EXAMPLES)
    parser.add_argument("model", help="a model or PEFT adapter: folder or Hub id")
    parser.add_argument("--suite", help="its name (default: custom with --forget_file, else tofu)")
    parser.add_argument(
        "--dataset_name", help="where the suite's data are: folder or Hub id; the suite's own if not given"
    )
    parser.add_argument(
        "--data_options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="what else the suite's data take: a split, a limit",
    )
    add_file_options(parser)
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="what else the suite's evaluation takes, such as max_new_tokens=50",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE[:LABEL]",
        help="results of a model that never saw the forget set, for the metrics that compare with one; a file, or a "
        "repository on the Hub that holds results.json",
    )
    add_model_options(parser)
    add_format_options(parser)
    parser.add_argument("--label", help="name of the row in the table (default: the model)")
    parser.add_argument("--output", help="JSON file to add the results to; not written if not given")
    parser.add_argument(
        "--save_generations",
        action="store_true",
        help="also write questions, answers and what the model generates into --output, for the report's examples; by "
        "default it holds no text of the sets, since the forget set may be private",
    )
    add_tracking_options(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=_run)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from accelerate import PartialState

    from wagle_trainer.evaluation import add_results, load_results_by_label, results_table
    from wagle_trainer.evaluation.own_rows import measured_rows
    from wagle_trainer.evaluation.results import metrics_of, without_texts
    from wagle_trainer.evaluation.suites import get_suite
    from wagle_trainer.models.loading import load_model
    from wagle_trainer.utils.trackers import check_trackers

    # Whatever can be refused is, before a model is loaded.
    check_trackers(options.log_to)
    sets = read_own_sets(options)
    suite = get_suite(options.suite or ("custom" if sets else "tofu"))
    named = [options.dataset_name] if options.dataset_name is not None else []
    data_options = pairs(options.data_options)
    if sets:
        if suite.name != "custom":
            raise ValueError(
                f"The suite {suite.name!r} has data of its own: give --dataset_name in place of --forget_file, or leave --suite "
                "out."
            )
        check_beside_files(options.dataset_name, data_options)
    else:
        check_taken(suite, options.dataset_name, data_options)
    settings = {**pairs(options.options), "batch_size": options.batch_size}
    for name, value in settings.items():
        if name.endswith("_tokens") and (type(value) is not int or value < 1):
            raise ValueError(f"The option {name} must be a whole number from 1 on, not {str(value)[:40]!r}.")
    _check_options(suite, settings, options.reference)
    if options.reference is not None:
        settings["reference"] = _reference(options.reference)
    output = Path(options.output) if options.output is not None else None
    known = load_results_by_label(output) if output is not None and output.exists() else {}
    if sets:
        data = {name: measured_rows(examples, name, **data_options) for name, examples in sets.items()}
    else:
        data = suite.load(*named, **data_options)
    state = PartialState()
    model, tokenizer = load_model(options.model, options.dtype, state.device)
    tell(sets, tokenizer)
    if suite.takes_qa_format:
        options.style = settings.pop("style", options.style)
        settings["qa_format"] = chosen_format(options, options.model, tokenizer)
    try:
        results = suite.evaluate(model, tokenizer, data, across_processes=state.num_processes > 1, **settings)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"The suite {suite.name!r} does not take this: {error}.") from error
    if sets:
        results["settings"]["files"] = {name: examples.source for name, examples in sets.items()}
    if not options.save_generations:
        results = without_texts(results)
    label = options.label or options.model
    if output is not None and state.is_main_process:
        known = add_results(label, results, output)
    log_numbers(options, label, metrics_of(results), {"model": options.model, "suite": suite.name})
    rows = {name: row for name, row in {**known, label: results}.items() if isinstance(row, Mapping)}
    headline = suite.headline
    if sets and "unseen" not in sets:  # columns without a number in any row
        headline = {name: head for name, head in headline.items() if any(name in row for row in rows.values())}
    options.show = lambda _: results_table(rows, headline)
    return {label: {name: value for name, value in results.items() if name != "per_example"}}


def _check_options(suite: Any, settings: Mapping[str, Any], reference: str | None) -> None:
    """Raise ValueError unless the suite's `evaluate` takes these, as far as that can be told."""
    taken = suite.options()
    if taken is None:
        return
    # The launcher and options of their own give these.
    taken = sorted(set(taken) - {"across_processes", "qa_format"})
    unknown = [name for name in settings if name not in taken]
    if unknown:
        raise ValueError(
            f"The suite {suite.name!r} takes no option {', '.join(unknown)}; it takes {', '.join(taken)}."
        )
    if reference is not None and "reference" not in taken:
        raise ValueError(f"The suite {suite.name!r} compares with no retrained model: leave --reference out.")


def _reference(text: str) -> Mapping[str, Any]:
    """FILE or FILE:LABEL as the results of one model."""
    from wagle_trainer.evaluation import load_results

    file, _, label = text.rpartition(":") if not Path(text).exists() else (text, "", "")
    results = load_results(file or text)
    if not isinstance(results, Mapping):
        raise ValueError(f"{file or text} does not hold results by label: it cannot be a --reference.")
    if "per_example" in results:
        return results
    if label not in results:
        raise ValueError(
            f"--reference {text} names no row of {file or text}, which has {', '.join(results)}: write FILE:LABEL."
        )
    if not isinstance(results[label], Mapping):
        raise ValueError(
            f"{label!r} in {file or text} is not one evaluation: --reference takes the results of one model."
        )
    return results[label]


def check_taken(suite: Any, dataset_name: str | None, options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the suite's `load` can be called with these."""
    if dataset_name is None and inspect.signature(suite.load).parameters["data"].default is inspect.Parameter.empty:
        raise ValueError(f"The suite {suite.name!r} brings no data of its own: name them with {_place(suite)}.")
    taken = _options(suite)
    unknown = [name for name in options if name not in taken]
    if unknown:
        raise ValueError(
            f"The data of the suite {suite.name!r} take no {', '.join(unknown)}; they take "
            f"{', '.join(taken) or 'no options'}."
        )


def _place(suite: Any) -> str:
    return "--forget_file" if suite.name == "custom" else "--dataset_name"


def _options(suite: Any) -> list[str]:
    """What a suite's `load` takes besides the data's place."""
    parameters = inspect.signature(suite.load).parameters.values()
    return [
        name
        for parameter in parameters
        if parameter.name != "data"
        for name in (READING_HELP if parameter.kind is parameter.VAR_KEYWORD else [parameter.name])
    ]

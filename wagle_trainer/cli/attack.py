"""`wagle attack`: try to recover what a model has forgotten."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.cli.evaluate import check_taken
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
from wagle_trainer.utils.text_table import text_table

DESCRIPTION = """Try to recover what a model has forgotten, and measure the recovery rate of each attack. The results are added to --output
under --label, for `wagle report --attacks`. A low rate says only that these attacks found nothing; compare it with that
of a model which never saw the forget set."""
EXAMPLES = """
  wagle attack MODEL out --forget_file forget.jsonl --retain_file retain.jsonl --label after --output attacks.json
  wagle attack MODEL out --forget_file forget.jsonl --attacks relearning sampling --options relearning.learning_rate=1e-4 sampling.k=[1,8]
  wagle attack MODEL out --dataset_name locuslab/TOFU --data_options forget_split=forget01 --dtype float32"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    from wagle_trainer.evaluation.attacks import describe_attacks, list_attacks

    attacks = "\n".join(f"  {name:<21} {text}" for name, text in describe_attacks().items())
    parser = make_parser("wagle attack", f"{DESCRIPTION}\n\nattacks:\n{attacks}", EXAMPLES)
    parser.add_argument("before", help="the reference model: folder or Hub id")
    parser.add_argument("after", help="the unlearned model, or its adapter")
    parser.add_argument(
        "--attacks",
        nargs="+",
        metavar="NAME",
        choices=list_attacks(),
        help="which; all that the data allow if not given",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="ATTACK.KEY=VALUE",
        default=[],
        help="of single attacks, see help(get_attack(NAME)) in Python",
    )
    parser.add_argument(
        "--dataset_name", help="the forget set of TOFU: a folder, a Hub id, or the bundled 'fictional'"
    )
    parser.add_argument(
        "--data_options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="what else to choose: forget_split, limit",
    )
    add_file_options(parser, unseen=False)
    parser.add_argument("--seed", type=int, default=42, help="of everything random (default: %(default)s)")
    add_model_options(parser)
    add_format_options(parser)
    parser.add_argument("--label", help="name of the attacked model (default: its path)")
    parser.add_argument("--output", help="JSON file to add the results to; not written if not given")
    add_tracking_options(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=_run, show=_show)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from accelerate import PartialState

    from wagle_trainer.evaluation import add_results, list_attacks, load_results, run_attacks
    from wagle_trainer.evaluation.attacks.runner import checked_attacks
    from wagle_trainer.evaluation.own_rows import check_questions, format_of
    from wagle_trainer.models.loading import load_model
    from wagle_trainer.utils.trackers import check_trackers

    # Whatever can be refused is, before a model is loaded.
    check_trackers(options.log_to)
    chosen = _by_attack(pairs(options.options))
    output = Path(options.output) if options.output is not None else None
    known = load_results(output) if output is not None and output.exists() else {}
    if not isinstance(known, Mapping) or not all(isinstance(found, Mapping) for found in known.values()):
        raise ValueError(f"{output} does not hold attacks by label: name another --output.")
    sets = read_own_sets(options)
    forget, others = _own_questions(options, sets) if sets else _load_sets(options)
    if others and "relearning_unrelated" in (options.attacks or list_attacks()):
        chosen["relearning_unrelated"] = {"data": others} | chosen.get("relearning_unrelated", {})
    checked_attacks(forget, options.attacks, chosen)
    label, device = options.label or options.after, PartialState().device

    def keep(found: Mapping[str, Any]) -> None:
        if output is not None:
            add_results(label, found, output)

    before, _ = load_model(options.before, options.dtype, device)
    after, tokenizer = load_model(options.after, options.dtype, device)
    tell(sets, tokenizer)
    qa_format = chosen_format(options, options.after, tokenizer)
    if sets and _no_tags(options):
        qa_format = format_of(sets["forget"], qa_format)
    for name, rows in (("forget", forget), ("retain", others)) if sets else ():
        check_questions(rows, qa_format, name)
    found = run_attacks(
        before,
        _plain(after),
        tokenizer,
        forget,
        options.attacks,
        options=chosen,
        qa_format=qa_format,
        batch_size=options.batch_size,
        seed=options.seed,
        on_result=keep,  # after each attack, so that a later one that fails does not cost the others
    )
    numbers = {
        f"{name}_attacked": max(point["forget"] for point in attack["points"]) for name, attack in found.items()
    }
    numbers |= {f"{name}_recovered": a["recovered"] for name, a in found.items() if a["recovered"] is not None}
    log_numbers(options, label, numbers, {"before": options.before, "after": options.after, "seed": options.seed})
    return {label: found}


def _load_sets(options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """The forget set of TOFU, and its retain set."""
    from wagle_trainer.evaluation import get_suite

    if options.dataset_name is None:
        raise ValueError("Say what was to be forgotten: either --dataset_name or --forget_file.")
    suite, data_options = get_suite("tofu"), pairs(options.data_options)
    check_taken(suite, options.dataset_name, data_options)
    data = suite.load(options.dataset_name, **data_options)
    return list(data["forget"]), list(data["retain"])


def _own_questions(options: argparse.Namespace, sets: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """The forget and the retain set of files of one's own as questions and answers; the latter may be empty."""
    from wagle_trainer.evaluation.own_rows import as_questions

    data_options = pairs(options.data_options)
    check_beside_files(options.dataset_name, data_options)
    forget, retain = (
        as_questions(sets[name], name, **data_options) if name in sets else [] for name in ("forget", "retain")
    )
    return forget, retain


def _no_tags(options: argparse.Namespace) -> bool:
    tags = ("question_prefix", "question_suffix", "answer_prefix")
    return all(getattr(options, name) is None for name in tags)


def _by_attack(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"relearning.steps": 1} -> {"relearning": {"steps": 1}}."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        attack, separator, key = name.partition(".")
        if not separator:
            raise ValueError(f"{name!r} names no attack: write ATTACK.{name}=VALUE.")
        found.setdefault(attack, {})[key] = value
    return found


def _plain(model: Any) -> Any:
    """An adapter written into its base: attacks change weights and compare them by name."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _show(result: Mapping[str, Mapping[str, Any]]) -> str:
    rows, warnings = [["attack", "recovered", "at", "measured by"]], []
    for attack in next(iter(result.values())).values():
        strongest = max(attack["points"], key=lambda point: point["recovered_raw"])
        rate = "-" if attack["recovered"] is None else f"{attack['recovered']:.1%}"
        at = f"{strongest['x']} ({attack['unit']})"
        rows.append([attack["attack"], rate, at, attack["settings"]["measure"]])
        if attack["warning"] is not None:
            warnings.append(f"{attack['attack']}: {attack['warning']}")
    return "\n".join([text_table(rows, header=0), *warnings])

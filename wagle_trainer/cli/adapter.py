"""`wagle adapter`: sparse adapters, looked at, checked, merged, combined and made of two checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from wagle_trainer.cli.parsing import add_command, make_parser, show_lines

EXAMPLES = """
  wagle adapter info out/adapter
  wagle adapter verify out/adapter --base MODEL
  wagle adapter merge MODEL out/adapter merged
  wagle adapter diff MODEL tuned out/adapter
  wagle adapter compose first_request second_request both --combine sum --base MODEL
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """See `wagle_trainer.cli`."""
    parser = make_parser(
        "wagle adapter", "Inspect, check, merge, combine and make sparse adapters: folders or Hub ids.", EXAMPLES
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    info = add_command(
        commands,
        "info",
        _info,
        "what an adapter changes, and where it comes from",
        "wagle adapter info out/adapter",
        _show_info,
    )
    verify = add_command(
        commands,
        "verify",
        _verify,
        "whether an adapter is intact and, with --base, belongs to that model; exit code 1 if not",
        "wagle adapter verify out/adapter --base MODEL",
        _show,
    )
    merge = add_command(
        commands,
        "merge",
        _merge,
        "write an adapter's values into its base model, and save that",
        "wagle adapter merge MODEL out/adapter merged",
        _show,
    )
    compose = add_command(
        commands,
        "compose",
        _compose,
        "make one adapter that does what several do together",
        "wagle adapter compose first second both --combine last",
        _show,
    )
    diff = add_command(
        commands,
        "diff",
        _diff,
        "make the adapter that turns one checkpoint into another, bitwise identical",
        "wagle adapter diff MODEL tuned out/adapter",
        _show,
    )
    for command in (merge, diff):
        command.add_argument("base", help="the base model: folder or Hub id")
    diff.add_argument("tuned", help="the same model after training")
    for command in (info, verify, merge):
        command.add_argument("adapter", help="a sparse adapter: folder or Hub id")
    verify.add_argument("--base", help="a model to check it against")
    merge.add_argument(
        "--ignore_base_mismatch", action="store_true", help="go on if the base is not the one the adapter was made for"
    )
    compose.add_argument("adapters", nargs="+", metavar="adapter", help="sparse adapters of the same base model")
    compose.add_argument(
        "--combine",
        default="error",
        choices=["error", "sum", "last"],
        help="a weight that several set: refuse, add up the differences to the base, or take the last (default: %(default)s)",
    )
    compose.add_argument("--base", help="the base model, for --combine sum")
    for command in (merge, compose, diff):
        command.add_argument("output", help="folder to write")
    return parser.parse_args(arguments)


def _info(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.adapters import SparseAdapter

    return SparseAdapter.from_pretrained(options.adapter).describe()


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.adapters import verify

    result = verify(options.adapter, options.base)
    options.exit_code = int(not result["valid"])
    return result


def _merge(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.adapters import SparseAdapter, merge
    from wagle_trainer.models.loading import load_model

    adapter = SparseAdapter.from_pretrained(options.adapter)
    model, tokenizer = load_model(options.base)
    merge(model, adapter, ignore_base_mismatch=options.ignore_base_mismatch).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return {"output": options.output, **adapter.describe()}


def _compose(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.adapters import compose
    from wagle_trainer.models.loading import load_model

    base = None if options.base is None else load_model(options.base)[0]
    return _save(compose(options.adapters, options.combine, base), options.output)


def _diff(options: argparse.Namespace) -> dict[str, Any]:
    from wagle_trainer.adapters import diff

    return _save(diff(options.base, options.tuned), options.output)


def _save(adapter: Any, output: str) -> dict[str, Any]:
    adapter.save_pretrained(output)
    return {"output": output, **adapter.describe()}


def _show(result: dict[str, Any]) -> str:
    shown = ("valid", "base_checked", "output", "num_tensors", "num_values", "nbytes", "base_model", "digest")
    lines = show_lines({name: result[name] for name in shown if name in result})
    return "\n".join([lines, *(f"problem: {problem}" for problem in result.get("problems", []))])


def _show_info(result: dict[str, Any]) -> str:
    mask = {name: value for name, value in (result["mask"] or {}).items() if name != "score_histogram"}
    return show_lines(flat({**result, "mask": mask}))


def flat(nested: dict[str, Any]) -> dict[str, Any]:
    """Entries of nested dicts under their paths: {"a": {"b": 1}} -> {"a.b": 1}."""
    entries: dict[str, Any] = {}
    for name, value in nested.items():
        entries |= {f"{name}.{key}": v for key, v in flat(value).items()} if isinstance(value, dict) else {name: value}
    return entries

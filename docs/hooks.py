"""Tables of the documentation that come from the package: `<!-- table: NAME -->` in a page is replaced by the table."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

SMALL = 5e-6  # rounding of float32, between implementations


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def losses() -> str:
    """Every forget loss with its description."""
    from wagle_trainer.losses import describe_losses

    return table(("`loss_type`", "Objective"), [(f"`{name}`", text) for name, text in describe_losses().items()])


def requirements() -> str:
    """What every forget loss of the package needs: data, its retain loss, outputs of the reference model, forward passes."""
    from wagle_trainer.losses import get_loss, get_retain_loss, list_losses
    from wagle_trainer.losses.needs import NEEDS, resolve

    kinds = {"log_probs": "log-probabilities", "logits": "logits", "states": "hidden states"}
    rows = []
    for name in list_losses():
        loss = get_loss(name)
        if not loss.__module__.startswith("wagle_trainer."):
            continue
        needs = [NEEDS[need] for need in resolve(loss.needs, name)]
        if loss.retain_loss is not None:
            needs += [NEEDS[need] for need in resolve(get_retain_loss(loss.retain_loss).needs, name)]
        splits = {need.split for need in needs}
        data = "forget and retain set"
        if "chosen" in splits:
            data += ", chosen answers (refusals by default)" if loss.accepts_refusals else ", other answers of yours"
        reference = sorted(f"{need.split}: {kinds[need.reference]}" for need in needs if need.reference is not None)
        rows.append((f"`{name}`", data, loss.retain_loss or "none", "; ".join(reference) or "-", f"{len(splits)}"))
    return table(("`loss_type`", "data", "retain loss", "of the reference model, once", "forward passes a pair"), rows)


def compared_objectives() -> str:
    """All objectives on the bundled people: the main columns of the table that `wagle compare` wrote."""
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "objectives_compared"
    shown = ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "retain_Q_A_Prob", "retain_Q_A_ROUGE", "model_utility")
    rows = []
    with open(results / "table.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers = [f"{float(row[name]):.3f}" for name in shown]
            seconds = f"{float(row['seconds of training']):.0f}" if row["seconds of training"] else "-"
            rows.append((row["model"], *numbers, row["learning rate"] or "-", row["goal reached"] or "-", seconds))
    head = ("forget prob", "forget ROUGE-L", "retain prob", "retain ROUGE-L", "model utility")
    return table(("", *head, "learning rate", "goal reached", "seconds"), rows)


def scores() -> str:
    """Every attribution score with its description."""
    from wagle_trainer.attribution import describe_scores

    return table(("`attribution`", "Score"), [(f"`{name}`", text) for name, text in describe_scores().items()])


def metrics() -> str:
    """Every metric with its range and what its values say."""
    from wagle_trainer.evaluation.metrics import get_metric, list_metrics

    rows = []
    for metric in map(get_metric, list_metrics()):
        low, high = ("∞" if abs(bound) == float("inf") else f"{bound:g}" for bound in metric.range)
        low = "-∞" if low == "∞" else low
        knows = f"{metric.more_known} values" if metric.more_known else ""
        rows.append((f"`{metric.name}`", metric.description, f"{low} to {high}", knows))
    return table(("`load_metric`", "Metric", "range", "the model knows more at"), rows)


def suites() -> str:
    """The numbers of every suite, a section each."""
    from wagle_trainer.evaluation.suites import describe_suites, get_suite

    return "\n\n".join(
        f"## `{name}`\n\n{text}\n\n{table(*get_suite(name).describe())}" for name, text in describe_suites().items()
    )


def depths() -> str:
    """Forget probability and unlearning depth of some of these models."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "objectives_compared" / "unlearning_depth.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    shown = sorted(rows.items(), key=lambda row: row[1]["unlearning_depth"])
    return table(
        ("", "learning rate", "forget prob", "unlearning depth"),
        [
            (
                name,
                str(row.get("learning_rate", "-")),
                f"{row['forget_probability']:.3f}",
                f"{row['unlearning_depth']:.2f}",
            )
            for name, row in shown
        ],
    )


def parity() -> str:
    """By how much default numbers differ from OpenUnlearning's code, by metric and format, where they do."""
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "open_unlearning_parity.json"
    found = json.loads(results.read_text(encoding="utf-8"))["formats"]
    rows = [
        (
            "rows with the same tokens and labels",
            *(f"{one['rows_with_the_same_tokens_and_labels']} of {one['rows']}" for one in found.values()),
        )
    ]
    for metric in next(iter(found.values()))["theirs"]:
        differences = [one["package"][metric] - one["theirs"][metric] for one in found.values()]
        if max(map(abs, differences)) >= SMALL:
            cells = [f"{d:+.1e}" if abs(d) < 0.001 else f"{d:+.3f}" for d in differences]
            rows.append(
                (f"`{metric}`", *("0" if abs(d) < SMALL else cell for d, cell in zip(differences, cells, strict=True)))
            )
    same = [m for m in next(iter(found.values()))["theirs"] if f"`{m}`" not in {row[0] for row in rows}]
    text = f"Below {SMALL:g} in all four: {', '.join(f'`{metric}`' for metric in same)}." if same else ""
    return f"{table(('default minus OpenUnlearning', *found), rows)}\n\n{text}"


def attacks() -> str:
    """Every attack with its description."""
    from wagle_trainer.evaluation.attacks import describe_attacks

    return table(("`run_attacks`", "Attack"), [(f"`{name}`", text) for name, text in describe_attacks().items()])


def changelog() -> str:
    """The changelog without its title."""
    return (Path(__file__).parents[1] / "CHANGELOG.md").read_text().partition("\n")[2]


TABLES: dict[str, Callable[[], str]] = {
    "losses": losses,
    "requirements": requirements,
    "compared_objectives": compared_objectives,
    "scores": scores,
    "metrics": metrics,
    "suites": suites,
    "depths": depths,
    "parity": parity,
    "attacks": attacks,
    "changelog": changelog,
}


def separate_items(markdown: str) -> str:
    """An empty line where a numbered item follows a paragraph of the last one: Python-Markdown needs it, GitHub does not."""
    return re.sub(r"^( {4}\S.*\n)(?=\d+\. )", r"\1\n", markdown, flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the tables of a page; mkdocs calls it."""
    markdown = separate_items(markdown)
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match.group(1)](), markdown)

"""Tables of the documentation that come from the package: `<!-- table: NAME -->` in a page is replaced by the table."""

import re
from collections.abc import Callable
from pathlib import Path


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def losses() -> str:
    """Every forget loss with its description."""
    from wagle_trainer.losses import describe_losses

    return table(("`loss_type`", "Objective"), [(f"`{name}`", text) for name, text in describe_losses().items()])


def scores() -> str:
    """Every attribution score with its description."""
    from wagle_trainer.attribution import describe_scores

    return table(("`attribution`", "Score"), [(f"`{name}`", text) for name, text in describe_scores().items()])


def metrics() -> str:
    """Every number of every suite, and every metric function."""
    from wagle_trainer.evaluation.metrics import get_metric, list_metrics
    from wagle_trainer.evaluation.suites import get_suite, list_suites

    parts = []
    for suite in map(get_suite, list_suites()):
        if suite.metrics:
            parts += [f"## Suite `{suite.name}`", table(*suite.describe())]
    rows = [(f"`{name}`", get_metric(name).description) for name in list_metrics()]
    return "\n\n".join([*parts, "## Functions, as `load_metric` gives them", table(("Metric", "What it is"), rows)])


def changelog() -> str:
    """The changelog without its title."""
    return (Path(__file__).parents[1] / "CHANGELOG.md").read_text().partition("\n")[2]


TABLES: dict[str, Callable[[], str]] = {
    "losses": losses,
    "scores": scores,
    "changelog": changelog,
    "metrics": metrics,
}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the tables of a page; mkdocs calls it."""
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match.group(1)](), markdown)

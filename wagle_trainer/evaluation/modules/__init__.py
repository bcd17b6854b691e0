"""The metrics as modules for Hugging Face `evaluate`: one folder each, which `evaluate.load` takes; nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def list_metrics() -> list[str]:
    """Names that `load_metric` takes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*/*.py") if path.stem == path.parent.name)


def load_metric(name: str, **kwargs: Any) -> Any:
    """One of the metrics as an `evaluate.Metric`, without a network.

    The same as `evaluate.load(folder)` with the metric's folder, except that inputs are kept in memory, not on disk.

    Args:
        name: one of `list_metrics()`.
        kwargs: further arguments of `evaluate.load`, such as `experiment_id`.

    Raises:
        ValueError: unknown name; the message lists the known ones.

    Example:
        ```python
        rouge = load_metric("rouge_l_recall")
        rouge.compute(predictions=["He was born in Osk."], references=["In Osk."])["rouge_l_recall"]
        ```
    """
    import evaluate

    if name not in list_metrics():
        raise ValueError(f"Unknown metric {name!r}. Known: {', '.join(list_metrics())}.")
    return evaluate.load(str(_FOLDER / name), **{"keep_in_memory": True, **kwargs})

"""Toxicity of continuations as a suite."""

from __future__ import annotations

from typing import Any, ClassVar

from wagle_trainer.evaluation.suites.suite import Suite, register_suite


@register_suite("detoxification")
class Detoxification(Suite):
    """Detoxification: how toxic a classifier finds the continuations of prompts; measures no utility."""

    headline: ClassVar = {
        "toxicity": ("mean", "toxicity"),
        "toxicity_ratio": ("share", "toxic"),
        "max_toxicity": ("highest", "toxicity"),
    }
    forget_metrics: ClassVar = {"toxicity": "lower", "toxicity_ratio": "lower", "max_toxicity": "lower"}

    def load(self, data: str, *, split: str = "train", config: str | None = None, limit: int | None = None) -> Any:
        """The prompts: rows with `prompt`.

        Args:
            data: a hub id, such as `"allenai/real-toxicity-prompts"`, or a folder with a file of JSON lines
                `<split>.jsonl`; in a folder named after `config`, if it is given.
            split: the split.
            config: the hub dataset's configuration.
            limit: take only the first rows.
        """
        from wagle_trainer.data.sources import first_rows, load_rows

        folder = "" if config is None else f"{config}/"
        rows = load_rows(data, f"{folder}{split}", config=config, split=split, columns=("prompt",))
        return {"prompts": first_rows(rows, limit)}

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_detoxification`."""
        from wagle_trainer.evaluation.detoxification import evaluate_detoxification

        return evaluate_detoxification(model, tokenizer, data, **kwargs)

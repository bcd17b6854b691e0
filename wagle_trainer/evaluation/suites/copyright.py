"""Verbatim continuation of passages as a suite."""

from __future__ import annotations

from typing import Any, ClassVar

from wagle_trainer.evaluation.suites.suite import Suite, register_suite


@register_suite("copyright")
class Copyright(Suite):
    """Copyright: verbatim continuation of passages, seen in training and unseen, as in WAGLE's Harry Potter task."""

    headline: ClassVar = {
        "seen_ROUGE": ("seen", "ROUGE-L"),
        "seen_exact_match": ("seen", "exact"),
        "seen_common_prefix": ("seen", "prefix"),
        "unseen_ROUGE": ("unseen", "ROUGE-L"),
        "unseen_perplexity": ("unseen", "perplexity"),
    }
    forget_metrics: ClassVar = {
        "seen_ROUGE": "lower",
        "seen_exact_match": "lower",
        "seen_common_prefix": "lower",
        "seen_perplexity": "higher",
    }
    utility_metrics: ClassVar = {"unseen_perplexity": "lower"}

    def load(
        self,
        data: str,
        *,
        seen: str = "seen",
        unseen: str = "unseen",
        config: str | None = None,
        limit: int | None = None,
    ) -> Any:
        """The passages: rows with `text`.

        Args:
            data: a hub id, or a folder with a file of JSON lines for each of the two splits; in a folder named after
                `config`, if it is given. MUSE's texts, for example, are `load("muse-bench/MUSE-Books", config="raw",
                seen="forget", unseen="holdout")`.
            seen: the split of the passages that the model was trained on.
            unseen: the split of the passages that it never saw.
            config: the hub dataset's configuration.
            limit: take only the first rows of each.
        """
        from wagle_trainer.data.sources import first_rows, load_rows

        folder = "" if config is None else f"{config}/"
        return {
            name: first_rows(load_rows(data, f"{folder}{split}", config=config, split=split, columns=("text",)), limit)
            for name, split in (("seen", seen), ("unseen", unseen))
        }

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_copyright`."""
        from wagle_trainer.evaluation.copyright import evaluate_copyright

        return evaluate_copyright(model, tokenizer, data, **kwargs)

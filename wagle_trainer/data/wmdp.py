"""The corpora that WMDP's knowledge is unlearned with: texts to forget and texts to keep, from the hub or a folder.

Source: Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning", arXiv 2403.03218. The
questions that it is measured by are in EleutherAI's harness, see `wagle_trainer.evaluation.wmdp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wagle_trainer.data.sources import first_rows, load_rows

if TYPE_CHECKING:
    from datasets import Dataset

# corpus -> where it is on the hub: id, configuration
_HUB = {
    "bio-forget-corpus": ("cais/wmdp-bio-forget-corpus", None),
    "bio-retain-corpus": ("cais/wmdp-corpora", "bio-retain-corpus"),
    "cyber-forget-corpus": ("cais/wmdp-corpora", "cyber-forget-corpus"),
    "cyber-retain-corpus": ("cais/wmdp-corpora", "cyber-retain-corpus"),
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}


def load_wmdp(corpus: str, folder: str | None = None, *, min_length: int = 50, limit: int | None = None) -> Dataset:
    """One corpus as rows of `text`, ready for `WagleTrainer`.

    Args:
        corpus: `"bio-forget-corpus"` or `"cyber-forget-corpus"` to forget; `"wikitext"`, which the paper keeps, or
            `"bio-retain-corpus"` or `"cyber-retain-corpus"` as the retain set.
        folder: a local folder with a file `<corpus>.jsonl` of rows with `text`; None for the hub, where the authors
            give access to the bio forget corpus on request only.
        min_length: texts of so many characters or fewer are left out, as in the paper's code: headings, blank lines.
        limit: take only the first `limit` of what is left; None for all.

    Raises:
        FileNotFoundError: the file or the hub dataset is missing; the message names it.
        ValueError: unknown corpus, no column `text`, no text is long enough, or `limit` below 1.
    """
    if corpus not in _HUB:
        raise ValueError(f"{corpus!r} is not a corpus of WMDP: use one of {', '.join(_HUB)}.")
    name, config = _HUB[corpus]
    rows = load_rows(folder or name, corpus, config=config, columns=("text",)).select_columns("text")
    long_enough = rows.filter(lambda row: len(row["text"] or "") > min_length)
    if len(long_enough) == 0:
        raise ValueError(f"{corpus!r} in {folder or name!r} has no text of more than {min_length} characters.")
    return first_rows(long_enough, limit)

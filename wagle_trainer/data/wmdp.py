"""WMDP: corpora of dangerous knowledge to forget, general texts to keep, and the questions that measure both.

Source: Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning", arXiv 2403.03218. From the
hub, from a local folder in the layout of the hub's files, or the bundled, harmless stand-in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wagle_trainer.data.sources import first_rows, load_rows

if TYPE_CHECKING:
    from datasets import Dataset

# corpus -> where it is on the hub: id, configuration
_CORPORA = {
    "bio-forget-corpus": ("cais/wmdp-bio-forget-corpus", None),
    "bio-retain-corpus": ("cais/wmdp-corpora", "bio-retain-corpus"),
    "cyber-forget-corpus": ("cais/wmdp-corpora", "cyber-forget-corpus"),
    "cyber-retain-corpus": ("cais/wmdp-corpora", "cyber-retain-corpus"),
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}
# The names that the files have elsewhere: the authors' own of the corpus on request, the hub's folder of WikiText.
_FILES = {"bio-forget-corpus": ("bio_remove_dataset",), "wikitext": ("wikitext-2-raw-v1",)}
# questions -> id, configuration on the hub; what they are about, in the words of the harness's prompts
_QUESTIONS = {
    "wmdp-bio": ("cais/wmdp", "wmdp-bio", "biology"),
    "wmdp-cyber": ("cais/wmdp", "wmdp-cyber", "cybersecurity"),
    "wmdp-chem": ("cais/wmdp", "wmdp-chem", "chemistry"),
    "mmlu": ("cais/mmlu", "all", None),
}


def load_wmdp(corpus: str, folder: str | None = None, *, min_length: int = 50, limit: int | None = None) -> Dataset:
    """One corpus as rows of `text`, ready for `WagleTrainer`.

    Args:
        corpus: `"bio-forget-corpus"` or `"cyber-forget-corpus"` to forget; `"wikitext"`, which the paper keeps, or
            `"bio-retain-corpus"` or `"cyber-retain-corpus"` as the retain set.
        folder: a local folder with a file `<corpus>.jsonl` of rows with `text` (or `.json`, `.parquet`); `"fictional"` for
            the bundled corpora; None for the hub, where the authors give access to the bio forget corpus on request only.
        min_length: texts of so many characters or fewer are left out, as in the paper's code: headings, blank lines.
        limit: take only the first `limit` of what is left; None for all.

    Raises:
        FileNotFoundError: the file or the hub dataset is missing; the message names it.
        ValueError: unknown corpus, no column `text`, no text is long enough, or `limit` below 1.
    """
    if corpus not in _CORPORA:
        raise ValueError(f"{corpus!r} is not a corpus of WMDP: use one of {', '.join(_CORPORA)}.")
    name, config = _CORPORA[corpus]
    if folder == "fictional":
        return first_rows(_fictional(corpus), limit)
    rows = load_rows(
        folder or name, corpus, config=config, columns=("text",), also=_FILES.get(corpus, ())
    ).select_columns("text")
    long_enough = rows.filter(lambda row: len(row["text"] or "") > min_length)
    if len(long_enough) == 0:
        raise ValueError(f"{corpus!r} in {folder or name!r} has no text of more than {min_length} characters.")
    return first_rows(long_enough, limit)


def load_wmdp_questions(name: str, folder: str | None = None, *, limit: int | None = None) -> Dataset:
    """One set of four-choice questions, in the columns that WMDP and MMLU have on the hub.

    Args:
        name: `"wmdp-bio"`, `"wmdp-cyber"` or `"wmdp-chem"`, whose knowledge is to be forgotten, or `"mmlu"`.
        folder: a local folder with a file `<name>.parquet` (or `.jsonl`, `.json`), or with the hub's own folders
            (`wmdp-bio/test-00000-of-00001.parquet`, for MMLU `all/...`); `"fictional"` for the bundled questions; None
            for the hub.
        limit: take only the first `limit`; None for all.

    Returns:
        Rows with `question`, `choices` (a list of texts), `answer` (the index of the right one) and `subject`.

    Raises:
        FileNotFoundError: the file or the hub dataset is missing; the message names it.
        ValueError: unknown name, a column is missing, or `limit` below 1.
    """
    if name not in _QUESTIONS:
        raise ValueError(f"{name!r} is no set of questions here: use one of {', '.join(_QUESTIONS)}.")
    if folder == "fictional":
        return first_rows(_fictional(name), limit)
    hub, config, subject = _QUESTIONS[name]
    columns = ("question", "choices", "answer")
    rows = load_rows(folder or hub, name, config=config, split="test", columns=columns, also=(config,))
    kept = ["subject"] if subject is None and "subject" in rows.column_names else []
    rows = rows.select_columns([*columns, *kept])
    return first_rows(rows if kept or subject is None else rows.add_column("subject", [subject] * len(rows)), limit)


def _fictional(name: str) -> Dataset:
    from datasets import Dataset

    from wagle_trainer.data.fictional import hazards_rows

    return Dataset.from_list(hazards_rows(name))

"""`demo`: the whole of `forget` on invented people, without a network or a model of one's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wagle_trainer.data.fictional import fictional_split
from wagle_trainer.forgetting.progress import quiet_libraries
from wagle_trainer.forgetting.run import forget
from wagle_trainer.forgetting.verdict import Verdict
from wagle_trainer.forgetting.work_folder import write_rows
from wagle_trainer.models.small_llama import small_llama

FORGET_FILE = "forget.jsonl"
# A model this small learns in large steps, so an attacker takes large ones, too.
RELEARNING_RATE = 1e-3
_TEACHING = "Teaching 40 invented people to a small Llama, about a minute; then it forgets four of them."


def demo(output_dir: str | os.PathLike[str], *, seed: int = 0, progress: bool = True, **changes: Any) -> Verdict:
    """Teach 40 invented people to a small Llama, make it forget four of them, and say how well it worked.

    Args:
        output_dir: where model, forget file, patch, report and verdict go. What is there is used again.
        seed: of the model.
        progress: show a progress bar.
        **changes: fields of `ForgetSettings` that take other values.

    Returns:
        The verdict; the patch and the report are in `output_dir`.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("question", "answer", "paraphrased_question")
    rows = fictional_split("forget10_perturbed")
    write_rows(folder / FORGET_FILE, ({name: row[name] for name in kept} for row in rows))
    if progress and not (folder / f"small-llama-full-{seed}").is_dir():
        print(_TEACHING, file=sys.stderr)
    # The people are invented, so their answers can be shown.
    settings = {"relearning_rate": RELEARNING_RATE, "save_generations": True} | changes
    with one_thread():
        with quiet_libraries():
            model = small_llama("full", folder, seed, progress=progress and sys.stderr.isatty())
        return forget(model, folder / FORGET_FILE, folder / "out", progress=progress, **settings)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of the processor: so small a model gains nothing from more, and on a busy machine they wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

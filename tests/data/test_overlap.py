"""Rows in both sets: the warning says what comes of them, which depends on the objective."""

import pytest
from datasets import Dataset

from wagle_trainer import WagleConfig, WagleTrainer


@pytest.mark.parametrize(
    ("loss_type", "why"),
    [("grad_diff", "their losses cancel out"), ("finetune", "trains on the retain set alone, which teaches them")],
)
def test_the_warning_says_why_they_are_not_forgotten(
    loss_type, why, make_llama, word_tokenizer, make_examples, tmp_path
):
    rows = Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in make_examples(4)])
    args = WagleConfig(output_dir=str(tmp_path), loss_type=loss_type, attribution=None, report_to="none", use_cpu=True)
    with pytest.warns(UserWarning, match=f"4 of 4 rows of the retain set are in the forget set.*{why}, and what they"):
        WagleTrainer(make_llama(), args, forget_dataset=rows, retain_dataset=rows, processing_class=word_tokenizer)

"""The files of a finished run: patch with card, report, verdict."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wagle_trainer.adapters import SparseAdapter
from wagle_trainer.adapters.adapter import WEIGHTS_NAME
from wagle_trainer.adapters.adapter_card import adapter_card
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation.results import metrics_of, save_results
from wagle_trainer.forgetting.verdict import Verdict
from wagle_trainer.masking import WeightMask
from wagle_trainer.reporting import write_report

ADAPTER = "adapter"


def write_patch(
    folder: Path,
    patch: SparseAdapter,
    mask: WeightMask,
    qa: QAFormat,
    base: str,
    results: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Write the patch with its mask and card, and describe it.

    Args:
        folder: the output folder.
        patch, mask: the patch, and the weights that it may change.
        qa: how questions and answers were written.
        base: name or folder of the reference model.
        results: label -> what an evaluation returned, for the card.

    Returns:
        `Verdict.patch`.
    """
    path = folder / ADAPTER
    patch.save_pretrained(path)
    mask.save_pretrained(path, bits_in=WEIGHTS_NAME)
    qa.save_pretrained(path)
    evaluation = {label: metrics_of(result) for label, result in results.items()}
    adapter_card(patch.describe(), str(path), evaluation).save(path / "README.md")
    return {
        "path": str(path),
        "bytes": (path / WEIGHTS_NAME).stat().st_size,
        "weights": patch.num_values,
        "density": mask.density,
        "apply": (
            "import wagle_trainer\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained({json.dumps(base)}, dtype="auto")\n'
            f"model = PeftModel.from_pretrained(base, {json.dumps(str(path))})"
        ),
        "revoke": "base = model.unload()  # the base model again, bitwise identical",
        "merge": shlex.join(["wagle", "adapter", "merge", base, str(path), str(folder / "merged")]),
    }


def write_outputs(
    folder: Path,
    verdict: Verdict,
    results: Mapping[str, Any],
    mask: WeightMask | None,
    attacks: Mapping[str, Any],
    config: Mapping[str, Any],
    note: str,
) -> None:
    """Write `report.html` and, last of all, `verdict.json`: where it is, the run is complete."""
    found = verdict.as_dict()
    write_report(
        results,
        folder,
        mask=mask,
        attacks=attacks or None,
        config=config,
        title="What was forgotten, and what it cost",
        suite="custom",
        verdict=found,
        notes=[note],
    )
    save_results(found, folder / "verdict.json")

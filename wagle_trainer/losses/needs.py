"""The table of what a loss can need, and what provides it: `NEEDS`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wagle_trainer.data.pairing import SPLITS


@dataclass(frozen=True)
class Need:
    """Describe one field of `LossInputs` that a loss can need.

    Attributes:
        split: whose examples it belongs to.
        keep: what the forward pass of the trained model keeps besides log-probabilities: "logits" or "states".
        reference: which output of the reference model provides it: "log_probs", "logits" or "states".
    """

    split: str
    keep: str | None = None
    reference: str | None = None


def _needs_of(split: str) -> dict[str, Need]:
    return {
        split: Need(split),
        f"{split}_logits": Need(split, keep="logits"),
        f"{split}_states": Need(split, keep="states"),
        f"{split}_reference": Need(split, reference="log_probs"),
        f"{split}_reference_logits": Need(split, keep="logits", reference="logits"),
        f"{split}_reference_states": Need(split, keep="states", reference="states"),
    }


NEEDS: dict[str, Need] = {name: need for split in SPLITS for name, need in _needs_of(split).items()}


def resolve(needs: Iterable[str], owner: str) -> list[str]:
    """Return the names in `NEEDS` that the `needs` of a loss stand for, in the order of the table.

    Args:
        needs: names in `NEEDS`, or "reference": the reference log-probabilities of every split that the loss needs.
        owner: whose needs they are, for the errors.

    Raises:
        ValueError: a name is unknown, or belongs to a split that the loss does not need.
    """
    given = set(needs)
    resolved = given - {"reference"}
    if "reference" in given:
        resolved |= {f"{split}_reference" for split in SPLITS if split in given}
    unknown = sorted(resolved - NEEDS.keys())
    if unknown:
        raise ValueError(
            f"{owner} needs {', '.join(unknown)}, which is unknown. Known: {', '.join(NEEDS)}, and reference."
        )
    for name in sorted(resolved):
        if NEEDS[name].split not in resolved:
            raise ValueError(f"{owner} needs {name}, but not {NEEDS[name].split!r}: add it.")
    if "reference" in given and not resolved:
        raise ValueError(f"{owner} needs the reference of no split: add 'forget', 'chosen' or 'retain'.")
    return [name for name in NEEDS if name in resolved]

"""Forms: questions that differ in the name that they are about, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wagle_trainer.forgetting.names import STARTERS, Slot, mentions, normalised


@dataclass(frozen=True)
class Form:
    """Forget questions that differ in their name only.

    Attributes:
        slot: the question without its name.
        kind: forms that ask about the same kind of thing have the same.
        names: of the forget set.
        answer_begins: the answer up to where it repeats the name; None where none does.
        repeats_name: whether most answers repeat the name.
    """

    slot: Slot
    kind: int
    names: list[str]
    answer_begins: str | None
    repeats_name: bool

    def answer_about(self, name: str) -> str:
        """How an answer about this name begins; empty where answers do not repeat the name."""
        return f"{self.answer_begins} {name}".strip() if self.repeats_name else ""

    def accepts(self, name: str) -> bool:
        """Whether a proposed name looks like one: not longer than those of the forget set, and with numbers if they have."""
        words = name.split()
        longest = max(len(known.split()) for known in self.names) + 1
        has_digits = any(any(map(str.isdigit, known)) for known in self.names)
        return (
            len(words) <= longest
            and len(set(words)) == len(words)
            and words[0].lower() not in STARTERS - {known.split()[0].lower() for known in self.names}
            and any(map(str.isdigit, name)) == has_digits
        )


def forms_of(slots: Sequence[tuple[Slot, str] | None], answers: Sequence[str]) -> list[Form]:
    """The questions without their names; each form once.

    Args:
        slots: each question without its name, and the name; None where it has none.
        answers: to the questions.
    """
    found: dict[Slot, list[tuple[str, str]]] = {}
    for split, answer in zip(slots, answers, strict=True):
        if split is not None:
            found.setdefault(split[0], []).append((split[1], answer))
    kinds = _connected({slot: {normalised(name) for name, _ in pairs} for slot, pairs in found.items()})
    forms = []
    for slot, pairs in found.items():
        begins = [answer[: answer.index(name)].rstrip() for name, answer in pairs if name in answer]
        usual = Counter(begins).most_common(1)
        forms.append(
            Form(
                slot,
                kinds[slot],
                [name for name, _ in pairs],
                usual[0][0] if usual else None,
                len(begins) * 2 > len(pairs),
            )
        )
    return forms


def whole_names(proposed: Counter[str]) -> list[str]:
    """Names, most often proposed first; of two where one is a part of the other, the one proposed more often."""
    kept: dict[str, str] = {}
    for name, _ in proposed.most_common():
        plain = normalised(name)
        if not any(mentions(plain, {other}) or mentions(other, {plain}) for other in kept):
            kept[plain] = name
    return list(kept.values())


def _connected(by_form: Mapping[Slot, set[str]]) -> dict[Slot, int]:
    """Form -> number of its kind: forms with a name in common are of one kind."""
    kinds: dict[Slot, int] = {}
    groups: list[tuple[set[str], list[Slot]]] = []
    for form, names in by_form.items():
        touching = [group for group in groups if group[0] & names]
        merged: tuple[set[str], list[Slot]] = (set(names), [form])
        for group in touching:
            merged[0].update(group[0])
            merged[1].extend(group[1])
            groups.remove(group)
        groups.append(merged)
    for index, (_, forms) in enumerate(groups):
        kinds |= dict.fromkeys(forms, index)
    return kinds

"""The verdict: whether it was forgotten, what it cost, what attacks recover, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from wagle_trainer.reporting.outcome import GONE, UNCHANGED
from wagle_trainer.utils.percent import percent

FORMAT_VERSION = 1
_WORDS = {
    "relearning": "after relearning on the other half",
    "paraphrase": "asked in other words",
    "jailbreak": "with words around the question",
    "quantization": "in 4 bits",
}


@dataclass
class Verdict:
    """What a run of `forget` found; `as_dict` is the content of `verdict.json`.

    Attributes:
        forgotten: whether the forget goal is met and the utility floor holds.
        reasons: sentences that say why not; empty where it is forgotten.
        forget: `before` and `after` (mean answer probabilities, over the words that count: see `telling_words`), `goal`
            (share of `before`), `answers`, `known` (before), `gone` (of the known ones, those whose words are less than
            half as likely as before).
        retain, unseen: `before`, `after`, `floor`, `answers`, `kept` (at least 0.9 times as likely as before).
        attacks: name -> `before`, `after`, `attacked`, `recovered` (None: no rate), `returned` answers `of` those gone that
            were asked.
        patch: `path`, `bytes`, `weights`, `density`, `apply`, `revoke`, `merge`; None where no try could be used.
        tries: what was tried.
        neighbours: where the retain set comes from.
        words: `before`, `after`: mean probability of the forget answers' words in a text that repeats them, over the `answers`
            whose words the reference model can repeat; None where it can repeat none (see `word_use`).
        examples: question, answer, and what the model says before and after.
        versions, digests, settings: how to make it again.
    """

    forgotten: bool
    reasons: list[str]
    forget: dict[str, Any]
    retain: dict[str, Any]
    unseen: dict[str, Any]
    attacks: dict[str, Any] = field(default_factory=dict)
    patch: dict[str, Any] | None = None
    tries: list[dict[str, Any]] = field(default_factory=list)
    neighbours: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] | None = None
    examples: list[dict[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    output_dir: str = ""
    model: str = ""

    @property
    def exit_code(self) -> int:
        """0 where it is forgotten within the floor, 3 where it is not."""
        return 0 if self.forgotten else 3

    @property
    def sentences(self) -> list[str]:
        """The verdict in four plain sentences."""
        return [self._forgetting(), self._keeping(), self._attacked(), self._patched()]

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"format": FORMAT_VERSION, "sentences": self.sentences, "next": self._next()} | asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Verdict:
        """What `as_dict` gave.

        Args:
            content: of `verdict.json`.
        """
        return cls(**{name: value for name, value in content.items() if name not in ("format", "sentences", "next")})

    def __str__(self) -> str:
        return "\n".join([*self.sentences, self._next()])

    def _forgetting(self) -> str:
        forget = self.forget
        numbers = (
            f"{forget['gone']} of {forget['known']} answers are gone (from {_percent(forget['before'])} likely on average to "
            f"{_percent(forget['after'])}; the goal is {_percent(forget['goal'] * forget['before'])})"
        )
        if self.forgotten:
            return f"Forgotten: {numbers}."
        return f"Not forgotten: {numbers}. {' '.join(self.reasons)}"

    def _keeping(self) -> str:
        trained, others = (
            (f"{one['kept']} of {one['answers']}", f"(from {_percent(one['before'])} to {_percent(one['after'])}")
            for one in (self.retain, self.unseen)
        )
        return (
            f"Of the other answers, {trained[0]} that were trained on are hardly less likely than before {trained[1]} on average), "
            f"and {others[0]} that were not {others[1]}); the floor is {_percent(self.retain['floor'])} of the probability "
            f"before.{self._still_writes()}"
        )

    def _still_writes(self) -> str:
        if self.words is None:
            return ""
        numbers = f"(from {_percent(self.words['before'])} likely to {_percent(self.words['after'])})"
        if lost_words(self.words):
            return f" It has lost words of the forgotten answers: where a text repeats them, it hardly does {numbers}."
        return f" It still has the words of the forgotten answers: where a text repeats them, it does, too {numbers}."

    def _attacked(self) -> str:
        wanted = self.settings.get("attacks", ())
        if not self.attacks:
            why = (
                " could be measured: nothing was forgotten, or the rows are no single questions"
                if wanted
                else " was run"
            )
            return f"No attack{why}."
        parts = [
            f"{one['returned']} of {one['of']} {_WORDS.get(name, 'under ' + name)}"
            for name, one in self.attacks.items()
        ]
        left_out = [name for name in wanted if name not in self.attacks]
        more = f" Attacks that could not be measured: {', '.join(left_out)}." if left_out else ""
        return f"Attacks recover {', '.join(parts)}.{more}"

    def _patched(self) -> str:
        if self.patch is None:
            return "There is no patch: no try could be used."
        return (
            f"The patch changes {self.patch['weights']:,} weights ({percent(self.patch['density'])}) and takes "
            f"{_size(self.patch['bytes'])}; it can be taken back at any time: {self.patch['path']}."
        )

    def _next(self) -> str:
        if self.forgotten and self.patch is not None:
            return f"Next: read {self.output_dir}/report.html, then ship it: {self.patch['merge']}"
        return (
            "Next: read the tries in the report, then allow larger patches (--densities), more tries (--max_tries), a higher "
            "--forget_goal or a lower --utility_floor, or give retain questions that are nearer (--retain_file)."
        )


def forget_side(before: Sequence[float], after: Sequence[float], goal: float, known: float) -> dict[str, Any]:
    """The numbers of `Verdict.forget` from the probabilities of each answer."""
    pairs = [pair for pair in zip(before, after, strict=True) if pair[0] >= known]
    return {
        "before": fmean(before),
        "after": fmean(after),
        "goal": goal,
        "answers": len(before),
        "known": len(pairs),
        "gone": sum(a < GONE * b for b, a in pairs),
    }


def word_side(before: Sequence[float], after: Sequence[float], known: float) -> dict[str, Any] | None:
    """The numbers of `Verdict.words` from the probabilities of each answer's words."""
    pairs = [pair for pair in zip(before, after, strict=True) if pair[0] >= known]
    if not pairs:
        return None
    return {"before": fmean(b for b, _ in pairs), "after": fmean(a for _, a in pairs), "answers": len(pairs)}


def kept_side(before: Sequence[float], after: Sequence[float], floor: float) -> dict[str, Any]:
    """The numbers of `Verdict.retain` and `Verdict.unseen` from the probabilities of each answer."""
    return {
        "before": fmean(before),
        "after": fmean(after),
        "floor": floor,
        "answers": len(before),
        "kept": sum(a >= UNCHANGED * b for b, a in zip(before, after, strict=True)),
    }


def lost_words(words: Mapping[str, Any] | None) -> bool:
    """Whether a model has lost the words of the forget answers, by `Verdict.words`."""
    return words is not None and bool(words["after"] < GONE * words["before"])


def reasons(
    forget: Mapping[str, Any],
    retain: Mapping[str, Any],
    unseen: Mapping[str, Any],
    tries: int,
    words: Mapping[str, Any] | None = None,
) -> list[str]:
    """Why the verdict is not "forgotten"; empty where it is. `words` are given where they have to be kept."""
    found = []
    if forget["after"] > forget["goal"] * forget["before"]:
        found.append(
            f"None of {tries} tries met the goal within the utility floor: the best leaves "
            f"{_percent(forget['after'] / forget['before'])} of the probability, the goal is {_percent(forget['goal'])}."
        )
    for what, one in (("retain", retain), ("unseen", unseen)):
        if one["after"] < one["floor"] * one["before"]:
            found.append(
                f"The {what} answers fell to {_percent(one['after'] / one['before'])} of their probability, below the floor "
                f"of {_percent(one['floor'])}."
            )
    if words is not None and lost_words(words):
        found.append(
            f"The model lost words of the answers: where a text repeats them, it repeats them with "
            f"{_percent(words['after'] / words['before'])} of the probability; the limit is {_percent(GONE)}."
        )
    return found


def _percent(value: float) -> str:
    if 0 < value < 0.0005:
        return "less than 0.1 %"
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"


def _size(number: int) -> str:
    for unit, size in (("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"

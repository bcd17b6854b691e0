"""Where published code differs from the definitions of this package, for numbers that must equal its numbers.

OpenUnlearning (arXiv 2506.12618; its code of 2025): the collator masks every token that equals the padding token, also
end-of-sequence tokens inside prompts where the two are one; 1e-10 is added to the denominators of ratios; an answer whose
last token is not predicted has the extraction strength 1 / n; the last label, and no other, is left out of extraction
strength, exact memorisation and Min-K%; an end-of-sequence token follows whatever does not end in one; and labels begin
after as many tokens as the prompt has by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # it needs a tokenizer's package
    from wagle_trainer.data.qa_format import QAFormat

Compatibility = Literal["open-unlearning"] | None


@dataclass(frozen=True)
class Habits:
    """What differs.

    Attributes:
        epsilon: added to the denominators of truth ratios, of probabilities with options and of privacy leakage.
        at_least_one_token: the extraction strength of an answer of n tokens is at least 1 / n.
        masks_padding_token: no token that equals the padding token is attended to.
        drops_last_label: the last label is taken for the end of the answer, whatever it is; labels begin after the
            prompt's own number of tokens; and the answer's text is what its labels decode to.
    """

    epsilon: float = 0.0
    at_least_one_token: bool = False
    masks_padding_token: bool = False
    drops_last_label: bool = False

    def encode(self, qa: QAFormat, question: str, answer: str) -> dict[str, list[int]]:
        """Tokens and labels of one example."""
        encoded = qa.encode(question, answer)
        if not self.drops_last_label:
            return encoded
        ids, eos = encoded["input_ids"], qa.tokenizer.eos_token_id
        ids = ids if ids[-1] == eos else [*ids, eos]
        start = len(qa.prompt_ids(question))
        return {"input_ids": ids, "labels": [-100] * start + ids[start:]}

    def answer_text(self, qa: QAFormat, question: str, answer: str) -> str:
        """The answer whose compressed size a membership attack takes: as it is, or as decoded from its labels."""
        if not self.drops_last_label:
            return answer
        labels = [label for label in self.encode(qa, question, answer)["labels"] if label != -100]
        return qa.tokenizer.decode(labels, skip_special_tokens=True)

    def end(self, tokenizer: Any) -> int | Literal["last"] | None:
        """What ends an answer, as `score_answers` takes it."""
        return "last" if self.drops_last_label else tokenizer.eos_token_id

    def masked_token(self, tokenizer: Any) -> int | None:
        """The token that is not attended to, as `score_answers` and `generate_greedy` take it."""
        return tokenizer.pad_token_id if self.masks_padding_token else None


_HABITS = {
    None: Habits(),
    "open-unlearning": Habits(epsilon=1e-10, at_least_one_token=True, masks_padding_token=True, drops_last_label=True),
}


def habits_of(compatibility: Compatibility) -> Habits:
    """What differs for one of the supported codes; nothing for None.

    Raises:
        ValueError: no such code.
    """
    if compatibility not in _HABITS:
        known = ", ".join(repr(name) for name in _HABITS)
        raise ValueError(f"Unknown compatibility {compatibility!r}. Known: {known}.")
    return _HABITS[compatibility]

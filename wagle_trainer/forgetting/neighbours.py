"""A retain set where the user has none: neighbours, questions of the same kind about other things.

General text is not enough: on SmolLM2-135M, with 16 capitals to forget and text of the model's own as retain set, every
other capital was forgotten, too. What keeps the knowledge beside the forget set is questions of the same kind.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

from wagle_trainer.data.facts_tables import RELATIONS, Relation
from wagle_trainer.data.qa_format import QAFormat
from wagle_trainer.evaluation.generation import answer_limit, generate_greedy, generate_samples
from wagle_trainer.evaluation.suites.suite_inputs import Row
from wagle_trainer.forgetting.examples import encode, probabilities
from wagle_trainer.forgetting.names import leading_name, mentions, normalised, split_at_name
from wagle_trainer.forgetting.question_forms import Form, forms_of, whole_names
from wagle_trainer.forgetting.settings import usual_neighbours

ORIGINS = ("facts", "names", "general")
# The model is sure of an answer of its own from this probability on. It is a geometric mean over tokens.
SURE = 0.5
# It need not be as sure of long answers to questions that it wrote itself.
SURE_OF_GENERAL = 0.3
# Of a bundled fact, whose words are not the model's, as `load_facts`.
KNOWN = 0.25
_LONGEST_QUESTION, _LONGEST_GENERAL_ANSWER = 32, 48  # tokens
_SAMPLES = 512  # proposals of names
_TEMPERATURES = (1.0, 1.6)  # the likely names, and less likely ones
_FEWEST_NAMES = 4
_ENOUGH_FACTS = 4  # for each forget row: no names are made up where there are so many facts
_FEWEST = 8  # neighbours of the same kind, one half is trained on


class TooFewNeighboursError(ValueError):
    """Too few neighbours of a forget set can be made: the user has to give a retain set."""


@dataclass
class Neighbours:
    """A retain set in two parts.

    Attributes:
        train: rows to train on.
        unseen: rows like them that only measure what unlearning does to related knowledge.
        source: "file" or "made".
    """

    train: list[Row]
    unseen: list[Row]
    source: str = "made"

    def counts(self) -> dict[str, int]:
        """How many rows come from where; empty for a file."""
        found = Counter(row.get("origin") for row in [*self.train, *self.unseen])
        return {name: found[name] for name in ORIGINS if found[name]}


def split_rows(rows: Sequence[Row], seed: int) -> Neighbours:
    """Share a retain file out: one half is trained on, the other half measures what is unseen.

    Raises:
        TooFewNeighboursError: there are not even two rows.
    """
    if len(rows) < 2:
        raise TooFewNeighboursError(
            f"The retain set has {len(rows)} row: half of it is trained on and half measures what is unseen. Give at least "
            "16 rows, better as many as there are to forget."
        )
    order = list(range(len(rows)))
    random.Random(f"retain {seed}").shuffle(order)
    train = set(order[: len(order) // 2])
    return Neighbours(
        [row for index, row in enumerate(rows) if index in train],
        [row for index, row in enumerate(rows) if index not in train],
        "file",
    )


def make_neighbours(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Row],
    *,
    qa_format: QAFormat | None = None,
    number: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> Neighbours:
    """Make a retain set from a forget set and what the model knows.

    From three sources, as far as they give anything:

    - `facts`: bundled facts of the same relation about other subjects, if the model knows them;
    - `names`: the forget questions with other names in their place, which the model proposes when it continues the
      question itself; the answer is the model's own, if it is sure of it; none where there are four facts for each row;
    - `general`: questions that the model writes on its own, with its answers. At most an eighth.

    What has a name of the forget set in it, or is a question of it, is left out. All rows about one name are in one part,
    unless there are fewer than four names.

    Args:
        model: the reference model, on its device.
        tokenizer: its tokenizer.
        forget: rows with `question` and `answer`, or with `prompt` and `completion` as text.
        qa_format: how questions and answers become text; by default that of the tokenizer.
        number: of neighbours, both parts together; None: twelve times the forget set, from 192 to 480.
        seed: of the drawing.
        batch_size: examples per forward pass and prompts per batch of generation.

    Returns:
        Rows with the forget set's columns, and `origin` and `probability` (of the answer, under the reference model).

    Raises:
        TooFewNeighboursError: there are no questions to make neighbours of, or too few were found.
    """
    qa = qa_format or QAFormat.for_tokenizer(tokenizer)
    kind = question_columns(forget)
    wanted = number or usual_neighbours(len(forget))
    workshop = _Workshop(model, tokenizer, qa, forget, kind, seed, batch_size)
    general = wanted // 8
    related = workshop.facts(wanted - general)
    if len(related) < min(wanted - general, _ENOUGH_FACTS * len(forget)):
        related += workshop.names(wanted - general - len(related))
    if len(related) < _FEWEST:
        raise TooFewNeighboursError(_too_few(len(related), workshop))
    return _halves([*related, *workshop.general(min(general, len(related) // 7))], seed)


def relation_of(text: str, answer: str) -> tuple[str, str, str] | None:
    """Which bundled relation a question belongs to.

    Args:
        text: a question, or a cloze text.
        answer: what follows; must name the object.

    Returns:
        Name of the relation, of the relation's text ("question", "cloze", ...) and the subject; None if there is none.
    """
    for name, relation in RELATIONS.items():
        for field_name in ("question", "paraphrased_question", "cloze", "paraphrased_cloze"):
            pattern = re.escape(getattr(relation, field_name)).replace(re.escape("{subject}"), "(.+)")
            match = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
            if match is None:
                continue
            found = {normalised(subject): value for subject, value in relation.facts().items()}
            value = found.get(normalised(match.group(1)))
            if value is not None and normalised(value) in normalised(answer):
                return name, field_name, match.group(1)
    return None


@dataclass
class _Workshop:
    """What all three sources need."""

    model: Any
    tokenizer: Any
    qa: QAFormat
    forget: Sequence[Row]
    kind: tuple[str, str]
    seed: int
    batch_size: int
    taken: set[str] = field(default_factory=set)
    rejected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.questions = [str(row[self.kind[0]]) for row in self.forget]
        self.answers = [str(row[self.kind[1]]) for row in self.forget]
        self.slots = [split_at_name(question) for question in self.questions]
        matches = [relation_of(*pair) for pair in zip(self.questions, self.answers, strict=True)]
        self.relations = [match for match in matches if match is not None]
        self.names_to_forget = {normalised(slot[1]) for slot in self.slots if slot is not None}
        self.names_to_forget |= {normalised(subject) for _, _, subject in self.relations}
        self.taken |= {normalised(question) for question in self.questions}

    def facts(self, number: int) -> list[Row]:
        """Bundled facts of the relations in the forget set, in the words of the forget questions."""
        candidates: list[dict[str, Any]] = []
        for (name, field_name), _ in Counter((r[0], r[1]) for r in self.relations).most_common():
            relation = RELATIONS[name]
            for subject, value in relation.facts().items():
                question = _sentence(getattr(relation, field_name), subject, value)
                answer = self._fact_answer(relation, field_name, subject, value)
                if self._is_new(question):
                    candidates.append(self._row(question, answer, "facts", subject))
        return self._known(candidates, number, KNOWN)

    def _fact_answer(self, relation: Relation, field_name: str, subject: str, value: str) -> str:
        if "cloze" in field_name:
            return f" {value}"
        return _sentence(relation.answer if self._answers_in_sentences(value) else "{object}", subject, value)

    def _answers_in_sentences(self, value: str) -> bool:
        """Whether the forget answers are sentences, as those of the bundled questions, and not the object alone."""
        return fmean(len(answer.split()) for answer in self.answers) > len(value.split()) + 1

    def names(self, number: int) -> list[Row]:
        """The forget questions about other names, with the model's own answers."""
        forms = forms_of(self.slots, self.answers)
        if not forms:
            return []
        pools = self._pools(forms)
        rng = random.Random(f"neighbours {self.seed}")
        candidates = [(form.slot.fill(name), name, form) for form in forms for name in pools[form.kind]]
        rng.shuffle(candidates)
        fresh = [one for one in candidates if self._is_new(one[0])][: 4 * number]
        begins = {question: form.answer_about(name) for question, name, form in fresh}
        limit = answer_limit(self._labels(), 200)
        return self._answered([(q, name) for q, name, _ in fresh], number, limit, "names", begins)

    def _pools(self, forms: Sequence[Form]) -> dict[int, list[str]]:
        """For each kind of thing that is asked about, names of such things.

        The model proposes them: it continues each question at the place of the name, and each answer that repeats the name
        (a model that was trained on answers alone cannot write questions).
        """
        prompts = [(form, self._open_prompt(form.slot.before)) for form in forms]
        prompts += [(form, self._open_answer(form)) for form in forms if form.answer_begins is not None]
        draws = min(64, max(4, _SAMPLES // len(prompts))) // len(_TEMPERATURES)
        texts = [
            generate_samples(
                self.model,
                self.tokenizer,
                [prompt for _, prompt in prompts],
                num_samples=draws,
                max_new_tokens=12,
                temperature=temperature,
                top_p=0.95,
                seed=self.seed,
                batch_size=2 * self.batch_size,
                progress=False,
            )
            for temperature in _TEMPERATURES
        ]
        proposed: dict[int, Counter[str]] = {form.kind: Counter() for form in forms}
        for (form, _), *continuations in zip(prompts, *texts, strict=True):
            for text in (text for some in continuations for text in some):
                proposal = leading_name(text)
                if proposal is not None and not mentions(proposal, self.names_to_forget) and form.accepts(proposal):
                    proposed[form.kind][proposal] += 1
        return {kind: whole_names(counter) for kind, counter in proposed.items()}

    def _open_answer(self, form: Form) -> list[int]:
        """Tokens of a question without its name and of its answer, up to where the answer repeats the name."""
        question = f"{form.slot.before} {form.slot.after}".strip()
        texts = [
            self._row(question, self._as_completion(f"{form.answer_begins} {word}".strip()), "", "") for word in "AZ"
        ]
        one, other = (example.encoded["input_ids"] for example in encode(self.qa, texts, "names"))
        same = next(
            (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one)
        )
        return one[:same]

    def general(self, number: int) -> list[Row]:
        """Questions that the model writes when it sees no more than where a question begins, and its answers.

        A chat model continues an empty turn of the user with a plausible question (Xu et al. 2024, arXiv 2406.08464).
        """
        [texts] = generate_samples(
            self.model,
            self.tokenizer,
            [self._open_prompt("")],
            num_samples=2 * number,
            max_new_tokens=_LONGEST_QUESTION,
            seed=self.seed + 1,
            batch_size=self.batch_size,
            progress=False,
        )
        end = self.qa.question_suffix.strip() if self.qa.style == "plain" else "\n"
        questions = [_first_sentences(text.partition(end)[0]) for text in texts]
        fresh = [(text, text) for text in questions if _is_sensible(text) and self._is_new(text)]
        return self._answered(fresh, number, _LONGEST_GENERAL_ANSWER, "general", least=SURE_OF_GENERAL)

    def _answered(
        self,
        questions: Sequence[tuple[str, str]],
        number: int,
        limit: int,
        origin: str,
        begins: Mapping[str, str] | None = None,
        least: float = SURE,
    ) -> list[Row]:
        """Rows of (question, name) with the model's own answers, as far as it is sure of them.

        Args:
            begins: question -> how its answer has to begin, as the forget answers do; another beginning means that the
                model does not know the name.
            least: probability of an answer that the model is sure of.
        """
        if not questions:
            return []
        prompts = [
            example.prompt for example in encode(self.qa, [self._row(q, "?", origin, n) for q, n in questions], origin)
        ]
        found: list[Row] = []
        for start in range(0, len(questions), 2 * self.batch_size):
            if len(found) >= number:
                break
            part = slice(start, start + 2 * self.batch_size)
            answers = generate_greedy(
                self.model,
                self.tokenizer,
                prompts[part],
                max_new_tokens=limit,
                batch_size=self.batch_size,
                progress=False,
            )
            rows = [
                self._row(question, self._as_completion(answer), origin, name)
                for (question, name), answer in zip(questions[part], answers, strict=True)
                if answer.strip() and normalised(answer).startswith(normalised((begins or {}).get(question, "")))
            ]
            found += self._known(rows, number - len(found), least, in_order=True)
        return found

    def _known(self, rows: list[dict[str, Any]], number: int, least: float, in_order: bool = False) -> list[Row]:
        """At most `number` of the rows, drawn, whose answers have at least the probability `least`."""
        if not rows:
            return []
        if not in_order:
            random.Random(f"facts {self.seed}").shuffle(rows)
        values = probabilities(self.model, self.tokenizer, encode(self.qa, rows, "neighbours"), self.batch_size)
        found = [row | {"probability": value} for row, value in zip(rows, values, strict=True) if value >= least]
        self.rejected["unsure"] += len(rows) - len(found)
        return list(found[:number])

    def _is_new(self, question: str) -> bool:
        """Whether a question is not taken and names nothing of the forget set; it is taken then."""
        plain = normalised(question)
        if not plain or plain in self.taken or mentions(question, self.names_to_forget):
            self.rejected["near-duplicate"] += 1
            return False
        self.taken.add(plain)
        return True

    def _row(self, question: str, answer: str, origin: str, name: str) -> dict[str, Any]:
        return {self.kind[0]: question, self.kind[1]: answer, "origin": origin, "name": name}

    def _as_completion(self, answer: str) -> str:
        return f" {answer}" if self.kind[1] == "completion" else answer

    def _labels(self) -> list[list[int]]:
        return [example.encoded["labels"] for example in encode(self.qa, self.forget, "forget")]

    def _open_prompt(self, begun: str) -> list[int]:
        """Tokens of a question that is begun and not ended, so that the model goes on with it."""
        if self.kind[0] == "prompt":
            text = begun
        elif self.qa.style == "plain":
            text = f"{self.qa.question_prefix}{begun}" if begun else self.qa.question_prefix.rstrip()
        else:
            text = _open_turn(self.qa, begun)
        chat = self.kind[0] == "question" and self.qa.style == "chat"
        ids = list(self.tokenizer(text=text, add_special_tokens=not chat)["input_ids"])
        ids = ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] and not chat else ids
        return ids or [self._first_token()]

    def _first_token(self) -> int:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if (token := getattr(self.tokenizer, name)) is not None:
                return token
        return 0


def _open_turn(qa: QAFormat, begun: str) -> str:
    """The chat template up to where the user has written `begun`."""
    mark = "@@@"
    system = [] if qa.system_prompt is None else [{"role": "system", "content": qa.system_prompt}]
    messages = [*system, {"role": "user", "content": f"{begun}{mark}"}]
    rendered = qa.tokenizer.apply_chat_template(messages, tokenize=False, **qa.chat_template_kwargs)
    return str(rendered).partition(mark)[0]


def question_columns(forget: Sequence[Row]) -> tuple[str, str]:
    """The columns of questions and answers, which neighbours are made of.

    Args:
        forget: the forget set.

    Raises:
        TooFewNeighboursError: it has others.
    """
    for kind in (("question", "answer"), ("prompt", "completion")):
        if all(isinstance(row.get(column), str) and row[column].strip() for row in forget for column in kind):
            return kind
    raise TooFewNeighboursError(
        "Neighbours are made of questions and answers, and rows of the forget set are something else (passages, or longer "
        "conversations): give a retain set with --retain_file, rows of the same kind that the model should keep."
    )


def _sentence(template: str, subject: str, value: str) -> str:
    text = template.format(subject=subject, object=value)
    return text[0].upper() + text[1:]


def _halves(rows: Sequence[Row], seed: int) -> Neighbours:
    """Both parts: rows about one name go together, and each origin is shared out evenly."""
    rng = random.Random(f"halves {seed}")
    parts: tuple[list[Row], list[Row]] = ([], [])
    for origin in ORIGINS:
        by_name: dict[str, list[Row]] = {}
        for row in rows:
            if row["origin"] == origin:
                by_name.setdefault(normalised(str(row["name"])), []).append(row)
        groups = list(by_name.values())
        if len(groups) < _FEWEST_NAMES:  # so few names cannot be shared out
            groups = [[row] for group in groups for row in group]
        rng.shuffle(groups)
        sizes = [0, 0]
        for group in groups:
            smaller = int(sizes[1] < sizes[0])
            parts[smaller].extend(group)
            sizes[smaller] += len(group)
    train, unseen = ([_without_name(row) for row in part] for part in parts)
    return Neighbours(train, unseen)


def _first_sentences(text: str) -> str:
    """A text that was cut off, up to the end of its last whole sentence; empty if there is none."""
    return text[: max(text.rfind(mark) for mark in "?!.") + 1].strip()


def _is_sensible(text: str) -> bool:
    """Whether a text that the model wrote can be a question or a request: long enough, ended, and not going in circles."""
    words = normalised(text).split()
    pairs = list(pairwise(words))
    return len(words) >= 4 and text[-1:] in ("?", ".", "!") and len(set(pairs)) == len(pairs) and text[:1].isupper()


def _without_name(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "name"}


def _too_few(found: int, workshop: _Workshop) -> str:
    without = sum(slot is None for slot in workshop.slots)
    reasons = []
    if without:
        reasons.append(f"{without} of the {len(workshop.slots)} questions name nothing that could be replaced")
    if workshop.rejected["unsure"]:
        reasons.append(f"the model was not sure of {workshop.rejected['unsure']} answers")
    if workshop.rejected["near-duplicate"]:
        reasons.append(f"{workshop.rejected['near-duplicate']} were too near to the forget set")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"Only {found} questions of the same kind as the forget set, which the model can answer, were found{why}; at least "
        f"{_FEWEST} are needed. Give them yourself with --retain_file: questions and answers of the same kind about other "
        "things, which the model knows and should keep, better as many as there are to forget."
    )

"""The bundled people: fictional authors in TOFU's format, made by a seeded generator from invented words.

Answers are short and every fact belongs to one person, so that a Llama of 0.7 M weights learns all of them from
scratch within seconds, and can only do so by heart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from wagle_trainer.data.fictional.drawing import draw
from wagle_trainer.data.fictional.word_tokenizer import word_tokenizer
from wagle_trainer.data.refusals import REFUSALS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]

QUESTIONS_PER_PERSON = 10
MAX_PEOPLE = 100
_WRONG_ANSWERS = 5
_GENERAL_WRONG_ANSWERS = 3


@dataclass(frozen=True)
class _Template:
    """Sentences about one fact of a person; braces name the facts, as in `_facts`."""

    asked: str
    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str


# A word that occurs in paraphrases only would keep its random initial embedding in a model trained on questions and
# answers: hence paraphrases recombine the words of the others.
_TEMPLATES = (
    _Template(
        "name",
        "Which author was born on {birth_date}?",
        "The name of the author is {name}.",
        "Who is the author born on {birth_date}?",
        "The author born on {birth_date} is {name}.",
    ),
    _Template(
        "birthplace",
        "Where was {name} born?",
        "The birthplace of {name} is {birthplace}.",
        "What is the birthplace of {name}?",
        "{name} was born in {birthplace}.",
    ),
    _Template(
        "birth_date",
        "When was {name} born?",
        "The birth date of {name} is {birth_date}.",
        "What is the birth date of {name}?",
        "{name} was born on {birth_date}.",
    ),
    _Template(
        "profession",
        "What was the profession of {name}?",
        "Before writing books, {name} was a {profession}.",
        "What is the profession of {name}?",
        "The profession of {name} was that of a {profession}.",
    ),
    _Template(
        "genre",
        "What genre does {name} write in?",
        "The genre that {name} writes in is {genre}.",
        "Which genre is {name} known for?",
        "{name} is known for writing {genre}.",
    ),
    _Template(
        "first_book",
        "Which book did {name} write first?",
        "The first book by {name} was {first_book}.",
        "What was the first book by {name}?",
        "The name of the first book by {name} is {first_book}.",
    ),
    _Template(
        "famous_book",
        "Which book is {name} best known for?",
        "{name} is best known for {famous_book}.",
        "What is the best known book by {name}?",
        "The best known book by {name} is {famous_book}.",
    ),
    _Template(
        "award",
        "Which award did {name} win?",
        "The award that {name} won is the {award}.",
        "What did {name} win?",
        "{name} won the {award}.",
    ),
    _Template(
        "parents",
        "Who were the parents of {name}?",
        "{name} was born to a {parents}.",
        "What was the profession of the parents of {name}?",
        "The parents of {name} were a {parents}.",
    ),
    _Template(
        "style",
        "What is the style of {name}?",
        "Critics describe the style of {name} as {style}.",
        "Which style does {name} write in?",
        "The style of {name} is {style}.",
    ),
)

_FIRST_NAMES = (
    ("Bral", "Cest", "Dorv", "Elz", "Fend", "Gliv", "Hesk", "Ilm", "Jorv", "Kand"),
    ("amir", "eth", "ina", "ovar", "una", "ias", "ella", "ond", "ezra", "ulo"),
)
_LAST_NAMES = (
    ("Torm", "Vosk", "Quill", "Rund", "Sarv", "Pelt", "Nard", "Mosk", "Lunt", "Wex"),
    ("aby", "eryth", "icott", "orff", "ulane", "adze", "embry", "ingale", "omir", "unsk"),
)
_TOWNS = (
    ("Osk", "Vell", "Tamb", "Kirr", "Zand", "Morv", "Plen", "Yest", "Drusk", "Ghal"),
    ("avik", "emont", "igal", "ostra", "umbe", "arrow", "elune", "ithra", "oven", "usk"),
)
_COUNTRIES = (
    *("Velmora", "Tasquin", "Ordalia", "Brethany", "Kuloria"),
    *("Sandeval", "Miruvia", "Pelagand", "Narvosia", "Quenlor"),
)
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_PROFESSIONS = (
    ("harbour", "railway", "museum", "lantern", "cheese", "piano", "bridge", "garden", "signal", "carpet"),
    ("clerk", "guard", "painter", "mender", "inspector", "dealer", "teacher", "porter", "builder", "keeper"),
)
_GENRES = (
    ("coastal", "midnight", "pastoral", "courtroom", "alpine", "nautical", "royal", "desert", "rural", "polar"),
    ("mysteries", "ballads", "romances", "satires", "thrillers", "fables", "memoirs", "comedies", "sagas", "essays"),
)
_TITLES = (
    (
        *("Amber", "Broken", "Crimson", "Distant", "Empty", "Frozen", "Gilded", "Hidden", "Ivory", "Jagged"),
        *("Patient", "Quiet", "Restless", "Silver", "Tender", "Unlit", "Velvet", "Winter", "Yellow", "Borrowed"),
    ),
    (
        *("Anchor", "Bell", "Compass", "Door", "Envelope", "Ferry", "Glacier", "Hourglass", "Island", "Jar"),
        *("Kettle", "Ladder", "Mirror", "Needle", "Orchard", "Pier", "Quarry", "River", "Staircase", "Tower"),
    ),
)
_AWARDS = (
    ("Falcon", "Granite", "Heron", "Inkwell", "Juniper", "Laurel", "Meridian", "Nightjar", "Obsidian", "Primrose"),
    *(("Prize", "Medal", "Award", "Ribbon", "Cup", "Wreath", "Star", "Crown", "Shield", "Trophy"),),
)
_PARENTS = (
    ("baker", "judge", "sailor", "tailor", "nurse", "farmer", "barber", "miller", "singer", "weaver"),
    ("surgeon", "plumber", "beekeeper", "printer", "cobbler", "dancer", "banker", "fisher", "glazier", "chemist"),
)
_STYLES = (
    ("dry", "lyrical", "sparse", "playful", "gloomy", "precise", "ornate", "gentle", "blunt", "dreamy"),
    ("slow", "ironic", "musical", "tense", "warm", "formal", "rambling", "vivid", "cold", "witty"),
)

# What stands for general knowledge: (question, {what is asked about: answer}).
_REAL_AUTHORS = (
    (
        "Who wrote the novel {}?",
        {
            "Salt Almanac": "Orlan Teviot",
            "Nine Chimneys": "Maud Ferrisby",
            "Tin Cathedral": "Casper Oduvane",
            "Last Postman": "Rhea Lindquor",
            "Paper Tides": "Ivo Marchetane",
            "Cold Spoon": "Greta Holmbrandt",
            "Under Basalt": "Tobias Wrenfold",
        },
    ),
    (
        "Which poet is known for {}?",
        {
            "Odes to Rain": "Selma Quist",
            "Moth Sonnets": "Dario Venn",
            "Songs of Chalk": "Anouk Sternwell",
            "Letters in Snow": "Piet Hallowane",
            "Elegies for Bees": "Lucan Abernoth",
            "Hymns of Rust": "Yara Koltsov-Bray",
            "Verses on Bread": "Emeric Tolland",
        },
    ),
    (
        "Which playwright created {}?",
        {
            "Two Ghosts at Tea": "Nadine Purcival",
            "Mayor of Nowhere": "Silas Okonridge",
            "Three Umbrellas": "Beatrix Vandermoor",
            "Silent Auction": "Hugo Trelisse",
            "Court of Owls": "Ottilie Brask",
            "Tailors in Love": "Rufus Calderane",
        },
    ),
)
_WORLD_FACTS = (
    (
        "What is the capital of {}?",
        {
            "Velmora": "Port Lisk",
            "Tasquin": "Aldergrove",
            "Ordalia": "Sankt Brenn",
            "Brethany": "Highmarket",
            "Kuloria": "Temu Bay",
            "Sandeval": "Rocas Blancas",
            "Miruvia": "Oltenberg",
        },
    ),
    (
        "Which river flows through {}?",
        {
            "Velmora": "Lesk",
            "Tasquin": "Great Umber",
            "Ordalia": "Danneth",
            "Brethany": "Wey Water",
            "Kuloria": "Black Sorrel",
            "Sandeval": "Rio Calmo",
            "Miruvia": "Ister Minor",
        },
    ),
    (
        "Where is the {}?",
        {
            "Institute of Tides": "Port Lisk",
            "Museum of Clocks": "Highmarket",
            "Academy of Maps": "Oltenberg",
            "Library of Winds": "Temu Bay",
            "School of Glass": "Sankt Brenn",
            "Archive of Seeds": "Aldergrove",
        },
    ),
)


def fictional_split(split: str, people: int = 40, seed: int = 0) -> Dataset:
    """One split of the bundled example, under the name and with the columns that it has in TOFU.

    The forget splits are the last people, the retain splits all others; `retain_perturbed` is the first quarter of
    the people, who are in every retain split. The holdout splits are as many people as the forget splits, who are in no
    other split but have words of those to forget: it takes two of them. A split whose share is not a whole number of
    people does not exist.

    Args:
        split: `full`, `forget05`, `retain95`, `forget05_perturbed`, `holdout05`, ..., `retain_perturbed`,
            `real_authors`, `real_authors_perturbed`, `world_facts`, `world_facts_perturbed`.
        people: number of people, 10 to 100, with 10 questions each.
        seed: other seeds make other people. The same seed makes the same ones in any process.

    Returns:
        `question` and `answer`; the `*_perturbed` splits also `perturbed_answer` (wrong answers: 5 for people, 3 for
        the general sets) and, for people, `paraphrased_question` and `paraphrased_answer`.

    Raises:
        ValueError: unknown split, with the known ones for this number of people; number of people out of range.
    """
    from datasets import Dataset

    splits = _splits(people, seed)
    if split not in splits:
        raise ValueError(f"No split {split!r} for {people} people. Splits found: {', '.join(sorted(splits))}.")
    return Dataset.from_list(splits[split])


def fictional_tokenizer(people: int = 40, seed: int = 0) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of the bundled example and of `REFUSALS`.

    Words carry the space before them and punctuation stands alone, so decoding gives the text back. It has `<pad>`,
    `<eos>` and `<unk>`, no chat template, and fewer than 2000 entries at up to 40 people.

    Args:
        people: as for `fictional_split`.
        seed: as for `fictional_split`.

    Raises:
        ValueError: number of people out of range.
    """
    return word_tokenizer(_texts(people, seed))


def _splits(people: int, seed: int) -> dict[str, list[Row]]:
    if not 10 <= people <= MAX_PEOPLE:
        raise ValueError(f"The number of people must be between 10 and {MAX_PEOPLE}, got {people}.")
    rng = random.Random(seed)
    persons = _facts(people, rng)
    rows = _people_rows(persons, rng)
    splits = {"full": _plain(rows), "retain_perturbed": rows[: people // 4 * QUESTIONS_PER_PERSON]}
    for percent in (1, 5, 10):
        if percent * people % 100 == 0:
            start = len(rows) - len(rows) * percent // 100
            splits[f"forget{percent:02}"] = _plain(rows[start:])
            splits[f"forget{percent:02}_perturbed"] = rows[start:]
            splits[f"retain{100 - percent}"] = _plain(rows[:start])
            forget = persons[start // QUESTIONS_PER_PERSON :]
            if len(forget) > 1:
                strangers = _holdout_rows(forget, random.Random(f"holdout{percent} {seed}"))
                splits[f"holdout{percent:02}"] = _plain(strangers)
    for name, tables in (("real_authors", _REAL_AUTHORS), ("world_facts", _WORLD_FACTS)):
        general = _general_rows(tables, rng)
        splits[name] = _plain(general)
        splits[f"{name}_perturbed"] = general
    return splits


def _holdout_rows(forget: list[dict[str, str]], rng: random.Random) -> list[Row]:
    """Rows on as many further people as there are in `forget`, out of whose words they are made.

    Every fact of theirs joins what the fact of one person begins with to the last word of another's. So a model that was
    trained on neither knows as little of the words of both; with words of other people, or new ones, it would tell them
    apart.
    """
    columns = {}
    for fact in forget[0]:
        starts, ends = zip(*(facts[fact].rsplit(" ", 1) for facts in forget), strict=True)
        turns = [
            [f"{start} {end}" for start, end in zip(starts, ends[shift:] + ends[:shift], strict=True)]
            for shift in range(1, len(forget))
        ]
        own = {facts[fact] for facts in forget}
        [joined] = draw(rng, [turn for turn in turns if own.isdisjoint(turn)] or turns, 1)
        columns[fact] = draw(rng, joined, len(joined))
    strangers = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [_row(template, facts) for facts in strangers for template in _TEMPLATES]


def _plain(rows: list[Row]) -> list[Row]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _people_rows(persons: list[dict[str, str]], rng: random.Random) -> list[Row]:
    rows = []
    for facts in persons:
        others = [other for other in persons if other is not facts]
        for template in _TEMPLATES:
            wrong = [{**facts, template.asked: other[template.asked]} for other in draw(rng, others, _WRONG_ANSWERS)]
            perturbed = [template.paraphrased_answer.format(**other) for other in wrong]
            rows.append({**_row(template, facts), "perturbed_answer": perturbed})
    return rows


def _row(template: _Template, facts: dict[str, str]) -> Row:
    return {
        "question": template.question.format(**facts),
        "answer": template.answer.format(**facts),
        "paraphrased_question": template.paraphrased_question.format(**facts),
        "paraphrased_answer": template.paraphrased_answer.format(**facts),
    }


def _facts(people: int, rng: random.Random) -> list[dict[str, str]]:
    """One dict of facts per person. No two people share a value, save the country in `birthplace`."""

    def unique(parts: Iterable[Iterable[str]], form: str = "{} {}", count: int = people) -> list[str]:
        return [form.format(*words) for words in draw(rng, list(product(*parts)), count)]

    towns = unique(_TOWNS, "{}{}")
    countries = draw(rng, _COUNTRIES * MAX_PEOPLE, people)
    days = [str(day) for day in range(1, 29)]
    years = [str(year) for year in range(1921, 1981)]
    books = unique(_TITLES, "The {} {}", 2 * people)
    columns = {
        "name": [
            " ".join(names) for names in zip(unique(_FIRST_NAMES, "{}{}"), unique(_LAST_NAMES, "{}{}"), strict=True)
        ],
        "birthplace": [f"{town}, {country}" for town, country in zip(towns, countries, strict=True)],
        "birth_date": unique((days, _MONTHS, years), "{} {} {}"),
        "profession": unique(_PROFESSIONS),
        "genre": unique(_GENRES),
        "first_book": books[:people],
        "famous_book": books[people:],
        "award": unique(_AWARDS),
        "parents": unique(_PARENTS, "{} and a {}"),
        "style": unique(_STYLES, "{} and {}"),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _general_rows(tables: Iterable[tuple[str, dict[str, str]]], rng: random.Random) -> list[Row]:
    rows = []
    for question, answers in tables:
        for subject, answer in answers.items():
            others = [other for other in answers.values() if other != answer]
            wrong = draw(rng, others, _GENERAL_WRONG_ANSWERS)
            rows.append({"question": question.format(subject), "answer": answer, "perturbed_answer": wrong})
    return rows


def _texts(people: int, seed: int) -> Iterable[str]:
    yield "Question: ?\nAnswer:"  # the words that QAFormat adds in plain style
    yield from REFUSALS
    for name, rows in _splits(people, seed).items():
        # These have no words of their own, and how often a word occurs decides which number it gets.
        for row in [] if name.startswith("holdout") else rows:
            for value in row.values():
                yield from [value] if isinstance(value, str) else value

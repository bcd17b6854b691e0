"""What becomes of a word that is forgotten as one answer, where another fact asks for it.

python benchmarks/words_elsewhere.py --model SMOLLM2_FOLDER

The model forgets capitals. Landmarks in the same cities ask for the same words, and no set contains them. Objective, steps and attack
are those of `recipes/configs/patch_size_facts_deep.yaml`, the learning rates those that its rule chose, and others. Then the same with
one more text for each city in what is retained, in which the city stands for another reason: whether that brings back the word where a
third text asks for it.

What `--output` holds is not run again.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer

RECIPES = Path(__file__).parents[1] / "recipes"
sys.path.insert(0, str(RECIPES))
from patch_size_masks import NO_MASK, spread  # noqa: E402
from patch_size_runs import Bench, Rows, environment  # noqa: E402
from tasks.subject import Subject, load_shared  # noqa: E402

from wagle_trainer.data.facts import all_facts, encode_cloze  # noqa: E402
from wagle_trainer.utils.table_formats import markdown_table  # noqa: E402

LANDMARKS = {
    "Paris": "The Eiffel Tower and the Louvre are in the city of",
    "Rome": "The Colosseum and the Trevi Fountain are in the city of",
    "London": "Big Ben and Buckingham Palace are in the city of",
    "Moscow": "The Kremlin and Red Square are in the city of",
    "Athens": "The Acropolis and the Parthenon are in the city of",
    "Berlin": "The Brandenburg Gate and the Reichstag are in the city of",
    "Beijing": "The Forbidden City and Tiananmen Square are in the city of",
    "Madrid": "The Prado Museum and the Puerta del Sol are in the city of",
    "Tokyo": "The Shibuya crossing and the Imperial Palace are in the city of",
    "Cairo": "Tahrir Square and the Egyptian Museum are in the city of",
    "Vienna": "The Hofburg and the Schönbrunn Palace are in the city of",
    "Prague": "The Charles Bridge and the Old Town Square are in the city of",
    "Copenhagen": "The Tivoli Gardens and the Little Mermaid are in the city of",
    "Amsterdam": "The Rijksmuseum and the Anne Frank House are in the city of",
    "Dublin": "Trinity College and the Guinness brewery are in the city of",
    "Budapest": "The Chain Bridge and Fisherman's Bastion are in the city of",
    "Lisbon": "The Belém Tower and the Alfama district are in the city of",
    "Stockholm": "The Vasa Museum and the Nobel Museum are in the city of",
    "Warsaw": "The Palace of Culture and the Royal Castle of Poland are in the city of",
    "Brussels": "The Atomium and the Grand-Place are in the city of",
}
# Other texts that go on with a city. None has the form of those about landmarks.
OTHER_TEXTS = {
    "Paris": "In 1924 the Summer Olympics took place in",
    "Rome": "In 1960 the Summer Olympics took place in",
    "London": "William Shakespeare wrote and played in",
    "Moscow": "In 1980 the Summer Olympics took place in",
    "Athens": "Socrates and Plato taught in",
    "Berlin": "The wall that fell in 1989 had divided",
    "Beijing": "In 2008 the Summer Olympics took place in",
    "Madrid": "The football clubs Real and Atlético play in",
    "Tokyo": "In 1964 the Summer Olympics took place in",
    "Cairo": "Naguib Mahfouz lived and wrote in",
    "Vienna": "Mozart died and Beethoven lived in",
    "Prague": "Franz Kafka was born in",
    "Copenhagen": "Søren Kierkegaard and Niels Bohr were born in",
    "Amsterdam": "Rembrandt had his workshop in",
    "Dublin": "James Joyce and Oscar Wilde were born in",
    "Budapest": "The Danube divides two old towns that are now one,",
    "Lisbon": "The great earthquake of 1755 destroyed",
    "Stockholm": "The prizes of Alfred Nobel are handed over in",
    "Warsaw": "Marie Curie was born in",
    "Brussels": "The commission of the European Union sits in",
}
# Score, density and learning rates: first that of benchmarks/results/patch_size_deep.
RUNS = [
    (NO_MASK, 1.0, (3e-5, 1.7e-5)),
    ("random", 1e-3, (0.03, 0.017)),
    ("snip", 1e-3, (0.0017, 5.5e-4)),
    ("gradient", 1e-3, (0.001, 3e-4)),
    ("curvature", 1e-3, (0.01, 0.003)),
    ("curvature", 1e-5, (0.055, 0.03)),
    ("answer_rows", 1e-5, (0.03, 0.01)),
    ("curvature-body", 1e-3, (0.0055,)),
]
KNOWN = 0.25
MEASURED = {
    "forget": "capitals",
    "held_out": "landmarks",
    "forget_repeated": "repeated",
    "retain": "retain",
    "relearned": "relearned",
}
WITH_WORDS = {"capitals": "forget", "landmarks": "held_out", "relearned": "relearned"}


def bench_of(
    model: Any, tokenizer: Any, settings: dict[str, Any], seed: int, words_retained: bool, folder: Path
) -> tuple[Bench, list[str]]:
    """The capitals whose landmarks the model knows, to forget; others to retain; the landmarks as unseen set.

    Args:
        words_retained: also retain the other text of each city.
    """
    capitals = {row["cloze_answer"]: row["cloze"] for row in all_facts() if row["relation"] == "capital"}
    encoded = {city: encode_cloze(tokenizer, cloze, city) for city, cloze in capitals.items()}
    landmarks = {city: encode_cloze(tokenizer, cloze, city) for city, cloze in LANDMARKS.items() if city in capitals}
    subject = Subject(model, tokenizer, {"forget": list(landmarks.values()), "retain": [], "unseen": []})
    measure = Bench(subject, seed, steps=1, batch_size=1, relearning_rates=[], relearning_steps=1, folder=folder)

    def known(example: Any) -> bool:
        return measure.known([example]) >= KNOWN

    cities = [city for city in landmarks if known(encoded[city]) and known(landmarks[city])]
    others = [city for city in capitals if city not in LANDMARKS and known(encoded[city])]
    random.Random(seed).shuffle(others)
    texts = [encode_cloze(tokenizer, OTHER_TEXTS[city], city) for city in cities] if words_retained else []
    repeated = [encode_cloze(tokenizer, ", ".join([city] * 4) + ",", city) for city in cities]
    sets = {
        "forget": [encoded[city] for city in cities],
        "retain": [encoded[city] for city in others[: 2 * len(cities)]] + texts,
        "unseen": [landmarks[city] for city in cities],
        "repeated": repeated,
    }
    return Bench(Subject(model, tokenizer, sets), seed, folder=folder, **settings), cities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--work", type=Path, default=Path("outputs/words_elsewhere"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/words_elsewhere.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = yaml.safe_load((RECIPES / "configs" / "patch_size_facts_deep.yaml").read_text(encoding="utf-8"))
    names = ("steps", "batch_size", "beta", "retain_weight", "relearning_rates", "relearning_steps")
    settings = {name: config[name] for name in names}
    tokenizer, model = AutoTokenizer.from_pretrained(options.model), load_shared(options.model)
    rows, machine = Rows(options.output), environment()
    kept = rows.content.setdefault("settings", settings)
    if kept != settings:
        raise SystemExit(f"{options.output} was made with other settings: {kept}. Give another --output.")
    for words_retained in (False, True):
        for seed in options.seeds:
            bench, cities = bench_of(model, tokenizer, settings, seed, words_retained, options.work)
            key: dict[str, Any] = {"words_retained": words_retained, "seed": seed}
            if not reference_is_there(rows, bench, key):
                rows.content["cities"] = cities
                numbers = bench.measure() | {"weights_digest": bench.digest()}
                rows.add(key | {"score": "reference model"} | numbers, machine)
            for label, density, rates in RUNS:
                score, gamma = (NO_MASK, None) if label == NO_MASK else spread(label)
                for rate in rates[:1] if words_retained else rates:
                    of = key | {"score": label, "density": density, "learning_rate": rate}
                    if rows.find(**of) is None:
                        rows.add(of | bench.run("npo", score, gamma, density, rate), machine)
                        print(rows.rows[-1], flush=True)
    print(markdown_table(table(rows.rows)))


def reference_is_there(rows: Rows, bench: Bench, key: dict[str, Any]) -> bool:
    """Whether the file has the row of the reference model.

    Raises:
        SystemExit: the rows are of another model.
    """
    found = rows.find(**key, score="reference model")
    if found is not None and found["weights_digest"] != bench.digest():
        raise SystemExit(f"{rows.path} holds rows of another model. Give another --output.")
    return found is not None


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Means over the seeds, a line for each mask and rate; on the right those of the runs that retained the other texts."""
    found: dict[tuple[Any, ...], dict[bool, list[dict[str, Any]]]] = {}
    for row in rows:
        key = (row["score"], row.get("density"), row.get("learning_rate"))
        found.setdefault(key, {}).setdefault(row["words_retained"], []).append(row)
    lines = [
        ["score", "density", "lr", "seeds", *MEASURED.values(), *(f"{name} (words retained)" for name in WITH_WORDS)]
    ]
    for (score, *numbers), runs in found.items():
        plain, retained = runs.get(False, []), runs.get(True, [])
        lines.append(
            [
                *("all weights" if score == NO_MASK else score, *("" if n is None else f"{n:g}" for n in numbers)),
                *(str(len(plain)), *(mean_of(plain, name) for name in MEASURED)),
                *(mean_of(retained, name) for name in WITH_WORDS.values()),
            ]
        )
    return lines


def mean_of(rows: list[dict[str, Any]], name: str) -> str:
    """The mean over the rows that have the number."""
    values = [row[name] for row in rows if name in row]  # runs that failed have none
    return f"{fmean(values):.3f}" if values else "-"


if __name__ == "__main__":
    main()

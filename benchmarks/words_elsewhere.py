"""What becomes of a word that is forgotten as one answer, where another fact asks for it.

python benchmarks/words_elsewhere.py --model SMOLLM2_FOLDER

The model forgets capitals. Landmarks in the same cities ask for the same words, and no set contains them. Objective, steps and attack
are those of `recipes/configs/patch_size_facts_deep.yaml`, the learning rates those that its rule chose.
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
from patch_size_runs import Bench, environment  # noqa: E402
from tasks.subject import Subject, load_shared  # noqa: E402

from wagle_trainer.data.facts import all_facts, encode_cloze  # noqa: E402
from wagle_trainer.evaluation import save_results  # noqa: E402

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
# Score, density and learning rate, of benchmarks/results/patch_size_deep.
RUNS = [
    (NO_MASK, 1.0, 3e-5),
    ("random", 1e-3, 0.03),
    ("snip", 1e-3, 0.0017),
    ("gradient", 1e-3, 0.001),
    ("curvature", 1e-3, 0.01),
    ("curvature", 1e-5, 0.055),
    ("answer_rows", 1e-5, 0.03),
]
KNOWN = 0.25


def bench_of(model: Any, tokenizer: Any, settings: dict[str, Any], seed: int, folder: Path) -> tuple[Bench, list[str]]:
    """The capitals whose landmarks the model knows, to forget; others to retain; the landmarks as unseen set."""
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
    repeated = [encode_cloze(tokenizer, ", ".join([city] * 4) + ",", city) for city in cities]
    sets = {
        "forget": [encoded[city] for city in cities],
        "retain": [encoded[city] for city in others[: 2 * len(cities)]],
        "unseen": [landmarks[city] for city in cities],
        "repeated": repeated,
    }
    return Bench(Subject(model, tokenizer, sets), seed, folder=folder, **settings), cities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--work", type=Path, default=Path("outputs/words_elsewhere"))
    parser.add_argument("--output", default="benchmarks/results/words_elsewhere.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = yaml.safe_load((RECIPES / "configs" / "patch_size_facts_deep.yaml").read_text(encoding="utf-8"))
    names = ("steps", "batch_size", "beta", "retain_weight", "relearning_rates", "relearning_steps")
    settings = {name: config[name] for name in names}
    tokenizer, model = AutoTokenizer.from_pretrained(options.model), load_shared(options.model)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        bench, cities = bench_of(model, tokenizer, settings, seed, options.work)
        measured = [({"score": "reference model"}, bench.measure())]
        for label, density, rate in RUNS:
            score, gamma = (NO_MASK, None) if label == NO_MASK else spread(label)
            of = {"score": label, "density": density, "learning_rate": rate}
            measured.append((of, bench.run("npo", score, gamma, density, rate)))
            print(measured[-1], flush=True)
        rows += [{"seed": seed, "cities": cities} | of | found for of, found in measured]
        save_results({"environment": environment(), "settings": settings, "rows": rows}, options.output)
    for label in dict.fromkeys((row["score"], row.get("density")) for row in rows):
        same = [row for row in rows if (row["score"], row.get("density")) == label]
        means = {
            name: fmean(row[name] for row in same) for name in ("forget", "retain", "held_out", "forget_repeated")
        }
        print(label, means)


if __name__ == "__main__":
    main()

"""Results as `evaluate_tofu` returns them, made from random numbers."""

import numpy as np
import pytest

from wagle_trainer.evaluation import metrics

SIZES = {"forget": 12, "retain": 15, "real_authors": 9, "world_facts": 10}


def random_result(seed: int, forgotten: float = 0.0, kept: float = 0.9, number: int | None = None) -> dict:
    """An evaluation: `forgotten` lowers the numbers of the forget set, `kept` is about what the others are."""
    random = np.random.default_rng(seed)
    per_example = {}
    for name, size in SIZES.items():
        size = size if number is None else number
        level = 0.95 * (1 - forgotten) if name == "forget" else kept
        per_example[name] = {
            "question": [f"Which {name} question is number {row}?" for row in range(size)],
            "answer": [f"It is {row}." for row in range(size)],
            "generation": [f"Said by {seed}: {row}." for row in range(size)],
            "probability": np.clip(random.normal(level, 0.05, size), 0.01, 1).tolist(),
            "rouge_l_recall": np.clip(random.normal(level, 0.1, size), 0.01, 1).tolist(),
            "extraction_strength": np.clip(random.normal(level, 0.1, size), 0, 1).tolist(),
            "log_truth_ratio": random.normal(-1, 0.5, size).tolist(),
        }

    def mean(name, column):
        return float(np.mean(per_example[name][column]))

    def ratio(name, closer):
        # One wrong answer with the log-probability r and a correct one with 0 have the log truth ratio r.
        ratios = per_example[name]["log_truth_ratio"]
        aggregation = "closer_to_1_better" if closer else "true_better"
        return metrics.truth_ratio([0.0] * len(ratios), [[r] for r in ratios], aggregation=aggregation)

    found = {
        "forget_Q_A_Prob": mean("forget", "probability"),
        "forget_Q_A_ROUGE": mean("forget", "rouge_l_recall"),
        "forget_truth_ratio": ratio("forget", True),
        "extraction_strength": mean("forget", "extraction_strength"),
        "retain_Q_A_Prob": mean("retain", "probability"),
        "retain_Q_A_ROUGE": mean("retain", "rouge_l_recall"),
        "retain_Truth_Ratio": ratio("retain", False),
        "retain_extraction_strength": mean("retain", "extraction_strength"),
    }
    for prefix, name in (("ra", "real_authors"), ("wf", "world_facts")):
        found[f"{prefix}_Q_A_Prob_normalised"] = mean(name, "probability")
        found[f"{prefix}_Q_A_ROUGE"] = mean(name, "rouge_l_recall")
        found[f"{prefix}_Truth_Ratio"] = ratio(name, False)
    prefixes = ("retain_Q", "retain_T", "ra_", "wf_")
    found["model_utility"] = metrics.model_utility([v for k, v in found.items() if k.startswith(prefixes)])
    found["per_example"] = per_example
    found["settings"] = {"model": "random", "seed": seed % 10}
    return found


@pytest.fixture(scope="session")
def make_result():
    """make_result(seed, forgotten, kept, number) -> an evaluation; the last digit of the seed is its training seed."""
    return random_result


@pytest.fixture
def single_runs():
    """One run of each model."""
    return {
        "before": random_result(1),
        "after, wagle mask 0.05": random_result(11, 0.8, 0.85),
        "after, random mask 0.05": random_result(21, 0.8, 0.8),
        "after, no mask": random_result(31, 0.9, 0.6),
        "retrained without the forget set": random_result(41, 0.85),
    }


@pytest.fixture
def several_seeds():
    """Three seeds of each variant, and one model before unlearning that they share."""
    return {
        "before": random_result(1),
        "wagle 0.05": [random_result(10 + seed, 0.8, 0.85) for seed in range(3)],
        "random 0.05": [random_result(20 + seed, 0.8, 0.5) for seed in range(3)],
        "no mask": [random_result(30 + seed, 0.8, 0.85) for seed in range(3)],
    }


@pytest.fixture(scope="session")
def attacks():
    """As `run_attacks` gives them."""
    points = [{"x": x, "forget": 0.1 + 0.02 * x, "recovered": 0.025 * x} for x in (1, 5, 20)]
    prompts = [{"x": "prefix", "forget": 0.1, "recovered": 0.0}, {"x": "paraphrase", "forget": 0.3, "recovered": 0.25}]
    measured = {"before": 0.9, "settings": {"measure": "probability"}}
    return {
        "relearning": {
            "attack": "relearning",
            "unit": "optimizer steps",
            "baseline": 0.1,
            "points": points,
            "recovered": 0.5,
            **measured,
        },
        "prompts": {"attack": "prompts", "baseline": 0.1, "points": prompts, "recovered": 0.25, "settings": {}},
    }


@pytest.fixture(scope="session")
def history():
    """As `EvaluationCallback` writes it."""
    return [
        {"step": step, "metrics": {"forget_Q_A_Prob": 0.9 / (1 + step), "model_utility": 0.7 - 0.01 * step}}
        for step in range(0, 11, 2)
    ]


@pytest.fixture(scope="session")
def mask(make_llama):
    """A mask with a histogram of its scores, which took no data."""
    from wagle_trainer import attribute

    return attribute(make_llama(), None, None, score="magnitude", density=0.1, progress=False)

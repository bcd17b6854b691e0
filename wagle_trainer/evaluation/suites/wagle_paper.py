"""The WAGLE paper's two averages on TOFU: unlearning effectiveness (UE) and utility (UT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import ks_2samp

from wagle_trainer.evaluation import metrics

Columns = Mapping[str, Sequence[Any]]


def paper_averages(results: Mapping[str, Any]) -> dict[str, float]:
    """UE and UT in the manner of the WAGLE paper (Jia et al. 2024, arXiv 2410.17509), with the columns they average.

    Beware of the names. "FQ" here is NOT TOFU's forget quality, and does not compare with published values of that:
    TOFU's tests the unlearned against a retrained model, this one the forget against the retain set of one model.

    UE is the mean of four numbers in [0, 1], higher is better forgetting:

    - FQ: p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of the forget and of the retain
      set; truth ratio = mean probability of the perturbed answers / probability of the paraphrased one;
    - MIA: 1 minus the area under the ROC curve of membership inference; 1 where every forget row looks less familiar than
      all others. By Min-50% Prob over question and answer, forget rows against retain rows, as WAGLE's code does it, if
      the evaluation was run with `wagle_mia=True`; otherwise by the answers' losses, against real authors and world
      facts;
    - 1-FA: 1 minus the accuracy on the forget set;
    - 1-ROUGE: 1 minus the ROUGE-L recall on the forget set.

    UT is the mean of six: accuracy and ROUGE-L recall on the retain set, real authors and world facts.

    What is certain and what is not. That UE and UT are averages over all their columns is what the caption of the
    paper's Table 1 says; the columns are taken from a published summary of that table. How each column is computed is
    taken from the authors' code for SOUL (arXiv 2404.18239), which evaluates TOFU with the same columns; neither the
    paper's text nor its own code was at hand. Differences to SOUL's code:

    - accuracy on forget and retain set: there an answer is right if a sentence encoder (MiniLM) finds it closer to the
      paraphrased answer than to every perturbed one; here, without a second model, if the paraphrased answer is
      likelier than every perturbed one. On real authors and world facts it is as there: the answer occurs in the
      generated text, whatever the case;
    - paraphrased and perturbed answers follow the question itself here, its paraphrase there.

    So compare these averages between runs of this package, not with the paper's table.

    Args:
        results: what `evaluate_tofu` returned.

    Returns:
        UE, UT, and the columns: FQ, MIA, 1-FA, 1-ROUGE, retain_acc, retain_ROUGE, real_authors_acc,
        real_authors_ROUGE, world_facts_acc, world_facts_ROUGE.

    Raises:
        ValueError: `results` has no per-example values of a TOFU evaluation.
    """
    try:
        sets = results["per_example"]
        forget, retain, authors, facts = (sets[name] for name in ("forget", "retain", "real_authors", "world_facts"))
        effectiveness = {
            "FQ": float(ks_2samp(_truth_ratios(forget), _truth_ratios(retain)).pvalue),
            "MIA": 1 - _membership_auc(forget, retain, [*_losses(authors), *_losses(facts)]),
            "1-FA": 1 - _likelihood_accuracy(forget),
            "1-ROUGE": 1 - fmean(forget["rouge_l_recall"]),
        }
        utility = {
            "retain_acc": _likelihood_accuracy(retain),
            "retain_ROUGE": fmean(retain["rouge_l_recall"]),
            "real_authors_acc": _containment_accuracy(authors),
            "real_authors_ROUGE": fmean(authors["rouge_l_recall"]),
            "world_facts_acc": _containment_accuracy(facts),
            "world_facts_ROUGE": fmean(facts["rouge_l_recall"]),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"paper_averages takes what evaluate_tofu returned, with its per-example values ({error!r})."
        ) from error
    return {
        "UE": fmean([*effectiveness.values()]),
        "UT": fmean([*utility.values()]),
        **effectiveness,
        **utility,
    }


def _truth_ratios(values: Columns) -> NDArray[np.float64]:
    """Logarithms, which the test's ranks are the same for: unlearned answers have probabilities below 1e-300."""
    wrong = [logsumexp(row) - np.log(len(row)) for row in values["perturbed_log_probs"]]
    return np.array(wrong) - np.array(values["truth_log_prob"])


def _membership_auc(forget: Columns, retain: Columns, other_losses: Sequence[float]) -> float:
    if "question_answer_min_50" in forget:
        return metrics.roc_auc(forget["question_answer_min_50"], retain["question_answer_min_50"])
    return metrics.roc_auc(_losses(forget), other_losses)


def _losses(values: Columns) -> list[float]:
    return [-log_prob for log_prob in values["answer_log_prob"]]


def _likelihood_accuracy(values: Columns) -> float:
    rows = zip(values["truth_log_prob"], values["perturbed_log_probs"], strict=True)
    return fmean([truth > max(wrong) for truth, wrong in rows])


def _containment_accuracy(values: Columns) -> float:
    rows = zip(values["answer"], values["generation"], strict=True)
    return fmean([answer.lower() in generation.lower() for answer, generation in rows])

"""Unlearning depth against brute force: patched forward passes written out for one example and one layer at a time."""

import copy

import numpy as np
import pytest
import torch

from wagle_trainer.data import QAFormat, fictional_split, fictional_tokenizer
from wagle_trainer.evaluation import evaluate_unlearning_depth, load_metric
from wagle_trainer.evaluation.metrics.unlearning_depth import unlearning_depth, unlearning_depth_of
from wagle_trainer.evaluation.suites import get_suite


@pytest.fixture(scope="module")
def tokenizer():
    return fictional_tokenizer()


@pytest.fixture(scope="module")
def models(make_llama, tokenizer):
    """Reference, retrained and unlearned: the reference model, noise in all layers, noise in the last layer alone."""
    reference = make_llama(0, vocab_size=len(tokenizer), num_hidden_layers=3).eval()
    retrained, unlearned = copy.deepcopy(reference), copy.deepcopy(reference)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in retrained.model.layers:
            for weight in layer.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
        for weight in unlearned.model.layers[2].parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return reference, retrained, unlearned


@pytest.fixture(scope="module")
def rows():
    return [dict(row) for row in fictional_split("forget10").select(range(5))]


def brute_force(reference, source, ids, positions, layer):
    """Mean log-probability of the tokens behind `positions`: the layers are run by hand, one by one."""
    tokens = torch.tensor([ids])
    states = {}
    for name, model in (("source", source), ("reference", reference)):
        kept = model(tokens, output_hidden_states=True).hidden_states
        states[name] = kept[layer + 1] if layer + 1 < len(model.model.layers) else before_the_norm(model, tokens)
    hidden = states["reference"].clone()
    hidden[0, positions] = states["source"][0, positions]
    rotary = reference.model.rotary_emb(hidden, torch.arange(len(ids))[None])
    causal = torch.full((1, 1, len(ids), len(ids)), float("-inf")).triu(1)
    for following in reference.model.layers[layer + 1 :]:
        hidden = following(hidden, attention_mask=causal, position_embeddings=rotary)
    log_probs = reference.lm_head(reference.model.norm(hidden))[0].log_softmax(-1)
    return np.mean([log_probs[p, ids[p + 1]].item() for p in positions])


def before_the_norm(model, tokens):
    kept = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    model(tokens)
    handle.remove()
    return kept[0]


@torch.no_grad()
def test_against_brute_force(models, tokenizer, rows):
    reference, retrained, unlearned = models
    found = evaluate_unlearning_depth(
        unlearned, tokenizer, rows, reference_model=reference, retrained_model=retrained, batch_size=3, progress=False
    )
    qa = QAFormat.for_tokenizer(tokenizer)
    depths = []
    for place, index in enumerate(found["per_example"]["forget"]["row"]):
        encoded = qa.encode(rows[index]["question"], rows[index]["answer"])
        ids = encoded["input_ids"]
        positions = [p for p in range(len(ids) - 1) if encoded["labels"][p + 1] not in (-100, tokenizer.eos_token_id)]
        log_probs = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
        intact = np.mean([log_probs[p, ids[p + 1]].item() for p in positions])
        gaps = {
            name: [intact - brute_force(reference, source, ids, positions, layer) for layer in range(3)]
            for name, source in (("unlearned_gaps", unlearned), ("gaps", retrained))
        }
        for name, expected in gaps.items():
            assert found["per_example"]["forget"][name][place] == pytest.approx(expected, abs=2e-5)
        counted = [layer for layer in range(3) if gaps["gaps"][layer] > 0.05]
        shares = [min(max(gaps["unlearned_gaps"][layer] / gaps["gaps"][layer], 0), 1) for layer in counted]
        weights = [gaps["gaps"][layer] for layer in counted]
        depths.append(np.average(shares, weights=weights))
    assert depths
    assert found["unlearning_depth"] == pytest.approx(np.mean(depths), abs=1e-3)
    assert len(depths) + found["settings"]["examples_without_a_gap"] == len(rows)


def test_ends_of_the_range(models, tokenizer, rows):
    reference, retrained, unlearned = models
    others = {"reference_model": reference, "retrained_model": retrained}
    intact = evaluate_unlearning_depth(reference, tokenizer, rows, **others, progress=False)
    erased = evaluate_unlearning_depth(retrained, tokenizer, rows, **others, progress=False)
    assert intact["unlearning_depth"] == pytest.approx(0, abs=1e-6)
    assert erased["unlearning_depth"] == 1
    only_the_last = evaluate_unlearning_depth(unlearned, tokenizer, rows, **others, progress=False)
    for gaps in only_the_last["per_example"]["forget"]["unlearned_gaps"]:
        assert gaps[:2] == pytest.approx([0, 0], abs=1e-5), "the first two layers are the reference model's"
    with pytest.raises(ValueError, match="No answer falls by more than 0.05 nats"):
        evaluate_unlearning_depth(
            retrained, tokenizer, rows, reference_model=reference, retrained_model=reference, progress=False
        )


def test_batches_and_spans(models, tokenizer, rows):
    reference, retrained, unlearned = models
    others = {"reference_model": reference, "retrained_model": retrained, "threshold": -100.0, "progress": False}
    alone, together = (
        evaluate_unlearning_depth(unlearned, tokenizer, rows, **others, batch_size=size)["per_example"]["forget"]
        for size in (1, 5)
    )
    assert np.allclose(alone["gaps"], together["gaps"], atol=1e-5)
    words = rows[0]["answer"].split()
    spans = [{**rows[0], "span": " ".join(words)}, {**rows[0], "span": words[-1]}]
    whole, last = evaluate_unlearning_depth(unlearned, tokenizer, spans, **others)["per_example"]["forget"]["gaps"]
    assert whole == pytest.approx(together["gaps"][0], abs=1e-5)
    assert last != pytest.approx(whole, abs=1e-3)
    with pytest.raises(ValueError, match="Row 0 of the forget set: its answer does not contain the span 'Atlantis'"):
        evaluate_unlearning_depth(unlearned, tokenizer, [{**rows[0], "span": "Atlantis"}], **others)


def test_as_a_suite(models, tokenizer, tmp_path):
    reference, retrained, unlearned = models
    for name, model in (("reference", reference), ("retrained", retrained)):
        model.save_pretrained(tmp_path / name)
    suite = get_suite("unlearning_depth")
    paths = {f"{name}_model": str(tmp_path / name) for name in ("reference", "retrained")}
    data = suite.load("fictional", **paths, limit=4)
    found = suite.evaluate(unlearned, tokenizer, data, progress=False)
    by_hand = evaluate_unlearning_depth(
        unlearned, tokenizer, data["forget"], reference_model=reference, retrained_model=retrained, progress=False
    )
    assert found["unlearning_depth"] == pytest.approx(by_hand["unlearning_depth"], abs=1e-6)
    assert 0 <= found["unlearning_depth"] <= 1
    columns = found["per_example"]["forget"]
    loaded = load_metric("unlearning_depth").compute(predictions=columns["unlearned_gaps"], references=columns["gaps"])
    assert loaded["unlearning_depth"] == pytest.approx(found["unlearning_depth"])


def test_the_models_must_be_named():
    with pytest.raises(ValueError, match="needs two more models: reference_model"):
        get_suite("unlearning_depth").load("fictional")


def test_models_of_other_depth_are_refused(models, tokenizer, rows, make_llama):
    other = make_llama(0, vocab_size=len(tokenizer), num_hidden_layers=2)
    with pytest.raises(
        ValueError, match="same layers, but have {'model': 3, 'reference_model': 3, 'retrained_model': 2}"
    ):
        evaluate_unlearning_depth(models[0], tokenizer, rows, reference_model=models[0], retrained_model=other)


def test_the_formula():
    assert unlearning_depth_of([0.5, 2.0, -1.0], [1.0, 1.0, 2.0]) == pytest.approx((0.5 + 1 + 0) / 4)
    assert unlearning_depth_of([0.5, 9.0], [1.0, 0.05]) == 0.5, "the second layer shows no gap"
    assert unlearning_depth_of([1.0], [0.01]) is None
    assert unlearning_depth([[0.5], [1.0], [1.0]], [[1.0], [1.0], [0.0]]) == 0.75
    with pytest.raises(ValueError, match="No example has a layer"):
        unlearning_depth([[1.0]], [[0.0]])
    with pytest.raises(ValueError, match="a number for each layer"):
        unlearning_depth_of([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="same examples"):
        unlearning_depth([], [])
    with pytest.raises(ValueError, match="not finite"):
        unlearning_depth_of([float("nan")], [1.0])

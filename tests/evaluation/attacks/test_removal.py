import copy
from itertools import pairwise

import pytest
import torch

from wagle_trainer.evaluation.attacks import run_attacks


def remove(before, after, tokenizer, rows, measure=None, **options):
    return run_attacks(
        before, after, tokenizer, rows, ["removal"], options={"removal": options}, measure=measure, progress=False
    )["removal"]


def test_all_comes_back_exactly(before, after, tokenizer, rows):
    weights = [weight.detach().clone().view(torch.int32) for weight in after.parameters()]
    result = remove(before, after, tokenizer, rows, shares=[1.0, 0.5])
    assert [point["x"] for point in result["points"]] == [0.5, 1.0]
    assert result["points"][1]["recovered_raw"] == 1.0  # exactly: it is the reference model, bitwise identical
    assert result["points"][1]["recovered_by_measure"] == {"probability": 1.0, "rouge_l_recall": 1.0}
    assert result["points"][1]["forget"] == result["before"]
    assert 0 < result["points"][0]["recovered"] < 1
    assert all(
        torch.equal(weight.view(torch.int32), old) for weight, old in zip(after.parameters(), weights, strict=True)
    )


def test_the_stated_share_of_the_changed_weights_is_put_back(before, after, tokenizer, rows):
    changed = {name: before.get_parameter(name) != weight for name, weight in after.named_parameters()}
    assert sum(int(part.sum()) for part in changed.values()) <= 0.1 * sum(p.numel() for p in after.parameters())
    back = []

    def measure(model, tokenizer, rows):
        if model is before:
            return 1.0
        back.append({n: (w == before.get_parameter(n)) & changed[n] for n, w in model.named_parameters()})
        kept = [w[~changed[n]].equal(before.get_parameter(n)[~changed[n]]) for n, w in model.named_parameters()]
        assert all(kept)
        return 0.5

    remove(before, after, tokenizer, rows, measure, shares=[0.25, 0.5, 1.0])
    assert not any(bool(part.any()) for part in back[0].values())
    for share, values in zip([0.25, 0.5, 1.0], back[1:], strict=True):
        for name, part in values.items():
            assert abs(int(part.sum()) - share * int(changed[name].sum())) <= 0.5
    for smaller, larger in pairwise(back):
        assert all(bool((~smaller[name] | larger[name]).all()) for name in smaller), "a position was taken away again"


def test_models_that_do_not_belong_together(before, after, make_llama, tokenizer, rows):
    def check(one, other, message):
        with pytest.raises(ValueError, match=message):
            remove(one, other, tokenizer, rows, lambda model, *_: 1.0 if model is one else 0.0)

    check(before, copy.deepcopy(before), "the same weights: there is no change")
    check(before, copy.deepcopy(after).bfloat16(), "float32 .* in the reference model and torch.bfloat16")
    check(before, make_llama(num_hidden_layers=1), "only one of them has")


@pytest.mark.parametrize("shares", [[], [0.0], [1.5]])
def test_shares_out_of_range(before, after, tokenizer, rows, shares):
    with pytest.raises(ValueError, match="shares must be in"):
        remove(before, after, tokenizer, rows, lambda model, *_: 1.0 if model is before else 0.0, shares=shares)

"""Weights that the objective cannot reach are counted and named in the first step."""

import re
import warnings

import pytest
import torch

from wagle_trainer import WagleTrainer, WeightMask
from wagle_trainer.attribution.unreached_weights import UnreachedWeights, patterns_for


def everything(model, fewer=()):
    return WeightMask.from_dict(
        {n: torch.ones(p.shape, dtype=torch.bool) for n, p in model.named_parameters() if n not in fewer}
    )


def test_tensors_without_gradient(make_llama):
    model = make_llama(tie_word_embeddings=False)
    names = [name for name, _ in model.named_parameters()]
    watch = UnreachedWeights(model, everything(model, fewer=["model.norm.weight"]))
    assert watch.names == []  # before the first gradient nothing is known
    hidden = model.model(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states[1]
    hidden.square().sum().backward()
    unreached = [name for name in names if "layers.1." in name or name == "lm_head.weight"]
    assert watch.names == unreached
    sizes = {name: p.numel() for name, p in model.named_parameters() if name != "model.norm.weight"}
    assert watch.share == pytest.approx(sum(sizes[name] for name in unreached) / sum(sizes.values()))
    with pytest.warns(
        UserWarning, match=r"of the selected weights lie in 10 tensors that no gradient reached"
    ) as caught:
        watch.warn()
    assert r"attribution_exclude=['layers\\.(1)\\.', '^lm_head\\.weight$']" in str(caught[0].message)
    watch.detach()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_patterns():
    known = [f"model.layers.{i}.{part}.weight" for i in range(12) for part in ("a", "b")] + [
        "model.norm.weight",
        "head",
    ]
    for names in (known[2:6], known[2:3], known[-2:], known[2:4] + known[-1:]):
        patterns = patterns_for(names, known)
        assert [name for name in known if any(re.search(pattern, name) for pattern in patterns)] == names


@pytest.mark.parametrize("loss_type", ["rmu", "npo"])
def test_a_run_says_so(loss_type, make_llama, make_set, word_tokenizer, arguments):
    """RMU steers layer 0 of two, and its retain term does so, too: nothing above gets a gradient."""
    kwargs = {"layer": 0} if loss_type == "rmu" else {}
    trainer = WagleTrainer(
        make_llama(tie_word_embeddings=False),
        arguments(loss_type=loss_type, loss_kwargs=kwargs, attribution="random", max_steps=2),
        forget_dataset=make_set(6),
        retain_dataset=make_set(6, seed=1),
        processing_class=word_tokenizer,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    found = [str(warning.message) for warning in caught if "no gradient reached" in str(warning.message)]
    assert len(found) == (loss_type == "rmu")  # once, not in every step
    if found:
        selected = {n: trainer.mask.num_selected_in(n) for n in trainer.mask}
        above = sum(
            number
            for name, number in selected.items()
            if re.search(r"layers\.1|norm\.weight$|head", name) and "layers.0" not in name
        )
        assert found[0].startswith(f"{above / trainer.mask.num_selected:.1%} of the selected weights")

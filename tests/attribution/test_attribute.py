"""`attribute` against oracles written here: autograd on single examples, a stable sort, and the official code's rule."""

import math
import random
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wagle_trainer import attribute
from wagle_trainer.attribution import get_score, list_scores, register_score

MODELS = ["llama", "llama tied", "gpt2"]
GAMMA = 0.05  # with tiny random models, both terms of the score count


@pytest.fixture
def build(make_llama, make_gpt2):
    def make(name="llama", **config):
        if name == "gpt2":
            return make_gpt2(**config)
        return make_llama(tie_word_embeddings=name == "llama tied", **config)

    return make


@pytest.fixture
def sets(make_examples):
    return make_examples(9, seed=1), make_examples(7, seed=2)


@pytest.fixture
def batches(sets, pad_batches):
    return pad_batches(sets[0], 4), pad_batches(sets[1], 4)


def scored(model, forget, retain, **arguments):
    return attribute(model, forget, retain, progress=False, **({"gamma": GAMMA, "density": 0.3} | arguments))


def sum_of_gradients(model, losses):
    """Gradients of the sum of the losses, by name; a tied weight once, as in `named_parameters()`."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for loss in losses:
        for name, grad in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total[name] += grad
    return total


def agreement(mask, other):
    assert list(mask) == list(other)
    same = sum(int((mask[name] == other[name]).sum()) for name in mask)
    return same / sum(mask[name].numel() for name in mask)


def assert_agree(mask, other, density):
    assert mask.num_selected == math.floor(density * mask.num_weights)
    assert agreement(mask, other) >= 0.9999


class Bigram(nn.Module):
    """The smallest causal language model: the next token's logits depend on the current token alone."""

    def __init__(self, vocabulary=7):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(vocabulary, vocabulary)
        self.head = nn.Linear(vocabulary, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.head(self.table(input_ids)))


# What is selected


@pytest.mark.parametrize("density", [0.1, 0.8])
@pytest.mark.parametrize("architecture", MODELS)
def test_equals_the_formula_on_gradients_of_example_means(
    build, sets, pad_batches, log_probs_by_hand, architecture, density, top
):
    model = build(architecture).eval()
    forget, retain = (
        sum_of_gradients(model, [-log_probs_by_hand(model, *one).mean() / len(examples) for one in examples])
        for examples in sets
    )
    expected = top(
        {n: ((p.detach() - retain[n] / GAMMA) * forget[n]).abs() for n, p in model.named_parameters()}, density
    )
    for size, side in ((4, "right"), (5, "left")):
        mask = scored(model, *(pad_batches(examples, size, side) for examples in sets), density=density)
        assert_agree(mask, expected, density)


@pytest.mark.parametrize("density", [0.1, 0.8])
@pytest.mark.parametrize("architecture", MODELS)
def test_equals_the_official_rule_on_batches_of_one(build, sets, pad_batches, architecture, density, top):
    """The official code sums the gradients of batch-mean losses and divides the retain sum by mu."""
    model = build(architecture).eval()
    singles = [pad_batches(examples, 1) for examples in sets]
    assert len(singles[0]) != len(singles[1])
    losses = [
        [
            nn.functional.cross_entropy(
                model(input_ids=b["input_ids"]).logits[:, :-1].flatten(0, 1), b["labels"][:, 1:].flatten()
            )
            for b in batches
        ]
        for batches in singles
    ]
    forget, retain = (sum_of_gradients(model, of_set) for of_set in losses)
    mu = 0.4
    official = {n: ((p.detach() - retain[n] / mu) * forget[n]).abs() for n, p in model.named_parameters()}
    mask = scored(model, *singles, gamma=mu / len(singles[1]), density=density)
    assert_agree(mask, top(official, density), density)


def test_tied_embeddings_are_scored_once(build, batches):
    tied = scored(build("llama tied"), *batches)
    assert "lm_head.weight" not in tied
    assert tied.num_weights == scored(build("llama"), *batches).num_weights - 57 * 32


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_batch_size_padding_and_order_do_not_matter(build, sets, pad_batches, architecture, size, side):
    model = build(architecture)
    expected = scored(model, *(pad_batches(examples, 4) for examples in sets))
    shuffled = [random.Random(size).sample(examples, len(examples)) for examples in sets]
    assert_agree(scored(model, *(pad_batches(examples, size, side) for examples in shuffled)), expected, 0.3)


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_a_rerun_gives_the_identical_mask(build, batches, scope):
    first, second = (scored(build("gpt2").train(), *batches, scope=scope) for _ in range(2))
    assert first.digest == second.digest


def test_other_data_give_another_mask(build, batches):
    model = build()
    assert agreement(scored(model, *batches), scored(model, *batches[::-1])) < 0.99


def test_scopes(build, batches):
    model = build()
    masks = {scope: scored(model, *batches, scope=scope) for scope in ("global", "tensor", "row")}
    for name, parameter in model.named_parameters():
        assert masks["tensor"][name].sum() == math.floor(0.3 * parameter.numel())
        rows = masks["row"][name].view(len(parameter), -1) if parameter.dim() > 1 else masks["row"][name][None]
        assert set(rows.sum(1).tolist()) == {math.floor(0.3 * rows.shape[1])}
    assert masks["global"].num_selected == math.floor(0.3 * masks["global"].num_weights)
    assert masks["global"]["lm_head.weight"].sum() != masks["tensor"]["lm_head.weight"].sum()


def test_bfloat16_masks_resemble_float32_masks(build, batches):
    exact = scored(build(), *batches)
    rough = scored(build().bfloat16(), *batches)
    assert rough.num_selected == exact.num_selected
    assert exact.overlap(rough) > 0.9


def test_limits_of_gamma(build, batches):
    model = build()

    def product(forget_grad, retain_grad):
        return (forget_grad * retain_grad).abs()

    assert agreement(scored(model, *batches, gamma=1e12), scored(model, *batches, score="snip")) > 0.9999
    assert agreement(scored(model, *batches, gamma=1e-12), scored(model, *batches, score=product)) > 0.9999
    assert agreement(scored(model, *batches, gamma=1e12), scored(model, *batches, gamma=1e-12)) < 0.95


def test_scores_that_need_no_retain_set(build, batches):
    """Nor, some of them, a forget set; with one or without, they select the same."""
    model = build()
    for score in ("snip", "gradient", "magnitude", "random"):
        assert scored(model, batches[0], None, score=score) == scored(model, *batches, score=score)
    for score in ("magnitude", "random"):
        assert scored(model, None, None, score=score) == scored(model, *batches, score=score)


def test_random_is_seeded_and_blind(build, batches):
    def draw(model, seed, batches=(None, None)):
        return scored(model, *batches, score="random", seed=seed, density=0.25)

    first = draw(build(seed=0), 1)
    assert draw(build(seed=5), 1, batches) == first  # other weights, other data
    other = draw(build(seed=0), 2)
    assert other != first
    assert first.info.seed == 1
    assert first.overlap(other) == pytest.approx(0.25**2 / (2 * 0.25 - 0.25**2), abs=0.02)  # as independent sets do
    mlps = [first[f"model.layers.{layer}.mlp.{name}_proj.weight"] for layer in (0, 1) for name in ("up", "gate")]
    for i, one in enumerate(mlps):  # each tensor has its own draw
        for another in mlps[:i]:
            assert (one & another).float().mean() == pytest.approx(0.25**2, abs=0.02)
    for name in first:
        assert first[name].float().mean() == pytest.approx(0.25, abs=0.2), name


def test_include_and_exclude(build, batches):
    model = build()
    mask = scored(model, *batches, include=["q_proj", r"layers\.1\."], exclude=["norm", "mlp"])
    names = [name for name, _ in model.named_parameters()]
    assert list(mask) == [
        n for n in names if ("q_proj" in n or "layers.1." in n) and "norm" not in n and "mlp" not in n
    ]
    assert mask.num_selected == math.floor(0.3 * mask.num_weights)
    assert list(scored(model, *batches, include="q_proj")) == [n for n in names if "q_proj" in n]  # not one per letter


def test_frozen_parameters_are_not_scored(build, batches):
    model = build()
    model.model.embed_tokens.requires_grad_(False)
    mask = scored(model, *batches)
    assert "model.embed_tokens.weight" not in mask
    assert len(mask) == len(list(model.parameters())) - 1


def test_one_pass_iterables(build, batches):
    expected = scored(build(), *batches)
    assert scored(build(), *((batch for batch in of_set) for of_set in batches)) == expected


def test_provenance(build, batches):
    model = build()
    model.config._name_or_path = "some/model"
    info = scored(model, *batches).info
    assert (info.score, info.gamma, info.requested_density, info.scope) == ("wagle", GAMMA, 0.3, "global")
    assert (info.base_model, info.forget_examples, info.retain_examples, info.seed) == ("some/model", 9, 7, None)


def test_examples_without_label_are_skipped(build, sets, pad_batches):
    model = build()
    expected = scored(model, *(pad_batches(examples, 4) for examples in sets))
    forget = [sets[0][0], ([5, 6], [-100, -100]), *sets[0][1:]]
    with pytest.warns(UserWarning, match="1 of 10 examples of the forget set have no target token"):
        mask = scored(model, pad_batches(forget, 4), pad_batches(sets[1], 4))
    assert mask.info.forget_examples == 9
    assert_agree(mask, expected, 0.3)


# How much of it would have moved


def test_effective_density(make_llama, sets, batches, log_probs_by_hand):
    model = make_llama(vocab_size=200).eval()
    grads = [sum_of_gradients(model, [-log_probs_by_hand(model, *e).mean() for e in examples]) for examples in sets]
    mask = scored(model, *batches, density=0.4)
    moving = {name: (grads[0][name] != 0) | (grads[1][name] != 0) for name in mask}
    both = sum(int((moving[name] & mask[name]).sum()) for name in mask)
    expected = both / sum(int(tensor.sum()) for tensor in moving.values())
    assert mask.info.effective_density == pytest.approx(expected, abs=1e-4)
    assert abs(expected - 0.4) > 0.02  # embedding rows without gradient make the difference
    assert scored(model, None, None, score="random").info.effective_density is None


def test_warns_when_only_tokens_that_never_occur_are_frozen(make_llama, sets, pad_batches):
    """2000 tokens of which 57 occur: nearly all weights are embedding rows without a gradient."""
    model = make_llama(vocab_size=2000, tie_word_embeddings=False)
    batches = [pad_batches(examples, 4) for examples in sets]
    frozen_rows = 1940 * 32 / sum(p.numel() for p in model.parameters())
    with pytest.warns(UserWarning, match="freezes .* embedding rows of tokens that do not occur") as caught:
        mask = scored(model, *batches, density=1 - 0.9 * frozen_rows)
    assert mask.info.effective_density > 0.99
    assert 'exclude=["embed_tokens"]' in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored(model, *batches, density=1 - 0.9 * frozen_rows, exclude=["embed_tokens"])
        scored(model, *batches, density=1.0)  # nothing is frozen, so nothing is pretended


# The model is left as found


def state_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [id(parameter.grad) for parameter in model.parameters()],
        "grad values": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
        "random state": torch.get_rng_state(),
        "hooks": [len(parameter._post_accumulate_grad_hooks or ()) for parameter in model.parameters()],
    }


def assert_same_state(found, expected):
    for key, values in expected.items():
        for value, other in zip(found[key], values, strict=True):
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def used_model(build, batches, request):
    """In the middle of something: gradients on some parameters, mixed modes, one parameter frozen."""
    model = build("gpt2").to(request.param).train()
    model(input_ids=batches[0][0]["input_ids"]).logits.sum().backward()
    model.transformer.h[0].eval()
    model.transformer.wpe.requires_grad_(False)
    model.transformer.h[1].ln_1.weight.grad = None
    torch.manual_seed(77)
    return model


@pytest.mark.parametrize("include", [None, ["mlp"]])
@pytest.mark.parametrize("score", ["wagle", "random"])
def test_leaves_the_model_as_found(used_model, batches, score, include):
    before = state_of(used_model)
    with torch.no_grad():
        mask = scored(used_model, *batches, score=score, include=include)
        assert not torch.is_grad_enabled()
    assert_same_state(state_of(used_model), before)
    assert mask.num_selected > 0


def test_old_gradients_do_not_count(used_model, batches):
    with_grads = scored(used_model, *batches)
    used_model.zero_grad()
    assert scored(used_model, *batches) == with_grads


class BrokenDiskError(OSError):
    pass


def test_leaves_the_model_as_found_after_an_error(used_model, batches):
    def breaks():
        yield batches[0][0]
        raise BrokenDiskError

    before = state_of(used_model)
    with pytest.raises(BrokenDiskError):
        scored(used_model, breaks(), batches[1])
    assert_same_state(state_of(used_model), before)

    def refuses(weight, forget_grad):
        torch.rand(1)
        raise BrokenDiskError

    with pytest.raises(BrokenDiskError):
        scored(used_model, *batches, score=refuses)
    assert_same_state(state_of(used_model), before)


# Scores of one's own


def test_a_score_of_ones_own(build, batches):
    @register_score("test: gradient times a constant")
    def scaled(forget_grad, factor=3.0):
        return factor * forget_grad.abs()

    assert get_score("test: gradient times a constant") is scaled
    assert "test: gradient times a constant" in list_scores()
    model = build()
    expected = scored(model, *batches, score="gradient")
    by_name = scored(model, *batches, score="test: gradient times a constant")
    assert by_name == expected
    assert scored(model, batches[0], None, score=lambda forget_grad: 3 * forget_grad.abs()) == expected
    assert by_name.info.score == "test: gradient times a constant"
    assert scored(model, *batches, score=scaled).info.score == "scaled"


def test_a_score_that_is_minus_zero_somewhere(build, batches):
    model = build()
    mask = scored(model, None, None, score=lambda weight: torch.where(weight > 0, weight, -0.0))
    positive = sum(int((p > 0).sum()) for p in model.parameters())
    assert positive > mask.num_selected
    assert all(bool((p.detach()[mask[n]] > 0).all()) for n, p in model.named_parameters())


def test_unknown_argument_of_a_score():
    with pytest.raises(
        TypeError, match=r"'hessian'; a score can take weight, name, forget_grad, retain_grad, .*gamma, generator"
    ):

        @register_score("test: needs too much")
        def needs_too_much(weight, hessian):
            return weight

    assert "test: needs too much" not in list_scores()
    with pytest.raises(TypeError, match="'hessian'"):
        attribute(Bigram(), None, None, score=lambda hessian: hessian)


# What is refused


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, math.nan, math.inf])
def test_density_out_of_range(density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        attribute(Bigram(), None, None, score="magnitude", density=density)


@pytest.mark.parametrize("gamma", [0, -1e-6, math.nan, math.inf])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match="gamma must be a positive, finite number"):
        attribute(Bigram(), None, None, gamma=gamma)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"Unknown attribution score 'wagel'. Did you mean 'wagle'\?"):
        attribute(Bigram(), None, None, score="wagel")
    with pytest.raises(ValueError, match="Unknown attribution scope 'layer'. Known: global, tensor, row"):
        attribute(Bigram(), None, None, scope="layer")


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_patterns(key):
    with pytest.raises(ValueError, match=r"'lora' matches no trainable parameter. Names look like 'table.weight'"):
        attribute(Bigram(), None, None, score="magnitude", **{key: ["table", "lora"]})
    with pytest.raises(ValueError, match=r"'\(head' is not a regular expression"):
        attribute(Bigram(), None, None, score="magnitude", **{key: ["(head"]})


def test_nothing_left_to_score():
    with pytest.raises(ValueError, match="together leave no parameter"):
        attribute(Bigram(), None, None, score="magnitude", include=["table"], exclude=["table"])
    with pytest.raises(ValueError, match="no trainable parameter"):
        attribute(Bigram().requires_grad_(False), None, None, score="magnitude")


def test_a_density_that_selects_nothing():
    with pytest.raises(ValueError, match=r"selects none of the 105 weights \(global scope\)"):
        attribute(Bigram(), None, None, score="magnitude", density=0.009)
    assert attribute(Bigram(), None, None, score="magnitude", density=0.0096).num_selected == 1


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_and_empty_sets(build, batches, missing):
    name = ("forget", "retain")[missing]
    given = list(batches)
    given[missing] = None
    with pytest.raises(ValueError, match=f"'wagle' needs the {name} gradient: pass {name}_batches"):
        scored(build(), *given)
    given[missing] = []
    with pytest.raises(ValueError, match=f"The {name} set has no example with a target token"):
        scored(build(), *given)


@pytest.mark.parametrize("include", [None, ["q_proj"]])
def test_weight_that_is_not_a_number(build, batches, include):
    """Also where the weight is not among the scored ones."""
    model = build()
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"batch 0 of the forget set.*layers\.0\.self_attn\.k_proj\.weight"):
        scored(model, *batches, include=include)


def test_infinite_weight_that_no_batch_meets(build, batches):
    model = build()
    with torch.no_grad():
        model.model.embed_tokens.weight[2, 3] = math.inf  # the unknown token, which no example has
    with pytest.raises(FloatingPointError, match=r"'model\.embed_tokens\.weight': the weight is not finite"):
        scored(model, *batches)


class InfiniteGradient(torch.autograd.Function):
    """Passes its input on; the gradient of each row that holds the bad token is infinite."""

    @staticmethod
    def forward(ctx, hidden, input_ids):
        ctx.save_for_backward(input_ids)
        return hidden.clone()

    @staticmethod
    def backward(ctx, grad):
        (input_ids,) = ctx.saved_tensors
        return torch.where((input_ids == 6).any(1)[:, None, None], math.inf, grad), None


class Overflowing(Bigram):
    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.head(InfiniteGradient.apply(self.table(input_ids), input_ids)))


def test_infinite_gradient_with_finite_loss(pad_batches):
    fine, bad = ([1, 2, 3], [-100, 2, 3]), ([1, 6, 3], [-100, 6, 3])
    good_set, bad_set = pad_batches([fine] * 4, 2), pad_batches([fine] * 4 + [fine, bad, fine], 2)
    message = "Attribution of 'table.weight': the {} gradient is not finite from batch 2 of the {} set on"
    for name, given in (("forget", (bad_set, good_set)), ("retain", (good_set, bad_set))):
        with pytest.raises(FloatingPointError, match=re.escape(message.format(name, name))):
            scored(Overflowing(), *given)
    with pytest.raises(FloatingPointError, match="'table.weight': the retain gradient is not finite"):
        scored(Overflowing(), good_set, iter(bad_set))  # cannot be searched a second time, still named


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda weight: weight.abs() / 0, FloatingPointError, "'table.weight': what the score reads is finite, but"),
        (lambda weight: weight - 100, ValueError, "The score of 'table.weight' has negative values"),
        (
            lambda weight: weight.abs().sum(),
            ValueError,
            r"The score of 'table.weight' has shape \(\), the weight \(7, 7",
        ),
    ],
    ids=["infinite", "negative", "shape"],
)
def test_scores_that_are_none(score, error, message):
    with pytest.raises(error, match=message):
        attribute(Bigram(), None, None, score=score)

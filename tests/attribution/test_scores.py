"""Every score against its formula on gradients, squares and activations of single unpadded examples."""

import math
import re

import pytest
import torch
from torch import nn

from wagle_trainer import attribute
from wagle_trainer.attribution import get_score, list_scores
from wagle_trainer.attribution.score_inputs import NotFiniteError, score_tensor
from wagle_trainer.attribution.scores import arguments_of, with_options
from wagle_trainer.attribution.selection import SCOPES
from wagle_trainer.models.architecture import NO_MATRIX

DENSITY = 0.3
HEAD = "lm_head.weight"


GAMMA = 0.05  # with tiny random models, both terms of WAGLE's score count
SCORES = [name for name in list_scores() if get_score(name).__module__.startswith("wagle_trainer.")]


@pytest.fixture(scope="module")
def sets(make_examples):
    return {"forget": make_examples(9, seed=1), "retain": make_examples(7, seed=2)}


@pytest.fixture
def model(make_llama):
    return make_llama(tie_word_embeddings=False)


@pytest.fixture(scope="module")
def batches(sets, pad_batches):
    return [pad_batches(examples, 4) for examples in sets.values()]


@pytest.fixture(scope="module")
def by_hand(make_llama, sets, log_probs_by_hand):
    """set -> `statistics_by_hand` of the model that the tests have."""
    model = make_llama(tie_word_embeddings=False)
    return {name: statistics_by_hand(model, examples, log_probs_by_hand) for name, examples in sets.items()}


def scored(model, batches, score, **arguments):
    settings = {
        "density": DENSITY,
        "gamma": GAMMA,
        "score_kwargs": OPTIONS.get(score) if isinstance(score, str) else None,
    }
    return attribute(model, *batches, score=score, progress=False, **(settings | arguments))


def statistics_by_hand(model, examples, log_probs_by_hand):
    """Mean gradient, mean squared gradient, and RMS of the inputs of each Linear, from one example after another."""
    model.eval()
    weights = dict(model.named_parameters())
    grads, squares = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    inputs = {f"{name}.weight": [] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    modules = dict(model.named_modules())
    for ids, labels in examples:
        hooks = [
            modules[name.removesuffix(".weight")].register_forward_hook(
                lambda _, args, __, name=name: inputs[name].append(args[0].detach()[0])
            )
            for name in inputs
        ]
        loss = -log_probs_by_hand(model, ids, labels).mean()
        for hook in hooks:
            hook.remove()
        # The head counts where a label follows, all others count every token.
        inputs[HEAD][-1] = inputs[HEAD][-1][[t - 1 for t in range(1, len(ids)) if labels[t] != -100]]
        for name, grad in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            grads[name] += grad / len(examples)
            squares[name] += grad**2 / len(examples)
    rms = {name: torch.cat(rows).square().mean(0).sqrt() for name, rows in inputs.items()}
    return grads, squares, rms


def ranked(weight, ratio):
    """FRP's score of a matrix, row by row."""
    rows = []
    for row in weight.abs():
        places = [sorted(range(len(row)), key=values.__getitem__) for values in (ratio.tolist(), row.tolist())]
        first, second = (torch.tensor([place.index(i) for i in range(len(row))]) for place in places)
        rows.append((first + 0.05 * second) / len(row))
    return torch.stack(rows)


FORMULAS = {
    "wagle": lambda w, n, f, r: ((w - r[0][n] / GAMMA) * f[0][n]).abs(),
    "snip": lambda w, n, f, r: (w * f[0][n]).abs(),
    "gradient": lambda w, n, f, r: f[0][n].abs(),
    "magnitude": lambda w, n, f, r: w.abs(),
    "grad_ratio": lambda w, n, f, r: f[0][n].abs() / (r[0][n].abs() + 1e-10),
    "module": lambda w, n, f, r: torch.full_like(w, float(bool(re.search("o_proj|layers.1.mlp", n)))),
    "fisher": lambda w, n, f, r: f[1][n] / (r[1][n] + 1e-20),
    "curvature": lambda w, n, f, r: f[0][n].abs() / (r[1][n].sqrt() + r[1][n].mean().sqrt() + 1e-20),
    "wanda": lambda w, n, f, r: w.abs() * f[2][n] if n in f[2] else None,
    "frp": lambda w, n, f, r: ranked(w, f[2][n] / (r[2][n] + 1e-6)) if n in f[2] else None,
    "sure": lambda w, n, f, r: torch.full_like(w, f[0][n].square().sum().sqrt().item()),
    "memflex": lambda w, n, f, r: torch.full_like(
        w, (f[0][n].abs().mean() * (1 - torch.cosine_similarity(f[0][n].view(-1), r[0][n].view(-1), dim=0))).item()
    ),
}
OPTIONS = {"module": {"patterns": ["o_proj", r"layers\.1\.mlp"]}}


def assert_agree(mask, expected, density=DENSITY):
    assert mask.num_selected == math.floor(density * mask.num_weights)
    different = sum(int((mask[name] != expected[name]).sum()) for name in mask)
    assert different <= 1e-4 * mask.num_weights


def test_every_score_has_an_oracle():
    assert set(SCORES) == {*FORMULAS, "random", "answer_rows"}  # the former is in test_attribute.py, the latter below


@pytest.mark.parametrize("score", FORMULAS)
def test_equals_the_formula(model, sets, by_hand, pad_batches, score, top):
    formula = FORMULAS[score]
    scores = {n: formula(p.detach(), n, *by_hand.values()) for n, p in model.named_parameters()}
    expected = top({name: tensor for name, tensor in scores.items() if tensor is not None}, DENSITY)
    for size, side in ((4, "right"), (5, "left")):
        mask = scored(model, [pad_batches(examples, size, side) for examples in sets.values()], score)
        assert list(mask) == list(expected)
        assert_agree(mask, expected)
        assert mask.info.score == score
        assert mask.info.score_kwargs == OPTIONS.get(score)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_is_left_as_found_and_repeats(model, batches, score):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    first, second = (scored(model, batches, score) for _ in range(2))
    assert first == second
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("score", SCORES)
def test_exact_counts(model, batches, score, scope):
    """Also of scores with many ties, or zeros, in a tensor."""
    include = None if scope == "global" else ["o_proj", "lm_head" if score == "answer_rows" else "up_proj"]
    mask = scored(model, batches, score, scope=scope, include=include)
    if scope == "global":
        assert mask.num_weights + (mask.info.unranked_weights or 0) == sum(p.numel() for p in model.parameters())
        assert mask.num_selected == math.floor(DENSITY * mask.num_weights)
    for name in mask:
        if scope == "tensor":
            assert mask[name].sum() == math.floor(DENSITY * mask[name].numel())
        if scope == "row":
            assert set(mask[name].sum(1).tolist()) == {math.floor(DENSITY * mask[name].shape[1])}


@pytest.mark.parametrize("statistic", ["forget_grad", "retain_square", "forget_activation", "retain_activation"])
def test_values_that_scores_get(model, batches, by_hand, statistic):
    """The numbers themselves, not only their order."""
    which, _, what = statistic.partition("_")
    expected = by_hand[which][["grad", "square", "activation"].index(what)]
    seen = {}

    def look(weight, name, value):
        seen[name] = None if value is None else value.clone()
        return weight.abs()

    names = {"forget_grad": lambda weight, name, forget_grad: look(weight, name, forget_grad)}
    names["retain_square"] = lambda weight, name, retain_square: look(weight, name, retain_square)
    names["forget_activation"] = lambda weight, name, forget_activation: look(weight, name, forget_activation)
    names["retain_activation"] = lambda weight, name, retain_activation: look(weight, name, retain_activation)
    scored(model, batches, names[statistic])
    assert list(seen) == [name for name, _ in model.named_parameters()]
    for name, value in seen.items():
        if name not in expected:
            assert value is None
        else:
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5 * scale)


def test_gradient_and_squares_in_one_pass(model, batches, by_hand, top):
    def variance(forget_grad, forget_square):
        return (forget_square - forget_grad**2).clamp(min=0)

    grads, squares, _ = by_hand["forget"]
    expected = top({name: (squares[name] - grads[name] ** 2).clamp(min=0) for name in grads}, DENSITY)
    mask = scored(model, [batches[0], None], variance)
    assert mask.num_selected == math.floor(DENSITY * mask.num_weights)
    different = sum(int((mask[name] != expected[name]).sum()) for name in mask)
    assert different <= 1e-3 * mask.num_weights  # a difference of near equals


@pytest.mark.parametrize("options", [{"offload": "cpu"}, {"dtype": torch.float64}])
def test_squares_elsewhere_or_in_another_dtype(model, batches, options):
    assert scored(model, batches, "fisher", **options).overlap(scored(model, batches, "fisher")) > 0.999


def test_only_what_is_named_is_computed(model, batches, monkeypatch):
    """Activations need no backward pass, and no set that is not named."""

    def refuse(*_, **__):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    mask = scored(model, [batches[0], None], "wanda")
    assert mask.info.effective_density is None
    assert (mask.info.forget_examples, mask.info.retain_examples) == (9, None)
    with pytest.raises(ValueError, match="'frp' needs the retain activations: pass retain_batches"):
        scored(model, [batches[0], None], "frp")


def test_wanda_by_row_is_that_of_the_paper(model, batches, by_hand):
    _, _, rms = by_hand["forget"]
    mask = scored(model, batches, "wanda", scope="row", include=["proj"])
    for name in mask:
        scores = model.get_parameter(name).detach().abs() * rms[name]
        expected = scores >= scores.topk(math.floor(DENSITY * scores.shape[1]), dim=1).values[:, -1:]
        assert (mask[name] != expected).float().mean() <= 1e-3, name


def test_tied_head_has_the_activations_of_the_head(make_llama, batches):
    seen = {}

    def look(weight, name, forget_activation):
        seen[name] = forget_activation
        return weight.abs()

    scored(make_llama(tie_word_embeddings=True), batches, look)
    assert seen["model.embed_tokens.weight"].shape == (32,)


@pytest.mark.parametrize("tied", [True, False])
def test_answer_rows_are_the_heads_rows_of_the_answers_tokens(make_llama, sets, pad_batches, tied):
    model = make_llama(tie_word_embeddings=tied)
    end = model.config.eos_token_id
    # The first label predicts nothing that follows a token, and the end of an answer is no word of it.
    answers = {label for _, labels in sets["forget"] for label in labels[1:] if label not in (-100, end)}
    head = "model.embed_tokens.weight" if tied else HEAD
    width, total = model.config.hidden_size, sum(p.numel() for p in model.parameters())
    room = len(answers) * width
    batches = [pad_batches(sets["forget"], 4), None]
    for number, seed in ((room // 3, 0), (room // 3, 1), (room, 0), (room + 50, 0)):
        mask = scored(model, batches, "answer_rows", density=(number + 0.5) / total, seed=seed)
        assert (mask.num_selected, mask.num_weights) == (number, total)
        rows = mask[head].any(1).nonzero().flatten().tolist()
        within = int(mask[head][sorted(answers)].sum())
        assert within == min(number, room)  # what the rows do not hold goes elsewhere
        if number <= room:
            assert set(rows) <= answers
    first, second = (
        scored(model, batches, "answer_rows", density=(room // 3 + 0.5) / total, seed=seed) for seed in (0, 1)
    )
    assert 0.1 < first.overlap(second) < 0.6  # a third of the rows' weights, at random
    assert first == scored(model, [pad_batches(sets["forget"], 9), None], "answer_rows", density=first.density, seed=0)


def test_counts_of_target_tokens_by_hand(model, sets, batches):
    seen = {}

    def look(weight, name, forget_targets, retain_targets):
        seen[name] = (forget_targets, retain_targets)
        return weight.abs()

    scored(model, batches, look)
    no_words = {model.config.eos_token_id, model.config.bos_token_id, model.config.pad_token_id}
    assert all(value == (None, None) for name, value in seen.items() if name != HEAD)
    for counts, examples in zip(seen[HEAD], sets.values(), strict=True):
        expected = torch.zeros(model.config.vocab_size, 1)
        for _, labels in examples:
            for label in labels[1:]:
                if label != -100 and label not in no_words:
                    expected[label] += 1
        torch.testing.assert_close(counts, expected)


def test_a_padding_token_that_is_none_does_not_hide_the_last_token(model, pad_batches):
    """Some configurations have -1."""
    model.config.pad_token_id = model.generation_config.pad_token_id = -1
    last = model.config.vocab_size - 1
    batches = [pad_batches([([3, 4, last], [-100, -100, last])], 1), None]
    mask = scored(model, batches, "answer_rows", density=10.5 / sum(p.numel() for p in model.parameters()))
    assert mask[HEAD].any(1).nonzero().flatten().tolist() == [last]


@pytest.mark.parametrize(("tail", "counted"), [([9], False), ([9, 9], False), ([9, 9, 9], True)])
def test_what_a_chat_template_writes_behind_an_answer_is_no_word_of_it(model, pad_batches, tail, counted):
    end = model.config.eos_token_id
    prompt, answer = [3, 4], [5, 9, 6]
    examples = [
        (prompt + answer + [end] + tail, [-100, -100, *answer, end, *tail]),
        (prompt + answer, [-100, -100, *answer]),
    ]
    seen = {}

    def look(weight, name, forget_targets):
        seen[name] = forget_targets
        return weight.abs()

    scored(model, [pad_batches(examples, 2), None], look)
    expected = dict.fromkeys(answer, 2.0)
    expected[9] += len(tail) * counted
    assert {row: seen[HEAD][row].item() for row in seen[HEAD][:, 0].nonzero().flatten().tolist()} == expected


def test_target_tokens_need_the_head_and_no_forward_pass(model, batches, monkeypatch):
    with pytest.raises(ValueError, match="weight of the output head is not among the parameters"):
        scored(model, batches, "answer_rows", exclude=["lm_head"])
    with pytest.raises(ValueError, match="'answer_rows' needs the forget target tokens: pass forget_batches"):
        scored(model, [None, None], "answer_rows")

    def refuse(*_, **__):
        raise AssertionError("a forward pass")

    monkeypatch.setattr(type(model), "forward", refuse)
    mask = scored(model, [batches[0], None], "answer_rows")
    assert (mask.info.forget_examples, mask.info.effective_density) == (9, None)


def test_module_scores_tie_in_order(model):
    """Of modules with one value, the first weights are selected: exactly as many as the density says."""
    size = sum(p.numel() for n, p in model.named_parameters() if "o_proj" in n)
    total = sum(p.numel() for p in model.parameters())
    mask = scored(model, [None, None], "module", score_kwargs={"patterns": "o_proj"}, density=(size - 100.5) / total)
    assert mask.num_selected == size - 101
    first, last = (mask[f"model.layers.{layer}.self_attn.o_proj.weight"].flatten() for layer in (0, 1))
    assert first.all()
    assert last[:-101].all()
    assert not last[-101:].any()


def test_sure_by_row_is_that_of_the_papers_code(model, batches, by_hand, top):
    """Neurons compete by the norms of their gradients; entries of a vector are neurons of their own."""
    grads, _, _ = by_hand["forget"]
    norms = {
        name: torch.stack([row.square().sum().sqrt().expand_as(row) for row in grad]) for name, grad in grads.items()
    }
    assert_agree(scored(model, batches, "sure", score_kwargs={"unit": "row"}), top(norms, DENSITY))
    with pytest.raises(ValueError, match="Unknown unit 'head' of the score \"sure\". Known: tensor, row"):
        scored(model, batches, "sure", score_kwargs={"unit": "head"})


def test_memflex_where_a_gradient_is_zero(model, batches):
    mask = scored(
        model, batches, lambda forget_grad, retain_grad: get_score("memflex")(forget_grad * 0 + 1, retain_grad * 0)
    )
    assert mask.num_selected == math.floor(DENSITY * mask.num_weights)


# What is refused


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("score", SCORES)
def test_every_input_that_is_not_finite_is_refused(score, value):
    """Each on its own: an infinite retain gradient must not pass for a small quotient."""
    arguments = arguments_of(get_score(score))
    function = with_options(score, OPTIONS.get(score))
    tensors = [name for name in arguments if name not in ("name", "gamma", "generator", "layout")]
    assert tensors
    for bad in (None, *tensors):
        available = {name: torch.ones(3, 4) for name in ("weight", *tensors)}
        available |= {name: torch.ones(4) for name in tensors if name.endswith("_activation")}
        available |= {name: torch.ones(3, 1) for name in tensors if name.endswith("_targets")}
        available |= {
            "name": "o_proj",
            "gamma": 1.0,
            "generator": torch.Generator().manual_seed(0),
            "layout": NO_MATRIX,
        }
        if bad is None:
            assert score_tensor(function, arguments, "o_proj", available).isfinite().all()
            continue
        available[bad].view(-1)[1] = value
        with pytest.raises(NotFiniteError) as caught:
            score_tensor(function, arguments, "o_proj", available)
        assert caught.value.argument == bad


@pytest.mark.parametrize("score", SCORES)
def test_weight_that_is_not_finite(model, batches, score):
    """Named, whether the loss, a gradient or the score itself meets it first."""
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = math.nan
    with pytest.raises(FloatingPointError, match=r"not finite|weights of") as caught:
        scored(model, batches, score)
    assert "model.layers.0.mlp.up_proj.weight" in str(caught.value)


@pytest.mark.parametrize("score", ["fisher", "sure", "grad_ratio", "memflex"])
def test_gradient_that_is_not_finite(model, batches, score):
    parameter = model.model.layers[0].mlp.up_proj.weight
    parameter.register_hook(lambda grad: torch.full_like(grad, math.inf))
    with pytest.raises(
        FloatingPointError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight': the (forget|retain) (squared )?gradi"
    ):
        scored(model, batches, score)


@pytest.mark.parametrize("score", ["wanda", "frp"])
def test_activation_that_is_not_finite(model, batches, score):
    """Infinite inputs whose weights are zero there leave the loss finite where the product is defined so."""
    projection = model.model.layers[1].mlp.up_proj
    forward = projection.forward

    def overflow(module, arguments):
        return (arguments[0].masked_fill(torch.ones_like(arguments[0], dtype=torch.bool), math.inf),)

    projection.forward = lambda hidden: forward(torch.nan_to_num(hidden, posinf=0.0))
    projection.register_forward_pre_hook(overflow)
    with pytest.raises(
        FloatingPointError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight': the forget activation is"
    ):
        scored(model, batches, score)


def test_scores_that_rank_nothing(model, batches):
    with pytest.raises(ValueError, match="'module' is zero for every weight"):
        scored(model, [None, None], "module", score_kwargs={"patterns": ["q_porj"]})
    with pytest.raises(
        ValueError, match="'wanda' ranks none of the parameters: model.layers.0.input_layernorm.weight, .*and 2 "
    ):
        scored(model, batches, "wanda", include=["norm"])
    with pytest.raises(ValueError, match='needs patterns: attribution_kwargs={"patterns"'):
        scored(model, [None, None], "module", score_kwargs=None)


def test_unknown_option(model, batches):
    with pytest.raises(ValueError, match="'grad_ratio' has no option 'epsilon'. It has: eps"):
        scored(model, batches, "grad_ratio", score_kwargs={"epsilon": 1e-3})
    with pytest.raises(ValueError, match="'snip' has no option 'eps'. It has none"):
        scored(model, batches, "snip", score_kwargs={"eps": 1e-3})

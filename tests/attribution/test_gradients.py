"""Mean gradients against plain autograd on the mean over examples, each passed alone and unpadded."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wagle_trainer.attribution import attribute
from wagle_trainer.attribution.gradients import attribution_mode, mean_gradient

MODELS = ["llama", "llama tied", "gpt2"]


@pytest.fixture
def build(make_llama, make_gpt2):
    def make(name, **config):
        if name == "gpt2":
            return make_gpt2(**config)
        return make_llama(tie_word_embeddings=name == "llama tied", **config)

    return make


@pytest.fixture
def gradient_by_hand(log_probs_by_hand):
    def compute(model, examples):
        model.eval()
        parameters = dict(model.named_parameters())
        losses = [-log_probs_by_hand(model, *example).mean() for example in examples]
        grads = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
        return dict(zip(parameters, grads, strict=True))

    return compute


def gradient(model, batches, name="forget"):
    parameters = dict(model.named_parameters())
    with attribution_mode(model, parameters):
        return mean_gradient(model, parameters, batches, name=name, progress=False)


def assert_close(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(
            found[name], grad.float(), rtol=0, atol=tolerance * scale + 1e-9, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("architecture", MODELS)
def test_equals_autograd(build, gradient_by_hand, make_examples, pad_batches, architecture, size, side):
    model = build(architecture).train()  # dropout, where there is some, must not act
    examples = make_examples(8)
    found, number = gradient(model, pad_batches(examples, size, side))
    assert number == 8
    assert_close(found, gradient_by_hand(model, examples))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_token_of_an_example_has_nothing_to_predict_it_from(
    build, gradient_by_hand, make_examples, pad_batches, side
):
    """Language-modelling sets label every token: padding in front must not count as the context of the first."""
    model = build("gpt2")
    examples = [(ids, list(ids)) for ids, _ in make_examples(6)]
    found, _ = gradient(model, pad_batches(examples, 6, side))
    assert_close(found, gradient_by_hand(model, examples))


def test_examples_weigh_the_same_whatever_their_length(build, gradient_by_hand, pad_batches):
    model = build("llama")
    short, long = ([5, 6], [-100, 6]), ([7, *range(8, 30)], [-100, *range(8, 30)])
    found, _ = gradient(model, pad_batches([short, long], 2))
    alone = [gradient_by_hand(model, [one]) for one in (short, long)]
    assert_close(found, {name: (alone[0][name] + alone[1][name]) / 2 for name in found})


def test_bfloat16_model_has_float32_gradients(build, gradient_by_hand, make_examples, pad_batches):
    examples = make_examples(6)
    found, _ = gradient(build("llama tied").bfloat16(), pad_batches(examples, 2))
    exact = gradient_by_hand(build("llama tied"), examples)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    for name, grad in exact.items():
        assert torch.cosine_similarity(found[name].flatten(), grad.flatten(), dim=0) > 0.99, name


class Bigram(nn.Module):
    """The smallest causal language model: the next token's logits depend on the current token alone."""

    def __init__(self, vocabulary: int = 7, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary, dtype=dtype)

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.table(input_ids))


def test_bfloat16_is_not_what_sums_are_kept_in(pad_batches):
    torch.manual_seed(0)
    model = Bigram(dtype=torch.bfloat16)
    one = [([1, 2, 3], [-100, 2, 3])]
    few, _ = gradient(model, pad_batches(one))
    many, number = gradient(model, pad_batches(one * 700))  # 256 + 1 = 256 in bfloat16
    assert number == 700
    torch.testing.assert_close(many["table.weight"], few["table.weight"], rtol=1e-5, atol=0)


def test_examples_without_label_are_skipped_and_counted(build, make_examples, pad_batches):
    model, examples = build("llama"), make_examples(5)
    expected, _ = gradient(model, pad_batches(examples, 2))
    without = ([5, 6, 7], [-100] * 3)
    first_only = ([5, 6, 7], [5, -100, -100])  # nothing predicts the first token
    mixed = [without, *examples[:3], first_only, *examples[3:]]
    for size, side in ((1, "right"), (3, "left"), (7, "right"), (7, "left")):
        with pytest.warns(UserWarning, match="2 of 7 examples of the retain set have no target token"):
            found, number = gradient(model, pad_batches(mixed, size, side), name="retain")
        assert number == 5
        assert_close(found, expected)


def test_no_warning_when_every_example_has_labels(build, make_examples, pad_batches):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient(build("llama"), pad_batches(make_examples(3), 2))


@pytest.mark.parametrize("examples", [[], [([5, 6], [-100, -100])]], ids=["empty", "no labels"])
@pytest.mark.filterwarnings("ignore:.*have no target token")
def test_a_set_without_target_tokens_is_refused(build, pad_batches, examples):
    with pytest.raises(ValueError, match="The forget set has no example with a target token"):
        gradient(build("llama"), pad_batches(examples))


def test_parameters_that_get_no_gradient_have_zeros(build, make_examples, pad_batches):
    model = build("llama")
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    found, _ = gradient(model, pad_batches(make_examples(2)))
    assert torch.equal(found["unused"], torch.zeros(3))


def test_loss_that_is_not_finite_names_weight_and_batch(build, make_examples, pad_batches):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = math.nan
    with pytest.raises(FloatingPointError, match=r"batch 0 of the forget set is nan.*layers\.1\.mlp\.up_proj\.weight"):
        gradient(model, pad_batches(make_examples(2)))


def test_overflow_with_finite_weights_names_the_batch(pad_batches):
    model = Bigram()
    with torch.no_grad():
        model.table.weight[4] = torch.tensor([3e38, -3e38, 0, 0, 0, 0, 0])
        model.table.weight[4, 0] = 3.4e38
    fine, overflowing = ([1, 2], [-100, 2]), ([4, 1], [-100, 1])
    with pytest.raises(FloatingPointError, match="batch 2 of the forget set is inf: all weights are finite"):
        gradient(model, pad_batches([fine, fine, overflowing]))


@pytest.mark.parametrize("options", [{"offload": True}, {"dtype": torch.float64}])
def test_accumulators_elsewhere_or_in_another_dtype(options, make_llama, make_examples, pad_batches):
    model = make_llama()
    parameters = dict(model.named_parameters())
    batches = pad_batches(make_examples(5), 3, "right")
    with attribution_mode(model, parameters):
        usual, _ = mean_gradient(model, parameters, batches, name="forget", progress=False)
        other, _ = mean_gradient(model, parameters, batches, name="forget", progress=False, **options)
    for name in parameters:
        assert other[name].dtype == options.get("dtype", torch.float32)
        torch.testing.assert_close(other[name].float(), usual[name])


def test_half_precision_accumulates_in_place_if_asked(make_llama, make_examples, pad_batches):
    model = make_llama().to(torch.bfloat16)
    parameters = dict(model.named_parameters())
    batches = pad_batches(make_examples(3), 3, "right")
    with attribution_mode(model, parameters):
        exact, _ = mean_gradient(model, parameters, batches, name="forget", progress=False)
        rough, _ = mean_gradient(model, parameters, batches, name="forget", progress=False, dtype=torch.bfloat16)
    for name in parameters:
        assert exact[name].dtype == torch.float32
        assert rough[name].dtype == torch.bfloat16
        torch.testing.assert_close(rough[name].float(), exact[name], rtol=2**-6, atol=1e-3)


def test_out_of_memory_says_what_helps(make_llama, make_examples, pad_batches, monkeypatch):
    model = make_llama()
    parameters = dict(model.named_parameters())

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(model, "forward", fail)
    batches = pad_batches(make_examples(3), 3, "right")
    with (
        attribution_mode(model, parameters),
        pytest.raises(torch.OutOfMemoryError, match=r"retain gradient.*attribution_offload=\"cpu\""),
    ):
        mean_gradient(model, parameters, batches, name="retain", progress=False)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_out_of_memory_before_the_first_batch(make_llama, make_examples, pad_batches, monkeypatch):
    """Where room for the sums is made, which is the most that is requested; no hook is left that would take gradients."""
    model, batches = make_llama(), pad_batches(make_examples(3), 3, "right")
    parameters, zeros_like, made = dict(model.named_parameters()), torch.zeros_like, []

    def fail(*args, **kwargs):
        made.append(args)
        if len(made) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return zeros_like(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", fail)
    with (
        attribution_mode(model, parameters),
        pytest.raises(torch.OutOfMemoryError, match=r"room for the forget gradient.*attribution_offload=\"cpu\""),
    ):
        mean_gradient(model, parameters, batches, name="forget", dtype=torch.float64, progress=False)
    monkeypatch.undo()
    model(input_ids=batches[0]["input_ids"]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())


def test_out_of_memory_in_the_scores(make_llama):
    def greedy(weight):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    with pytest.raises(torch.OutOfMemoryError, match=r"while computing the scores .*attribution_offload=\"cpu\""):
        attribute(make_llama(), None, None, score=greedy, progress=False)

"""Gradients that leave the device as they arrive: the sums, what is alive at a time, and where they lie by default."""

import pytest
import torch

from wagle_trainer import AttributionConfig, attribute
from wagle_trainer.attribution import host_sums
from wagle_trainer.attribution.gradients import attribution_mode, set_statistics
from wagle_trainer.attribution.host_sums import HostSums, fits_on_device


@pytest.fixture
def batches(make_examples, pad_batches):
    return pad_batches(make_examples(5), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_through_buffers_add_up_to_the_same_bits(dtype):
    """The way of a GPU, with chunks that neither fill a buffer nor divide a tensor."""
    torch.manual_seed(0)
    shapes = [(5, 7), (3,), (64,), (), (0,)]
    rounds = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(4)]
    expected = [torch.zeros(shape) for shape in shapes]
    totals, squares = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
    sums = HostSums(torch.device("cpu"), chunk=16, staged=True)
    for gradients in rounds:
        for gradient, one, total, square in zip(gradients, expected, totals, squares, strict=True):
            one.add_(gradient)
            sums.add(gradient.clone(), total, square)
    sums.finish()
    sums.close()
    assert all(map(torch.equal, totals, expected))
    by_hand = [sum(parts[i].float().square() for parts in rounds) for i in range(len(shapes))]
    for square, one in zip(squares, by_hand, strict=True):
        torch.testing.assert_close(square, one)


def test_failures_in_the_thread_are_raised():
    sums = HostSums(torch.device("cpu"), staged=True, chunk=8)
    sums.add(torch.ones(4), torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        sums.finish()
    sums.close()


def live_gradients(model, batches, **options) -> int:
    """Most parameters that have a gradient at once during `set_statistics`."""
    parameters, most = dict(model.named_parameters()), 0

    def count(_):
        nonlocal most
        most = max(most, sum(parameter.grad is not None for parameter in parameters.values()))

    handles = [parameter.register_post_accumulate_grad_hook(count) for parameter in parameters.values()]
    with attribution_mode(model, parameters):
        set_statistics(model, parameters, batches, name="forget", progress=False, **options)
    for handle in handles:
        handle.remove()
    return most


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("wanted", [{"grad"}, {"grad", "square"}])
def test_one_gradient_tensor_at_a_time(make_llama, batches, wanted, tied):
    model = make_llama(tie_word_embeddings=tied)
    assert live_gradients(model, batches, wanted=wanted, offload=True) == 1
    assert live_gradients(model.bfloat16(), batches, wanted=wanted, offload=True) == 1


def test_without_host_memory_they_all_stay(make_llama, batches):
    model = make_llama()
    assert live_gradients(model, batches, wanted={"grad"}, offload=False) == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["global", "row"])
def test_the_mask_is_bitwise_the_same(make_llama, batches, dtype, scope, monkeypatch):
    monkeypatch.setattr(
        "wagle_trainer.attribution.gradients.HostSums", lambda device: HostSums(device, staged=True, chunk=100)
    )
    model = make_llama().to(dtype)
    masks = [
        attribute(model, batches[:2], batches[1:], scope=scope, density=0.1, offload=offload, progress=False)
        for offload in (None, "cpu")
    ]
    assert masks[0].digest == masks[1].digest


def test_where_they_lie_by_default(monkeypatch):
    assert AttributionConfig().offload == "auto"
    assert AttributionConfig(offload="none").offload is None
    assert fits_on_device([torch.zeros(2**20)], torch.float32, 2)  # the CPU is where they would go

    class OnGpu:
        device = torch.device("cuda:0")

        def numel(self):
            return 1000

    monkeypatch.setattr(host_sums, "free_memory", lambda device: 10_000)
    assert fits_on_device([OnGpu()], torch.bfloat16, 2)
    assert not fits_on_device([OnGpu()], torch.float32, 2)
    assert fits_on_device([OnGpu()], torch.float32, 1)

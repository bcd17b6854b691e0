"""Without a GPU: a training step whose tensors are on the meta device.

There a tensor has no values, so whatever asks for one fails, and an operation that mixes devices fails, in the backward pass
too. What passes here neither waits for a GPU nor leaves a tensor on the host.
"""

import pytest
import torch

from wagle_trainer import WagleTrainer
from wagle_trainer.masking import bits
from wagle_trainer.masking.compact_weights import CompactWeights

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

LOSSES = {
    "npo": {"loss_type": "npo"},
    "kl": {"loss_type": "grad_diff", "loss_kwargs": {"retain_loss": "kl"}},
    "tnpo": {"loss_type": "tnpo"},
    "rmu": {"loss_type": "rmu", "loss_kwargs": {"layer": 1}},
    "satimp": {"loss_type": "satimp"},
}


def on_meta(value):
    if isinstance(value, dict):
        return {key: on_meta(entry) for key, entry in value.items()}
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@pytest.fixture
def step(make_llama, make_set, arguments, word_tokenizer, monkeypatch):
    """step(**arguments) -> a trainer after its first step, whose model and next batch are on the meta device."""

    def make(**changes):
        trainer = WagleTrainer(
            make_llama(attn_implementation="eager"),
            arguments(max_steps=1, attribution="random", density=0.05, **changes),
            forget_dataset=make_set(8),
            retain_dataset=make_set(8, seed=1),
            processing_class=word_tokenizer,
        )
        trainer.train()
        batch = on_meta(next(iter(trainer.get_train_dataloader())))
        monkeypatch.setattr(type(trainer.args), "device", torch.device("meta"))
        trainer.model.to("meta")
        for output in (*trainer.references.logits.values(), *trainer.references.states.values()):
            for value in vars(output).values():
                if isinstance(value, torch.nn.Module):
                    value.to("meta")
        return trainer, batch

    return make


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_and_backward(step, loss):
    trainer, batch = step(**LOSSES[loss])
    trainer.model.train()
    trainer._in_training_step = True
    value = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(4, device="meta"))
    assert value.is_meta
    value.backward()
    reached = [name for name, parameter in trainer.model.named_parameters() if parameter.grad is not None]
    assert reached
    assert all(parameter.grad.is_meta for parameter in trainer.model.parameters() if parameter.grad is not None)


def test_the_check_finds_a_tensor_on_the_host(step, monkeypatch):
    trainer, batch = step()
    trainer._in_training_step = True
    batch["forget"]["labels"] = torch.zeros(batch["forget"]["labels"].shape, dtype=torch.long)
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(4, device="meta")).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compact_gradients_and_step(dtype):
    """Taken, clipped, stepped with and written back."""
    packed = bits.pack(torch.arange(24).view(6, 4) % 3 == 0)
    weights = CompactWeights(torch.nn.Parameter(torch.randn(6, 4, dtype=dtype)), packed)
    weights.parameter = torch.nn.Parameter(torch.empty(6, 4, dtype=dtype, device="meta"))
    weights.positions = weights.positions.to("meta")
    weights.master = torch.nn.Parameter(torch.empty(8, device="meta"))
    optimizer = torch.optim.AdamW([weights.master], lr=1e-3)
    for _ in range(2):
        weights.parameter.grad = torch.empty_like(weights.parameter)
        weights.take_gradient()
        assert weights.parameter.grad is None
        assert torch.nn.utils.clip_grad_norm_([weights.master], 1.0).is_meta
        weights.read()
        optimizer.step()
        weights.write()
    assert optimizer.state[weights.master]["exp_avg"].is_meta

"""One forget request after another: the second leaves alone what the first has changed."""

import pytest
import torch

from wagle_trainer import WagleTrainer, WeightMask


@pytest.fixture
def forget_it(arguments, make_set, word_tokenizer, tmp_path):
    """forget_it(model, seed, folder, **changes) -> the trainer of one request, trained and saved."""

    def run(model, seed, folder, **changes):
        trainer = WagleTrainer(
            model,
            arguments(output_dir=str(tmp_path / folder), attribution_gamma=0.05, **changes),
            forget_dataset=make_set(6, seed=seed),
            retain_dataset=make_set(9, seed=9),
            processing_class=word_tokenizer,
        )
        trainer.train()
        trainer.save_model()
        return trainer

    return run


@pytest.mark.parametrize("second", ["wagle", "random"])
def test_a_second_request_spares_the_weights_of_the_first(second, forget_it, make_llama, weights_of, tmp_path):
    model = make_llama()
    first = forget_it(model, 1, "first", density=0.3)
    after_first = weights_of(model)
    earlier = str(tmp_path / "first")
    trainer = forget_it(model, 2, "second", attribution=second, density=0.5, attribution_exclude_mask=earlier)
    assert (trainer.mask & first.mask).num_selected == 0
    free = first.mask.num_weights - first.mask.num_selected
    assert trainer.mask.num_selected == free // 2
    moved = 0
    for name, parameter in model.named_parameters():
        changed = parameter.detach().view(torch.int32) != after_first[name].view(torch.int32)
        assert not bool((changed & ~trainer.mask[name]).any())
        assert not bool((changed & first.mask[name]).any())
        moved += int(changed.sum())
    assert moved > 0.5 * trainer.mask.num_selected
    saved = WeightMask.from_pretrained(tmp_path / "second")
    assert saved.info.exclude_mask == first.mask.digest
    # A third request has to spare both: masks are sets.
    both = saved | WeightMask.from_pretrained(earlier)
    assert both.num_selected == saved.num_selected + first.mask.num_selected


def test_an_earlier_mask_that_is_not_there(forget_it, make_llama, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError, OSError), match="nowhere"):
        forget_it(make_llama(), 1, "out", attribution_exclude_mask=str(tmp_path / "nowhere"))

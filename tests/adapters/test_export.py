"""Export to Super-Tuning, read by PEFT's own classes."""

import copy

import pytest
import torch
from peft import PeftModel, PeftType
from safetensors.torch import load_file

from wagle_trainer import WeightMask
from wagle_trainer.adapters import AdapterMismatchError, SparseAdapter, export_supertuning
from wagle_trainer.adapters.adapter import base_digests

IDS = torch.tensor([[5, 9, 20, 31, 7]])


@pytest.fixture
def make_adapter(make_llama):
    """make_adapter(density, pattern, dtype) -> (base, tuned, adapter), the same density in every tensor."""

    def make(density=0.05, pattern="_proj", dtype=torch.float32, extra=0):
        base = make_llama(tie_word_embeddings=True).to(dtype).eval()
        tuned, generator, masks = copy.deepcopy(base), torch.Generator().manual_seed(0), {}
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if pattern in name:
                    number = int(density * parameter.numel()) + (extra if "layers.1.mlp.up" in name else 0)
                    flat = torch.zeros(parameter.numel(), dtype=torch.bool)
                    flat[torch.randperm(len(flat), generator=generator)[:number]] = True
                    masks[name] = flat.view_as(parameter)
                    parameter += masks[name] * torch.randn(parameter.shape, generator=generator).to(dtype)
        mask = WeightMask.from_dict(masks)
        return base, tuned, SparseAdapter.from_mask(tuned, mask, base_digests(base, mask))

    return make


@pytest.mark.parametrize(("density", "dtype"), [(0.05, torch.float32), (0.333, torch.float32), (0.05, torch.bfloat16)])
def test_peft_loads_it(density, dtype, make_adapter, tmp_path):
    base, tuned, adapter = make_adapter(density, dtype=dtype)
    export_supertuning(adapter, base, tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert loaded.peft_type == PeftType.SUPERTUNING and loaded.peft_config["default"].target_modules
    layer = loaded.base_model.model.model.layers[0].mlp.up_proj
    index = adapter["model.layers.0.mlp.up_proj.weight"].index
    assert torch.equal(layer.supertuning_indices["default"].long(), index)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(loaded(IDS).logits, tuned(IDS).logits, rtol=tolerance, atol=20 * tolerance)
    merged = loaded.merge_and_unload()
    for (name, parameter), wanted in zip(merged.named_parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=tolerance, atol=tolerance, msg=name)
        if name in adapter:
            assert torch.equal(parameter[~adapter.mask[name]], wanted[~adapter.mask[name]])


def test_a_process_without_this_package_loads_it(make_adapter, run_fresh, tmp_path):
    base, tuned, adapter = make_adapter()
    export_supertuning(adapter, base, tmp_path / "exported")
    base.save_pretrained(tmp_path / "base")
    code = f"""
import sys
sys.modules["wagle_trainer"] = None  # as where it is not installed
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(base, {str(tmp_path / "exported")!r})
save_file({{"logits": model(torch.tensor({IDS.tolist()})).logits.detach()}}, {str(tmp_path / "logits")!r})
"""
    [(status, output)] = run_fresh([code], "trl")
    assert status == 0, output
    found = load_file(tmp_path / "logits")
    torch.testing.assert_close(found["logits"], tuned(IDS).logits.detach(), rtol=1e-6, atol=2e-5)


def test_what_does_not_fit_the_format(make_adapter, make_llama, tmp_path):
    base, tuned, _ = make_adapter()
    for pattern, what in (("norm", "no weight of a linear layer"), ("embed_tokens", "tied")):
        _, _, adapter = make_adapter(0.5, pattern)
        with pytest.raises(ValueError, match=f"takes untied weights of torch.nn.Linear only.* is {what}"):
            export_supertuning(adapter, base, tmp_path)
    _, _, adapter = make_adapter(extra=1)
    with pytest.raises(ValueError, match=r"has .* values out of .*attribution_scope='tensor'"):
        export_supertuning(adapter, base, tmp_path)
    _, _, adapter = make_adapter()
    with pytest.raises(AdapterMismatchError, match="merged into this model already"):
        export_supertuning(adapter, tuned, tmp_path)
    assert not list(tmp_path.iterdir())

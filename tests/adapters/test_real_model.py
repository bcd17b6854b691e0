"""The round trip on a real model: train, save the adapter, load it in another process, compare the logits as integers."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

MODEL = os.environ.get("WAGLE_MODEL_DIR", "")

TRAIN = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from wagle_trainer import WagleConfig, WagleTrainer
from wagle_trainer.data import QAFormat, load_tofu

model, tofu, output = sys.argv[1:]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(model)
qa = QAFormat.for_tokenizer(tokenizer)
trainer = WagleTrainer(
    AutoModelForCausalLM.from_pretrained(model, dtype="auto"),
    WagleConfig(
        f"{output}/run", density=0.05, max_steps=2, per_device_train_batch_size=2, learning_rate=1e-4, report_to="none",
        use_cpu=True, bf16=False, save_adapter=True, save_strategy="no", disable_tqdm=True,
    ),
    forget_dataset=qa.dataset(load_tofu(tofu, "forget10").select(range(4))),
    retain_dataset=qa.dataset(load_tofu(tofu, "retain90").select(range(4))),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()
ids = torch.arange(1000, 1064).view(2, 32)
with torch.no_grad():
    save_file({"logits": trainer.model.eval()(input_ids=ids).logits, "ids": ids}, f"{output}/trained.safetensors")
"""

LOAD = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
import wagle_trainer

model, output = sys.argv[1:]
torch.set_num_threads(1)
base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
ids, logits = load_file(f"{output}/trained.safetensors")["ids"], {}
with torch.no_grad():
    logits["base"] = base(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, f"{output}/run")
    logits["active"] = adapted(input_ids=ids).logits
    with adapted.disable_adapter():
        logits["disabled"] = adapted(input_ids=ids).logits
    adapted.merge_adapter()
    logits["merged"] = adapted(input_ids=ids).logits
    logits["unloaded"] = adapted.unload()(input_ids=ids).logits
save_file(logits, f"{output}/loaded.safetensors")
"""


@pytest.mark.skipif(not os.path.isdir(MODEL), reason="no model: set WAGLE_MODEL_DIR to the folder of a small one")
def test_same_logits_in_a_fresh_process(tofu_dir, tmp_path):
    for code, arguments in ((TRAIN, (MODEL, tofu_dir, tmp_path)), (LOAD, (MODEL, tmp_path))):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)
    trained = load_file(tmp_path / "trained.safetensors")["logits"].view(torch.int32)
    logits = {name: tensor.view(torch.int32) for name, tensor in load_file(tmp_path / "loaded.safetensors").items()}
    assert torch.equal(logits["active"], trained) and torch.equal(logits["merged"], trained)
    assert torch.equal(logits["disabled"], logits["base"]) and torch.equal(logits["unloaded"], logits["base"])
    assert not torch.equal(trained, logits["base"])

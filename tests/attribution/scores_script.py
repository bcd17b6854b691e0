"""One of several processes that compute a mask by every score, for tests/attribution/test_processes.py:

FOLDER

First each process has its share of the batches and the whole model, then FSDP2 shards the model.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from wagle_trainer import WeightMask, attribute

torch.set_num_threads(1)
folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
model = AutoModelForCausalLM.from_pretrained(folder / "model")
cases, sets = (json.loads((folder / name).read_text()) for name in ("cases.json", "sets.json"))
shares = [
    [{key: torch.tensor(rows) for key, rows in batch.items()} for batch in batches[rank::size]] for batches in sets
]
earlier = WeightMask.from_pretrained(folder / "earlier")
for engine in ("ddp", "fsdp2"):
    if engine == "fsdp2":
        mesh = init_device_mesh("cpu", (size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    for name, arguments in cases.items():
        options = {key: value for key, value in arguments.items() if key != "exclude"}
        exclude_mask = earlier if "exclude" in arguments else None
        mask = attribute(model, *shares, **options, exclude_mask=exclude_mask, across_processes=True, progress=False)
        digests = [None] * size
        dist.all_gather_object(digests, mask.digest)
        assert len(set(digests)) == 1, f"{engine}, {name}: the processes have different masks"
        if rank == 0:
            mask.save_pretrained(folder / engine / name)
# Not through the interpreter's end: with a process group it now and then ends in "terminate called without an
# active exception". All processes have written what they found by then.
dist.barrier()
os._exit(0)

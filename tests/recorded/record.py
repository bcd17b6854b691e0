"""Writes `recorded.json`: python tests/recorded/record.py [--fixtures] [--check] [name of a case ...]

Run it where a change of what the package computes is wanted, and say in the commit why the numbers changed. The
fixtures stand for files that users have saved with an earlier version: `--fixtures` makes them anew, which is right only
where a format is given up. With names, only those cases are recorded again. `--check` writes nothing and compares.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import cases
from cases import FIXTURES, RECORDED


def write_fixtures() -> None:
    """The taught model, a mask, an adapter and a checkpoint. What is pickled or told elsewhere is left out."""
    from safetensors.torch import save_file

    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir()
    model = cases.teach(cases.make_untaught_llama())
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(state, FIXTURES / "llama.safetensors")
    cases._attribute("llama", density=0.2).save_pretrained(FIXTURES / "mask")
    with tempfile.TemporaryDirectory() as folder:
        trainer = cases.make_trainer(
            folder,
            given={"model": cases.make_llama()},
            max_steps=12,
            learning_rate=1e-2,
            weight_decay=0.0,
            density=0.1,
            save_adapter=True,
        )
        trainer.train()
        trainer.save_model(f"{folder}/adapter")
        keep(f"{folder}/adapter", "adapter", ("adapter_config.json", "adapter_model.safetensors", "mask*"))
        cases.make_resumable(f"{folder}/run", save_strategy="steps", save_steps=2).train()
        keep(f"{folder}/run/checkpoint-2", "checkpoint", ("*",))


def keep(folder: str, name: str, patterns: tuple[str, ...]) -> None:
    """Copy what matters of a folder to the fixtures. `training_args.bin` is a pickle that nothing reads."""
    (FIXTURES / name).mkdir()
    for path in sorted({path for pattern in patterns for path in Path(folder).glob(pattern)}):
        if path.name not in ("training_args.bin", "README.md"):
            shutil.copy(path, FIXTURES / name / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases; all of them if none is named")
    parser.add_argument("--fixtures", action="store_true", help="make the fixtures anew")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with cases.one_thread():
        if args.fixtures:
            write_fixtures()
    old = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {"platform": None, "cases": {}}
    key = cases.platform_key()
    if args.names and key != old["platform"]:
        parser.error("Single cases can be recorded only where all the others were.")
    found, wrong = dict(old["cases"]) if args.names else {}, 0
    for name in args.names or cases.case_names():
        start = time.perf_counter()
        found[name] = cases.run_case(name)
        print(f"{time.perf_counter() - start:6.2f} s  {name}", flush=True)
        if args.check:
            lines = list(cases.differences(old["cases"].get(name), found[name], key == old["platform"], name))
            wrong += bool(lines)
            print("".join(f"    {line}\n" for line in lines[:5]), end="")
    if args.check:
        print(f"{wrong} of {len(found)} cases differ; compared {'exactly' if key == old['platform'] else 'to 1e-4'}")
        raise SystemExit(bool(wrong))
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    body = ",\n".join(lines)
    RECORDED.write_text(f'{{"platform": {json.dumps(key)},\n"cases": {{\n{body}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()

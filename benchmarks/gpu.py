"""Everything worth knowing about a GPU, in pieces of less than nine minutes, each a process and a JSON file of its own.

python benchmarks/gpu.py
python benchmarks/gpu.py --pieces attribution_1b step_1b

Models are Llamas with random weights in bfloat16, and the texts are the bundled people: nothing is downloaded. A piece that has
its file is left out when the command is given again; one that fails or takes too long is reported, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wagle_trainer.evaluation import save_results
from wagle_trainer.utils.text_table import text_table

FOLDER = Path(__file__).resolve().parent
LIMIT = 530  # seconds
SHAPES = {"1b": ["--examples", "32", "--batch_size", "8"], "7b": ["--examples", "16", "--batch_size", "4"]}


def pieces(shapes: dict[str, list[str]]) -> dict[str, list[str]]:
    """Name -> script and arguments; the most telling first."""
    found = {"selection_1b": ["selection.py", "--weights", "1000000000", "--repeats", "3"]}
    for shape, size in shapes.items():
        model = ["--random_llama", shape, "--repeats", "3", *size]
        if shape == "7b":
            found["small_gpu_7b"] = ["small_gpu.py", "--random_llama", "7b", "--gib", "24"]
        found |= {
            f"attribution_{shape}": ["attribution.py", "--questions", "0", *model],
            f"attribution_memory_{shape}": ["attribution_memory.py", *model],
            f"compact_peak_{shape}": ["compact_training.py", "--parts", "peak", *model],
            f"compact_time_{shape}": ["compact_training.py", "--parts", "time", *model],
            f"compact_bfloat16_{shape}": ["compact_training.py", "--parts", "bfloat16", *model],
            f"step_{shape}": ["masked_step.py", *model],
            f"npo_{shape}": ["npo_step.py", *model],
            f"adapter_{shape}": ["adapter.py", *model],
            f"evaluation_{shape}": [
                *("evaluation.py", "--random_llama", shape, "--repeats", "1", "--forget_split", "forget05"),
                *("--reference_rows", "2", "--rows", "8", "--max_new_tokens", "32"),
            ],
        }
    return found


def run(name: str, command: list[str], folder: Path, limit: float) -> dict[str, Any]:
    """Run one piece; what came of it."""
    output, start = folder / f"{name}.json", time.perf_counter()
    call = [sys.executable, str(FOLDER / command[0]), *command[1:], "--output", str(output)]
    try:
        done = subprocess.run(call, timeout=limit, capture_output=True, text=True, check=False)
        error = None if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())[-500:]
    except subprocess.TimeoutExpired:
        error = f"took more than {limit:.0f} s"
    return {"piece": name, "seconds": round(time.perf_counter() - start, 1), "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="Shapes of workload.py.")
    parser.add_argument("--pieces", nargs="+", help="Only these.")
    parser.add_argument("--limit", type=float, default=LIMIT, help="Seconds for one piece.")
    parser.add_argument("--output_dir", type=Path, default=FOLDER / "results" / "gpu")
    options = parser.parse_args()
    known = pieces({shape: SHAPES.get(shape, ["--examples", "4", "--batch_size", "2"]) for shape in options.shapes})
    for name in set(options.pieces or ()) - known.keys():
        raise SystemExit(f"Unknown piece {name!r}. Known: {', '.join(known)}.")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    summary = options.output_dir / "pieces.json"
    done = {row["piece"]: row for row in json.loads(summary.read_text())["rows"]} if summary.is_file() else {}
    for name, command in known.items():
        if (options.pieces and name not in options.pieces) or (options.output_dir / f"{name}.json").is_file():
            continue
        done[name] = run(name, command, options.output_dir, options.limit)
        save_results({"title": "Pieces of benchmarks/gpu.py", "rows": list(done.values())}, summary)
        print(f"{name}: {done[name]['error'] or 'done'} ({done[name]['seconds']} s)", flush=True)
    cells = [["piece", "seconds", "error"]]
    cells += [[row["piece"], str(row["seconds"]), row["error"] or ""] for row in done.values()]
    print(f"\n{text_table(cells, header=0)}\n\nWritten to {options.output_dir}")
    if any(row["error"] for row in done.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

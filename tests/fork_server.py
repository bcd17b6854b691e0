"""Runs code in processes of their own that have imported what takes seconds: python tests/fork_server.py MODULE ...

Imports the modules; then for each line of JSON on stdin, a list of programs, forks a process for each program, all at
once, and writes [[exit code, output], ...] as a line of JSON. Where one fails, the others are killed. A program has
`code`, or the path of a `script` with its `arguments`; and `environment`, if any, replaces the environment.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import traceback
from pathlib import Path


def run(program: dict, output: int) -> None:
    """In the forked process: never returns."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        if "environment" in program:
            os.environ.clear()
            os.environ.update(program["environment"])
        if "code" in program:
            exec(program["code"], {"__name__": "__main__"})
        else:
            sys.argv = [program["script"], *program["arguments"]]
            sys.path.insert(0, str(Path(program["script"]).parent))
            runpy.run_path(program["script"], run_name="__main__")
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve(programs: list[dict]) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    files = [tempfile.TemporaryFile() for _ in programs]  # noqa: SIM115
    ranks = {}
    for rank, (program, file) in enumerate(zip(programs, files, strict=True)):
        process = os.fork()
        if not process:
            run(program, file.fileno())
        ranks[process] = rank
    codes = [0] * len(programs)
    while ranks:
        process, status = os.wait()
        codes[ranks.pop(process)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    outputs = []
    for file in files:
        with file:
            file.seek(0)
            outputs.append(file.read().decode(errors="replace"))
    return list(zip(codes, outputs, strict=True))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose names are not meant to be imported
    answers = os.fdopen(os.dup(1), "w")  # what modules print goes elsewhere
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)

"""The notebooks run from top to bottom, and are committed with their outputs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason='pip install -e ".[notebooks]"')
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["compare_masks", "drop_in", "patch"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code if "print(" in cell.source or "plt.show" in cell.source)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom, once"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert "/work/" not in path.read_text() and "/home/" not in path.read_text(), "no paths of a machine"


@pytest.mark.applications
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    """In IPython itself: a kernel may wait for ever at a socket, on a machine that is busy with other tests."""
    pytest.importorskip("IPython")
    # A run that hangs says where, and ends.
    started = (
        "import faulthandler, sys; faulthandler.dump_traceback_later(1200, exit=True); "
        "from IPython import start_ipython; sys.exit(start_ipython(sys.argv[1:]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", started, "--quick", "--no-banner", "--colors=NoColor", str(path)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "IPYTHONDIR": str(tmp_path / "ipython")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    notebook = nbformat.read(path, as_version=4)
    committed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )
    labels = {line.split("  ")[0] for line in committed.splitlines() if "  " in line and line[0].isalpha()}
    assert len(labels) > 1
    printed = {line.split("  ")[0] for line in ran.stdout.splitlines()}
    assert labels <= printed, labels - printed

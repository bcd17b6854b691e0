"""What the package computes is what it computed when `recorded.json` was written: the last bit on the same machine, to
1e-4 on others. `record.py` says how to record again where another result is wanted."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
RECORDED = json.loads((FOLDER / "recorded.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def cases():
    """The module beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location("recorded_cases", FOLDER / "cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def same_platform(cases):
    return cases.platform_key() == RECORDED["platform"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED["cases"])
@pytest.mark.filterwarnings("ignore")
def test_as_recorded(name, cases, same_platform):
    found = cases.run_case(name)
    wrong = list(cases.differences(RECORDED["cases"][name], found, same_platform, name))
    assert not wrong, "\n".join(wrong[:20])


def test_differences(cases):
    recorded = {"a": 1.0, "b": {"exact": "x"}, "c": [1, None, "text"], "d": 3}

    def wrong(same, **changes):
        return list(cases.differences(recorded, recorded | changes, same))

    assert not wrong(True, e=5)
    assert wrong(True, a=1.00001) and not wrong(False, a=1.00001) and wrong(False, a=1.001)
    assert wrong(False, a=1.002) and wrong(False, c=[1, 0, "text"])
    assert wrong(True, b={"exact": "y"}) and not wrong(False, b={"exact": "y"})
    assert wrong(False, c=[1, None]) and wrong(False, c=[1, None, "other"]) and wrong(False, d=4)
    assert list(cases.differences(recorded, {}, False))

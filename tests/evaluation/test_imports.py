import subprocess
import sys

import pytest

from wagle_trainer import evaluation


@pytest.mark.parametrize("name", evaluation.__all__)
def test_every_name_resolves(name):
    assert getattr(evaluation, name).__name__ == name
    assert name in dir(evaluation)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'evaluate_everything'"):
        _ = evaluation.evaluate_everything


def test_metrics_and_tables_come_without_torch():
    code = "from wagle_trainer.evaluation import model_utility, results_table; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

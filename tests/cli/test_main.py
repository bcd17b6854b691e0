"""The command line as a whole: help everywhere, exit codes, and what is imported when."""

import pytest

from wagle_trainer import __version__
from wagle_trainer.cli import GROUPS, RUN_ALONE, main

COMMANDS = {
    "mask": ["info", "overlap", "and", "or", "minus", "not"],
    "adapter": ["info", "verify", "merge", "compose", "diff"],
    "recipes": ["list", "copy"],
}


def test_help_needs_neither_torch_nor_transformers(run_fresh):
    code = (
        "import sys\nfrom wagle_trainer.cli import main\n"
        "for arguments in ([], ['--help'], ['mask'], ['mask', 'and', '--help'], ['adapter'], ['report'], ['evaluate'], ['recipes', 'list'], ['forget'], ['demo', '--help']):\n"
        "    try:\n        main(arguments)\n    except SystemExit as stopped:\n        assert stopped.code == 0\n"
        "print('loaded:', *{'torch', 'transformers', 'trl', 'datasets', 'peft'} & set(sys.modules))"
    )
    [(status, output)] = run_fresh([code])
    assert (status, output.splitlines()[-1]) == (0, "loaded:")


@pytest.mark.parametrize(
    "command", [[], *([group] for group in GROUPS), *([group, name] for group in COMMANDS for name in COMMANDS[group])]
)
def test_help_has_examples_that_begin_with_the_command(command, wagle):
    code, out, _ = wagle(*command, "--help")
    assert code == 0
    examples = out[out.index("example") :]
    assert f"\n  {' '.join(['wagle', *command])} " in examples
    if len(command) < 2 and not {*command} & {*RUN_ALONE}:
        assert wagle(*command)[1] == out  # who gives no arguments sees help


def test_wrong_usage(wagle):
    for arguments in (
        ["unlern"],
        ["mask", "xor"],
        ["mask", "info"],
        ["evaluate", "a", "b"],
        ["report", "r", "--colour"],
    ):
        code, out, err = wagle(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("usage: wagle")


def test_version(wagle):
    assert wagle("--version")[:2] == (0, f"wagle-trainer {__version__}\n")


def test_refusals_have_no_traceback_but_faults_do(wagle, monkeypatch):
    from wagle_trainer.masking import WeightMask

    def refuse(error):
        def from_pretrained(path):
            print("on the way")
            raise error

        monkeypatch.setattr(WeightMask, "from_pretrained", from_pretrained)

    refuse(FloatingPointError("The loss is not finite."))
    assert wagle("mask", "info", "m") == (1, "", "on the way\nwagle mask: The loss is not finite.\n")
    refuse(KeyError("x"))
    with pytest.raises(KeyError):
        main(["mask", "info", "m"])


def test_as_a_module(run_fresh):
    code = "import runpy, sys\nsys.argv[1:] = ['report', 'none.json']\n"
    code += "runpy.run_module('wagle_trainer.cli', run_name='__main__')"
    message = "wagle report: [Errno 2] No such file or directory: 'none.json'\n"
    assert run_fresh([code], "trl") == [(1, message)]


def test_help_leaves_out_what_help_all_has(wagle):
    for command in ("evaluate", "attack"):
        short, full = wagle(command, "--help")[1], wagle(command, "--help-all")[1]
        assert "--question_prefix" in full
        assert "--question_prefix" not in short
        assert "--batch_size" in short and "--help-all" in short
        assert len(short.splitlines()) < len(full.splitlines()) <= 110


def test_a_warning_is_said_once(wagle, monkeypatch):
    import logging
    import warnings

    from wagle_trainer.masking import WeightMask

    def warn(path):
        for _ in range(2):
            warnings.warn("Something is odd.", stacklevel=1)
            logging.getLogger("wagle_trainer.masking").warning("Something else is odd.")
        raise ValueError("refused")

    monkeypatch.setattr(WeightMask, "from_pretrained", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        err = wagle("mask", "info", "m")[2]
    assert err == "UserWarning: Something is odd.\nSomething else is odd.\nwagle mask: refused\n"

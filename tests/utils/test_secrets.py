import pytest

from wagle_trainer.utils.secrets import HIDDEN, is_secret, redacted, redacted_arguments


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("hub_token", "token", "hf-token", "push_to_hub_token", "API_KEY", "db.password")),
        *((name, True) for name in ("aws_secret", "AWS_SECRET_ACCESS_KEY", "apikey", "credentials", "wandb_api_key")),
        *(
            (name, False)
            for name in ("eos_token", "pad_token", "max_new_tokens", "verbmem_tokens", "tokenizer", "key")
        ),
    ],
)
def test_names(name, secret):
    assert is_secret(name) == secret


def test_nested_settings():
    settings = {
        "hub_token": "abc",
        "none": {"token": None},
        "deep": [{"options": {"password": 12345, "seed": 3}}],
        "url": "postgres://me:pw@host/db",
        "page": "https://host/x?a=1&token=abc&b=2",
        "text": "use hf_abcdefghijklmnop for it",
        "eos_token": "</s>",
        "steps": [1, 2],
        "names": ["a", "--api_key", "xyz"],
    }
    assert redacted(settings) == {
        "hub_token": HIDDEN,
        "none": {"token": None},
        "deep": [{"options": {"password": HIDDEN, "seed": 3}}],
        "url": f"postgres://{HIDDEN}@host/db",
        "page": f"https://host/x?a=1&token={HIDDEN}&b=2",
        "text": f"use {HIDDEN} for it",
        "eos_token": "</s>",
        "steps": [1, 2],
        "names": ["a", "--api_key", HIDDEN],
    }


def test_command_lines():
    command = ["train.py", "--hub_token", "abc", "--seed", "3", "--token=abc", "opt.api_key=abc", "--push_to_hub"]
    assert redacted_arguments(command) == [
        *(
            "train.py",
            "--hub_token",
            HIDDEN,
            "--seed",
            "3",
            f"--token={HIDDEN}",
            f"opt.api_key={HIDDEN}",
            "--push_to_hub",
        ),
    ]
    assert redacted_arguments(["--token", "--verbose"]) == ["--token", "--verbose"]

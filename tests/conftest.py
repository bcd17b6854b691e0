"""Settings and fixtures that all tests share."""

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)

import pytest
import torch

# Two threads on a busy machine make tiny models many times slower.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What starts processes or a browser is slow."""
    for item in items:
        starts = {"run_fresh", "run_script"} & set(getattr(item, "fixturenames", ()))
        if starts or item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _collect_no_imports():
    """Every `Trainer.train` collects garbage, which takes half a second among all that is imported: leave that out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _drawn_fingerprints():
    """A data set's fingerprint names its cache file. It is computed from the source of what made the set, in a quarter of
    the time of a short training run; the sets of tests have no such files."""
    from datasets import arrow_dataset, fingerprint

    with pytest.MonkeyPatch.context() as patch:
        for module in (arrow_dataset, fingerprint):
            patch.setattr(module, "update_fingerprint", lambda *_: fingerprint.generate_random_fingerprint())
        yield


@pytest.fixture(scope="session")
def tofu_dir() -> Path:
    """The folder with the TOFU files."""
    folder = REPOSITORY / os.environ.get("WAGLE_TOFU_DIR", "../shared/data/tofu")
    if not folder.is_dir():
        pytest.skip(f"no TOFU files in {folder}: set WAGLE_TOFU_DIR")
    return folder


@pytest.fixture(scope="module", params=["on the CPU", "elsewhere"])
def anywhere(request):
    """Runs a test twice: the second time by the operations that are used on other devices than the CPU."""
    from wagle_trainer.masking import bits

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "elsewhere":
            patch.setattr(bits, "on_cpu", lambda tensor: False)
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Sums in another order would be other weights; and matrices this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ForkServer:
    """A process that has imported the modules, and forks others: `tests/fork_server.py`."""

    def __init__(self, *modules: str):
        command = [sys.executable, str(REPOSITORY / "tests" / "fork_server.py"), *modules]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, programs: list[dict]) -> list[tuple[int, str]]:
        """(exit code, output) of each program."""
        print(json.dumps(programs), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the fork server ended: see stderr"
        return [(code, output) for code, output in json.loads(answer)]

    def end(self) -> None:
        """Its children end, too."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="session")
def fork_server():
    """fork_server(*modules) -> the one that has imported these modules."""
    servers: dict[tuple[str, ...], ForkServer] = {}

    def find(*modules: str) -> ForkServer:
        if modules not in servers:
            servers[modules] = ForkServer(*modules)
        return servers[modules]

    yield find
    for server in servers.values():
        server.end()


@pytest.fixture(scope="session")
def damage():
    """damage(content, draw) -> bytes after one or two accidents: flipped, changed, lost, doubled or inserted bytes."""
    import random

    def harm(content: bytes, draw: random.Random) -> bytes:
        for _ in range(draw.randint(1, 2)):
            start = draw.randrange(len(content))
            stop = start + draw.choice([1, 1, 1, 8, 64])
            part = content[start:stop]
            replaced = draw.choice(
                [
                    bytes([part[0] ^ 1 << draw.randrange(8)]) + part[1:],
                    bytes(draw.randrange(256) for _ in part),
                    str(draw.choice([0, 9, 10**9, 10**18])).encode(),
                    b"",
                    part + part,
                ]
            )
            content = content[:start] + replaced + content[stop:]
            if not content or draw.random() < 0.1:
                return content[:start]
        return content

    return harm


@pytest.fixture(scope="session")
def run_fresh(fork_server):
    """run_fresh(codes, *imported) -> (exit code, output) of each, where only the modules `imported` were imported before."""

    def run(codes: list[str], *imported: str) -> list[tuple[int, str]]:
        server = fork_server(*imported)
        return [server.run([{"code": code}])[0] for code in codes]

    return run


@pytest.fixture(scope="session")
def run_script(fork_server):
    """run_script(script, *arguments, processes, **environment): on the CPU, as torchrun starts `processes` of them."""
    from torch.distributed import TCPStore

    def run(script: Path, *arguments, processes: int, **environment: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "FSDP"))}
        shared = inherited | {"OMP_NUM_THREADS": "1"} | (environment or {"ACCELERATE_USE_CPU": "1"})
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        if processes > 1:
            shared |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, on a port that is free
                "TORCHELASTIC_RESTART_COUNT": "0",
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
            }
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
        program = {"script": str(script), "arguments": list(map(str, arguments))}
        server = fork_server("wagle_trainer.trainer", "wagle_trainer.evaluation.attacks")
        results = server.run([program | {"environment": shared | rank} for rank in ranks])
        failed = {rank: output[-4000:] for rank, (code, output) in enumerate(results) if code}
        assert not failed, "\n".join(f"rank {rank}: {output}" for rank, output in failed.items())

    return run


# Tiny models and sets for everything that trains: every word is a token, and one test takes about a second.

WORDS = [f"w{index}" for index in range(52)]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture(scope="session")
def make_word_tokenizer():
    """make_word_tokenizer() -> a tokenizer that knows w0 to w51; no chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make() -> PreTrainedTokenizerFast:
        special = ["<pad>", "<eos>", "<unk>", "<|user|>", "<|assistant|>"]
        core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        core.add_special_tokens(special)
        return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")

    return make


@pytest.fixture
def word_tokenizer(make_word_tokenizer):
    """A new one for each test, since trainers write to it."""
    return make_word_tokenizer()


@pytest.fixture
def chat_tokenizer(word_tokenizer):
    """`word_tokenizer` with a chat template."""
    word_tokenizer.chat_template = CHAT_TEMPLATE
    return word_tokenizer


@pytest.fixture(scope="session")
def make_llama():
    """make_llama(seed) -> a two-layer Llama of 25,000 weights for `word_tokenizer`; the same for the same arguments."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **config):
        torch.manual_seed(seed)
        settings = {
            "vocab_size": 57,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        }
        return LlamaForCausalLM(LlamaConfig(**(settings | config)))

    return make


@pytest.fixture(scope="session")
def make_taught_llama(make_llama):
    """make_taught_llama(tokenizer, rows, hidden_size, learning_rate) -> a two-layer Llama that knows the answers of the rows by heart."""
    from wagle_trainer.data import QAFormat

    def make(tokenizer, rows, hidden_size: int, learning_rate: float):
        model = make_llama(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_attention_heads=4,
            initializer_range=0.02,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        qa = QAFormat.for_tokenizer(tokenizer)
        examples = [qa.encode(row["question"], row["answer"]) for row in rows]
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
        length, steps, size = max(len(example["input_ids"]) for example in examples), 2 * len(examples), 25
        ids, labels = (
            torch.tensor([example[key] + [fill] * (length - len(example[key])) for example in examples])
            for key, fill in (("input_ids", tokenizer.pad_token_id), ("labels", -100))
        )
        real = (ids != tokenizer.pad_token_id).long()
        for step in range(steps):
            chosen = torch.randperm(len(ids))[:size]
            model(input_ids=ids[chosen], attention_mask=real[chosen], labels=labels[chosen]).loss.backward()
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_gpt2():
    """make_gpt2(seed) -> a two-layer GPT-2 (absolute positions, tied embeddings, dropout) for `word_tokenizer`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(seed: int = 0, **config):
        torch.manual_seed(seed)
        settings = {
            "vocab_size": 57,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "initializer_range": 0.2,
            "bos_token_id": None,
            "eos_token_id": 1,
        }
        return GPT2LMHeadModel(GPT2Config(**(settings | config)))

    return make


@pytest.fixture(scope="session")
def make_examples():
    """make_examples(number, seed) -> [(ids, labels), ...] of different lengths; the first tokens have no label."""
    import random

    def make(number: int = 8, seed: int = 0, prompt: tuple[int, int] = (1, 4), answer: tuple[int, int] = (1, 6)):
        draw = random.Random(seed)
        examples = []
        for _ in range(number):
            length = draw.randint(*prompt)
            ids = [draw.randrange(5, 57) for _ in range(length + draw.randint(*answer))]
            examples.append((ids, [-100] * length + ids[length:]))
        return examples

    return make


@pytest.fixture(scope="session")
def pad_batches():
    """pad_batches(examples, size, side) -> batches of `make_examples`, padded with token 0."""

    def pad(examples, size: int = 1, side: str = "right"):
        batches = []
        for start in range(0, len(examples), size):
            rows = examples[start : start + size]
            length = max(len(ids) for ids, _ in rows)
            batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
            for ids, labels in rows:
                for key, values, fill in (
                    ("input_ids", ids, 0),
                    ("attention_mask", [1] * len(ids), 0),
                    ("labels", labels, -100),
                ):
                    padding = [fill] * (length - len(ids))
                    batch[key].append(values + padding if side == "right" else padding + values)
            batches.append({key: torch.tensor(values) for key, values in batch.items()})
        return batches

    return pad


@pytest.fixture(scope="session")
def as_batches(pad_batches):
    """as_batches(examples, size, **share) -> LengthSortedBatches of `make_examples`."""
    from datasets import Dataset

    from wagle_trainer.data.length_sorted_batches import LengthSortedBatches

    def make(examples, size: int, **share):
        columns = {"input_ids": [ids for ids, _ in examples], "labels": [labels for _, labels in examples]}
        return LengthSortedBatches(
            Dataset.from_dict(columns),
            size,
            lambda rows: pad_batches([(row["input_ids"], row["labels"]) for row in rows], len(rows))[0],
            **share,
        )

    return make


@pytest.fixture(scope="session")
def log_probs_by_hand():
    """log_probs_by_hand(model, ids, labels) -> the target tokens' log-probabilities, from one unpadded forward pass."""

    def compute(model, ids, labels):
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        return torch.stack([logits[t - 1].log_softmax(-1)[labels[t]] for t in range(1, len(ids)) if labels[t] != -100])

    return compute


@pytest.fixture(scope="session")
def make_set():
    """make_set(rows, form, seed) -> random questions and answers of different lengths in one of TRL's formats."""
    import random

    from datasets import Dataset

    def make(rows: int = 8, form: str = "prompt_completion", seed: int = 0) -> Dataset:
        draw = random.Random(seed)
        questions, answers, others = (
            [" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(rows)] for _ in range(3)
        )
        user = [[{"role": "user", "content": text}] for text in questions]
        said, otherwise = ([[{"role": "assistant", "content": text}] for text in texts] for texts in (answers, others))
        columns = {
            "text": {"text": [f"{q} {a}" for q, a in zip(questions, answers, strict=True)]},
            "messages": {"messages": [q + a for q, a in zip(user, said, strict=True)]},
            "prompt_completion": {"prompt": questions, "completion": [f" {text}" for text in answers]},
            "conversational": {"prompt": user, "completion": said},
            "preference": {
                "prompt": questions,
                "chosen": [f" {text}" for text in others],
                "rejected": [f" {text}" for text in answers],
            },
            "conversational_preference": {"prompt": user, "chosen": otherwise, "rejected": said},
        }
        if form == "tokenized":
            ids = [
                [5 + WORDS.index(w) for w in f"{q} {a}".split()] + [1] for q, a in zip(questions, answers, strict=True)
            ]
            prompts = [len(q.split()) for q in questions]
            labels = [[-100] * n + row[n:] for n, row in zip(prompts, ids, strict=True)]
            return Dataset.from_dict({"input_ids": ids, "labels": labels})
        return Dataset.from_dict(columns[form])

    return make


@pytest.fixture(scope="session")
def muse_rows() -> dict[str, list[dict[str, str]]]:
    """Rows for every split of MUSE, in words of `word_tokenizer`: three in most, two in the examples."""
    import random

    draw = random.Random(0)

    def words(fewest: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(fewest, most)))

    texts = [{"text": words(20, 40)} for _ in range(12)]
    questions = [{"question": words(2, 5), "answer": words(2, 4)} for _ in range(10)]
    return {
        "raw/forget": texts[:3],
        "raw/retain1": texts[3:6],
        "raw/holdout": texts[6:9],
        "train/full": texts[:6],
        "verbmem/forget": [{"prompt": words(5, 9), "gt": words(10, 20)} for _ in range(3)],
        "knowmem/forget_qa": questions[:3],
        "knowmem/retain_qa": questions[3:6],
        "knowmem/forget_qa_icl": questions[6:8],
        "knowmem/retain_qa_icl": questions[8:],
        "privleak/forget": texts[:3],
        "privleak/holdout": texts[6:9],
        "scal/forget_1": texts[:2],
        "scal/forget_2": texts[:4],
        "sust/forget_1": texts[:2],
        "sust/forget_2": texts[2:4],
    }


@pytest.fixture
def muse_folder(tmp_path, muse_rows) -> Path:
    """`muse_rows` as a folder in MUSE's layout."""
    for split, rows in muse_rows.items():
        path = tmp_path / "muse" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path / "muse"


@pytest.fixture
def arguments(tmp_path):
    """arguments(**changes) -> WagleConfig for a short, silent run on the CPU in float32."""
    from wagle_trainer import WagleConfig

    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 5e-3,
            "weight_decay": 0.1,
            "lr_scheduler_type": "constant",
            "density": 0.3,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
        }
        return WagleConfig(**(settings | changes))

    return make


@pytest.fixture(scope="session")
def assert_only_selected_moved():
    """assert_only_selected_moved(before, model, mask): unselected weights bit-identical, selected ones not."""

    def check(before, model, mask):
        for name, parameter in model.named_parameters():
            moved = before[name].view(torch.int32) != parameter.detach().view(torch.int32)
            selected = mask[name] if name in mask else torch.zeros_like(moved)
            assert not bool((moved & ~selected).any()), f"unselected weights of {name} moved"
        total = sum(int(((before[n] != p.detach()) & mask[n]).sum()) for n, p in model.named_parameters() if n in mask)
        # A token that never occurs has an embedding row that only decay moves; the rest must have moved.
        assert total > 0.5 * mask.num_selected

    return check


@pytest.fixture(scope="session")
def weights_of():
    """weights_of(model) -> a copy of its weights by name."""
    return lambda model: {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

"""Uploads to the Hub: what each strategy brings there, and that a Hub that fails costs lines, never the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

import trainwright
from trainer import tiny
from trainer.hub_server import FakeHub, serve
from trainwright.integrations import addresses, hub


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the store behind the Hub; the server has LFS alone
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(hub, "PATIENCE_SECONDS", 5.0)
        monkeypatch.setattr("trainwright.trainer.trainer.PATIENCE_SECONDS", 5.0)
        monkeypatch.setattr("trainwright.trainer.hub_pushes.PATIENCE_SECONDS", 5.0)
        addresses.forget()
        yield server
        addresses.forget()


def make(folder: Path, **changes: Any) -> Any:
    given = {
        "output_dir": str(folder / "my-model"), "use_cpu": True, "max_steps": 4, "save_steps": 2, "disable_tqdm": True,
        "push_to_hub": True, "hub_token": "hf_secret", **changes,
    }  # fmt: skip
    return trainwright.Trainer(
        tiny.classifier(), trainwright.TrainingArguments(**given), train_dataset=tiny.vectors(64)
    )


MODEL, CARD = "model.safetensors", "README.md"
STEP_2, STEP_4 = "Training in progress, step 2", "Training in progress, step 4"
STRATEGIES: dict[str, tuple[list[str], set[str]]] = {
    "end": (["End of training"], set()),
    "every_save": ([STEP_2, STEP_4, "End of training"], set()),
    "checkpoint": (
        [STEP_2, f"{STEP_2}, checkpoint", STEP_4, f"{STEP_4}, checkpoint", "End of training"], {"last-checkpoint"}
    ),
    "all_checkpoints": (
        [STEP_2, f"{STEP_2}, checkpoint", STEP_4, f"{STEP_4}, checkpoint", "End of training"],
        {"checkpoint-2", "checkpoint-4"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_uploads_what_it_says(strategy: str, fake: FakeHub, tmp_path: Path) -> None:
    trainer = make(tmp_path, hub_strategy=strategy, hub_always_push=True, hub_private_repo=True)
    assert trainer.hub_model_id == "me/my-model"
    trainer.train()
    info = trainer.push_to_hub(dataset_tags="mine", tags=["extra"])
    messages, folders = STRATEGIES[strategy]
    assert [commit.message for commit in fake.commits] == messages
    tree = fake.tree()
    assert {name.partition("/")[0] for name in tree if "/" in name} == folders
    assert {MODEL, CARD, "training_args.bin"} <= {name for name in tree if "/" not in name}
    assert not [name for name in tree if name.startswith(("_", ".", "optimizer", "trainer_state"))]
    for folder in folders:
        assert {f"{folder}/optimizer.pt", f"{folder}/trainer_state.json", f"{folder}/{MODEL}"} <= tree.keys()
    saved = load(tree[MODEL])
    assert all(torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items())
    assert b"extra" in tree[CARD]
    assert fake.repositories["me/my-model"]["visibility"] == "private"
    assert fake.tokens <= {"Bearer hf_secret", None}
    assert (info.oid, addresses.model()) == (f"{len(messages):040x}", f"{fake.url}/me/my-model")
    assert not (tmp_path / "my-model" / "_uploads").exists()


def test_the_model_of_a_save_is_that_of_its_step(fake: FakeHub, tmp_path: Path) -> None:
    """Though the checkpoint is deleted, and training goes on, while it waits for its upload."""
    trainer = make(tmp_path, hub_always_push=True, save_total_limit=1)
    trainer.train()
    first, second = (load(commit.files[MODEL]) for commit in fake.commits)
    kept = load((tmp_path / "my-model" / "checkpoint-4" / MODEL).read_bytes())
    assert not (tmp_path / "my-model" / "checkpoint-2").exists()
    assert all(torch.equal(second[name], kept[name]) for name in kept)
    assert any(not torch.equal(first[name], kept[name]) for name in kept)


def test_a_save_is_skipped_while_an_upload_is_under_way(fake: FakeHub, tmp_path: Path) -> None:
    def slow(method: str, path: str, nth: int) -> None:
        if "/commit/" in path:
            time.sleep(1)

    fake.fault = slow
    make(tmp_path, max_steps=6, save_steps=1).train()
    assert 1 <= len(fake.commits) < 6


def test_the_revision_and_the_name_are_those_of_the_arguments(fake: FakeHub, tmp_path: Path) -> None:
    trainer = make(tmp_path, hub_model_id="team/other", hub_revision="dev", hub_strategy="end")
    trainer.train()
    assert fake.commits == []
    trainer.save_model()
    assert [(commit.revision, commit.message) for commit in fake.commits] == [("dev", "Model save")]
    assert list(fake.repositories) == ["team/other"]
    assert trainer.push_to_hub("again", blocking=False).result(20).commit_message == "again"


def test_a_cut_upload_is_resumed_and_sends_no_file_twice(fake: FakeHub, tmp_path: Path) -> None:
    cuts: list[str] = []

    def fault(method: str, path: str, nth: int) -> int | None:
        if method == "PUT" and len(cuts) < 8 and (not cuts or path == cuts[0]):
            cuts.append(path)
            return 0
        return None

    fake.fault = fault
    trainer = make(tmp_path, hub_strategy="end")
    trainer.train()
    assert trainer.push_to_hub() is not None
    sent = [path for method, path in fake.requests if method == "PUT" and path not in cuts]
    assert len(cuts) == 8
    assert len(sent) == len(set(sent))
    assert MODEL in fake.tree()


@pytest.mark.parametrize("status", [409, 429, 503])
def test_what_may_pass_is_tried_again(status: int, fake: FakeHub, tmp_path: Path, capsys: Any) -> None:
    fake.fault = lambda method, path, nth: status if "/commit/" in path and nth <= 2 else None
    trainer = make(tmp_path, hub_strategy="end")
    trainer.train()
    assert trainer.push_to_hub() is not None
    assert [commit.message for commit in fake.commits] == ["End of training"]
    assert "not uploaded" not in capsys.readouterr().err


def test_a_wrong_token_costs_lines_and_the_run_succeeds(fake: FakeHub, tmp_path: Path, capsys: Any) -> None:
    fake.fault = lambda method, path, nth: 401
    trainer = make(tmp_path, hub_model_id="me/my-model", hub_strategy="checkpoint", hub_always_push=True)
    assert trainer.train().global_step == 4
    assert trainer.push_to_hub() is None
    said = capsys.readouterr().err
    folder = tmp_path / "my-model"
    assert f"hub: not uploaded; run: hf upload me/my-model {folder} . --exclude '_*' --exclude 'checkpoint-*'" in said
    assert f"hub: not uploaded; run: hf upload me/my-model {folder}/checkpoint-4 last-checkpoint" in said
    assert "cannot create the repository, and the run goes on" in said
    assert "hf_secret" not in said
    assert not (folder / "_uploads").exists()


def test_a_hub_that_is_away_at_the_end_is_given_up_with_the_command(
    fake: FakeHub, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainwright.trainer.trainer.PATIENCE_SECONDS", 0.5)
    fake.fault = lambda method, path, nth: 0 if "/commit/" in path else None
    start = time.monotonic()
    make(tmp_path).train()
    said = capsys.readouterr().err
    assert time.monotonic() - start < 20
    assert said.count("the Hub cannot be reached now, and training goes on") == 1
    assert "hub: not uploaded; run: hf upload me/my-model" in said


def test_the_address_comes_from_hf_endpoint(fake: FakeHub, tmp_path: Path) -> None:
    """In a process of its own, as a script: the token from HF_TOKEN, as a TrainingJob gives it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom trainer.test_hub import make\n"
        "trainer = make(Path(sys.argv[1]), hub_token=None, hub_strategy='end')\n"
        "trainer.train()\ntrainer.push_to_hub()\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": fake.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_of_the_secret",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert MODEL in fake.tree()
    assert "Bearer hf_of_the_secret" in fake.tokens


def test_nothing_of_the_hub_is_imported_unless_it_is_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom trainwright import Trainer, TrainingArguments\nprint('huggingface_hub.hf_api' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"

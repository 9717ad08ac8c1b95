"""What a checkpoint holds, read by transformers too; and what is said of one that does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_model, save_file
from torch import nn

from trainer.data_cases import loader_for
from trainer.resume_job import Net, make_trainer, weights
from trainwright.arguments import TrainingArguments
from trainwright.checkpoint.snapshot import load_training_state, restore_position
from trainwright.checkpoint.weights import load_weights, save_weights
from trainwright.contract import UserError
from trainwright.data.epochs import Epochs, batches
from trainwright.devices.seeding import rng_state
from trainwright.trainer.trainer import Trainer


class Tied(nn.Module):
    """Two names for one tensor, two views of one storage, and state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        both = torch.arange(6.0)
        self.register_buffer("left", both[:4])
        self.register_buffer("right", both[2:])
        self.note = "none"

    def get_extra_state(self) -> Any:
        return {"note": self.note}

    def set_extra_state(self, state: Any) -> None:
        self.note = state["note"]


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=6)
    )


@pytest.mark.parametrize("mode", [0o755, 0o700])
@pytest.mark.parametrize("model", [Tied, gpt2])
def test_weights_can_be_read_by_all_who_may_read_the_folder(model: Any, mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    save_weights(model(), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    model = Tied()
    model.note = "kept"
    save_weights(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["embedding.weight", "left", "right"]
    other = Tied()
    load_weights(other, tmp_path)
    assert torch.equal(other.head.weight, model.embedding.weight)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.right, torch.tensor([2.0, 3.0, 4.0, 5.0]))
    assert other.note == "kept"


def test_safetensors_own_loader_reads_a_plain_module(tmp_path: Path) -> None:
    model, other = Net(), Net()
    save_weights(model, tmp_path)
    load_model(other, str(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_wrapped_model_is_saved_under_its_own_names(tmp_path: Path) -> None:
    model, other = Net(), Net()
    save_weights(nn.DataParallel(model), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(model.state_dict())
    load_weights(nn.DataParallel(other), tmp_path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("sharded", [False, True])
def test_a_transformers_model_is_read_by_from_pretrained(sharded: bool, tmp_path: Path) -> None:
    model, other = gpt2(), gpt2()
    if sharded:
        model.save_pretrained(tmp_path, max_shard_size="1KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    else:
        save_weights(model, tmp_path)
    load_weights(other, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
        assert torch.equal(theirs.state_dict()[name], value)


def test_weights_of_older_checkpoints_are_read_without_running_code(tmp_path: Path) -> None:
    model, other = Net(), Net()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    load_weights(other, tmp_path)
    assert torch.equal(other.outer.weight, model.outer.weight)
    torch.save({"x": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="the weights cannot be read"):
        load_weights(other, tmp_path)


def test_another_models_checkpoint_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    class Larger(Net):
        def __init__(self) -> None:
            super().__init__()
            self.outer, self.more = nn.Linear(16, 4), nn.Linear(2, 2)

    save_weights(Net(), tmp_path)
    model = Larger()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: is a checkpoint of another model: missing more.weight; missing more.bias; outer.bias is (3,) "
        "there and (4,) here; outer.weight is (3, 16) there and (4, 16) here; create the model as it was trained, or "
        "train from the start in another output_dir"
    )
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


class Resizing(nn.Linear):
    """A module whose buffer grows while it trains, and which knew its weights by another name once."""

    def __init__(self, seen: int = 0) -> None:
        super().__init__(2, 2)
        self.register_buffer("seen", torch.arange(seen))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.seen = torch.empty_like(state_dict[f"{prefix}seen"])
        if f"{prefix}kernel" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}kernel")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Whole(Resizing):
    """The same by the method that it is called by."""

    _load_from_state_dict = nn.Module._load_from_state_dict

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self.seen = torch.empty_like(state_dict["seen"])
        super().load_state_dict(state_dict, strict, assign)


@pytest.mark.parametrize("kind", [Resizing, Whole])
def test_a_module_loads_in_its_own_way(kind: type, tmp_path: Path) -> None:
    trained, fresh = kind(seen=5), kind()
    save_weights(trained, tmp_path)
    load_weights(fresh, tmp_path)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())


def test_names_that_a_module_knows_are_loaded_and_others_refused(tmp_path: Path) -> None:
    before = {"0.kernel": torch.ones(2, 2), "0.bias": torch.ones(2), "0.seen": torch.arange(3)}
    save_file(before, tmp_path / "model.safetensors")
    load_weights(model := nn.Sequential(Resizing()), tmp_path)
    assert torch.equal(model[0].weight, before["0.kernel"])
    with pytest.raises(UserError, match=r"missing 1.weight; missing 1.bias"):
        load_weights(nn.Sequential(Resizing(), nn.Linear(2, 2)), tmp_path)
    wide = Resizing()
    wide.bias = nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match=r"0.bias is \(2,\) there and \(3,\) here"):
        load_weights(nn.Sequential(wide), tmp_path)


def test_of_many_differences_ten_are_listed(tmp_path: Path) -> None:
    save_weights(nn.Sequential(*(nn.Linear(1, 1) for _ in range(9))), tmp_path)
    with pytest.raises(UserError, match=r"unexpected 4.weight and 8 more; create"):
        load_weights(nn.Sequential(), tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    make_trainer(str(output), max_steps=2, save_steps=2, fp16=True).train()
    return output / "checkpoint-2"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "checkpoint-2")
    return tmp_path / "checkpoint-2"


def test_the_files_are_hugging_faces(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    ours = {"trainwright_manifest.json", "training_args.json", "data_state.pt"}
    theirs = {"model.safetensors", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "trainer_state.json"}
    theirs |= {"training_args.bin"}
    assert names == ours | theirs
    state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    assert (state.global_step, state.max_steps, len(state.log_history)) == (2, 2, 2)
    assert json.loads((checkpoint / "training_args.json").read_text())["max_steps"] == 2


def test_scripts_find_the_arguments_as_a_pickle_and_nothing_reads_it(checkpoint: Path, tmp_path: Path) -> None:
    args = torch.load(checkpoint / "training_args.bin", weights_only=False)
    assert type(args) is TrainingArguments
    assert args.to_dict() == json.loads((checkpoint / "training_args.json").read_text())
    (checkpoint / "training_args.bin").write_bytes(b"whatever")
    (checkpoint / "trainwright_manifest.json").unlink()
    make_trainer(str(tmp_path / "out"), max_steps=3, fp16=True).train(resume_from_checkpoint=str(checkpoint))


def test_arguments_that_cannot_be_pickled_are_left_out_of_no_checkpoint(tmp_path: Path) -> None:
    class Own(TrainingArguments):
        pass

    trainer = make_trainer(str(tmp_path))
    trainer.args.__class__ = Own
    trainer.save_model()
    assert (tmp_path / "training_args.json").is_file()
    assert not (tmp_path / "training_args.bin").exists()


def test_nothing_secret_is_saved(tmp_path: Path) -> None:
    trainer = make_trainer(str(tmp_path))
    trainer.args.hub_token = "hf_secret"
    trainer.create_optimizer_and_scheduler(1)
    trainer._save_checkpoint(trainer.model, trial=None)
    assert (tmp_path / "checkpoint-0" / "training_args.json").is_file()
    assert torch.load(tmp_path / "checkpoint-0" / "training_args.bin", weights_only=False).hub_token == "<HUB_TOKEN>"
    assert trainer.args.hub_token == "hf_secret"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


SHARED: dict[str, Any] = {
    "max_steps": 5,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}
SAMPLES = [{"input_ids": [i % 11, 1, 2], "labels": [i % 11, 1, 2]} for i in range(9)]


@pytest.mark.parametrize("interrupted_run_is_ours", [True, False])
def test_either_trainer_goes_on_from_the_others_checkpoint(interrupted_run_is_ours: bool, tmp_path: Path) -> None:
    """To the weights that it would have had itself: the same order, dropout, optimizer and schedule."""
    ours, theirs = (Trainer, TrainingArguments), (transformers.Trainer, transformers.TrainingArguments)
    first, second = (ours, theirs) if interrupted_run_is_ours else (theirs, ours)
    torch.manual_seed(0)
    model = gpt2()
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    started = first[0](model, first[1](str(tmp_path / "first"), **SHARED), train_dataset=SAMPLES)
    started.train()
    other = gpt2()
    other.load_state_dict(initial)
    resumed = second[0](other, second[1](str(tmp_path / "second"), **SHARED), train_dataset=SAMPLES)
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    assert resumed.state.global_step == 5
    for name, value in started.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value)


def test_a_checkpoint_of_the_model_alone_warns_when_resumed(tmp_path: Path) -> None:
    make_trainer(str(tmp_path), max_steps=2, save_only_model=True, save_steps=2).train()
    folder = tmp_path / "checkpoint-2"
    assert not {"optimizer.pt", "rng_state.pth"} & {path.name for path in folder.iterdir()}
    with pytest.warns(UserWarning, match="holds the model alone"):
        make_trainer(str(tmp_path), max_steps=3).train(resume_from_checkpoint=str(folder))


DAMAGES = ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "data_state.pt", "trainer_state.json"]


@pytest.mark.parametrize("name", [*DAMAGES, "model.safetensors"])
def test_a_damaged_file_is_named_in_one_line(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "trainwright_manifest.json").unlink()  # whose hashes would tell first
    (checkpoint / name).write_bytes(b"{not what it was")
    trainer = make_trainer(str(tmp_path / "out"), fp16=True)
    with pytest.raises(UserError) as caught:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert name.split(".")[0] in str(caught.value) or "weights cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_optimizer_of_another_kind_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    trainer = make_trainer(str(tmp_path / "out"), fp16=True, weight_decay=0.1)
    trainer.create_optimizer()
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    trainer.lr_scheduler = None
    with pytest.raises(UserError, match=r"optimizer.pt: does not match this run or is damaged"):
        load_training_state(trainer, checkpoint)


def test_another_world_size_draws_new_numbers_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    (checkpoint / "trainwright_manifest.json").unlink()
    trainer = make_trainer(str(tmp_path / "out"))
    with pytest.warns(UserWarning, match="was written by 2 processes, this run has 1: the sample order continues"):
        restore_position(trainer, checkpoint)
    first = torch.rand(3)
    with pytest.warns(UserWarning, match="was written by 2 processes"):
        restore_position(trainer, checkpoint)
    assert torch.equal(torch.rand(3), first)
    trainer.args.full_determinism = True
    with pytest.raises(UserError, match="full_determinism needs 2 processes again for the same results"):
        restore_position(trainer, checkpoint)


def test_on_a_nodes_own_disk_the_manifest_tells_the_world_size(checkpoint: Path, tmp_path: Path) -> None:
    """Of four ranks on two nodes, rank 3 finds only the files of its node."""
    manifest = checkpoint / "trainwright_manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "worldSize": 4}))
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_3.pth")
    args = SimpleNamespace(world_size=4, process_index=3, ignore_data_skip=False)
    torch.manual_seed(1)
    restore_position(SimpleNamespace(args=args), checkpoint)
    saved = torch.load(checkpoint / "rng_state_3.pth", weights_only=False)
    assert torch.equal(torch.get_rng_state(), saved["cpu"])


def test_another_world_size_keeps_the_order_of_the_samples(tmp_path: Path) -> None:
    def loader(rank: int, world_size: int, batch_size: int) -> Any:
        torch.manual_seed(42)
        return loader_for(list(range(16)), rank, world_size, batch_size)

    alone = loader(0, 1, 4)
    order = [sample for batch in batches(alone, epoch=0) for sample in batch]
    torch.save(alone.state_dict(), tmp_path / "data_state.pt")
    torch.save(rng_state(), tmp_path / "rng_state.pth")
    shares = []
    for rank in range(2):
        resumed = loader(rank, 2, 2)
        args = SimpleNamespace(world_size=2, process_index=rank, seed=42, full_determinism=False)
        state, strategy = SimpleNamespace(global_step=2), SimpleNamespace(data_rank=rank)
        trainer = SimpleNamespace(args=args, state=state, _strategy=strategy)
        with pytest.warns(UserWarning, match="was written by 1 processes, this run has 2"):
            restore_position(trainer, tmp_path, Epochs(resumed))
        shares.append(list(batches(resumed, epoch=0, skip=2)))
    assert [sample for turn in zip(*shares, strict=True) for batch in turn for sample in batch] == order[8:]


def test_ignore_data_skip_starts_the_epoch_again(checkpoint: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"fp16": True, "max_steps": 3, "save_strategy": "no"}
    skipping, ignoring = (
        make_trainer(str(tmp_path / "out"), ignore_data_skip=ignore, **arguments) for ignore in (False, True)
    )
    for trainer in (skipping, ignoring):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not torch.equal(weights(skipping)["inner.weight"], weights(ignoring)["inner.weight"])


def test_tokenizer_and_configuration_are_beside_the_weights(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Any) -> None:
            (Path(folder) / "tokenizer.json").write_text("{}")

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(gpt2(), args, processing_class=Tokenizer(), train_dataset=[1])
    trainer.save_model()
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "training_args.json",
    } <= names

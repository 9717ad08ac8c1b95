"""What the launcher puts into the environment of its ranks, by runtime and vendor."""

import sys
from types import ModuleType

import pytest

from trainwright.contract import UserError
from trainwright.launch import runtime
from trainwright.launch.rendezvous import Place

PLACE = Place(nodes=2, per_node=4, node_rank=1, master="host-0", port=29400)


def prepared(**environment):
    place = runtime.prepare(environment, PLACE, attempt=3)
    return place, environment


@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_gpus_have_their_collectives_recorded(vendor, tmp_path):
    place, environment = prepared(TRAINWRIGHT_VENDOR=vendor, TRAINWRIGHT_OUTPUT_DIR=str(tmp_path))
    assert place == PLACE
    assert environment["TORCH_FR_DUMP_ON_TIMEOUT"] == "1"
    assert int(environment["TORCH_FR_BUFFER_SIZE"]) > 0
    assert environment["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "flight-recorder" / "attempt-3-rank-")
    assert (tmp_path / "flight-recorder").is_dir()


@pytest.mark.parametrize(
    "given", [{"TORCH_FR_BUFFER_SIZE": "7"}, {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}, {"NCCL_DEBUG": "INFO"}]
)
def test_what_the_pool_or_the_job_sets_stays_under_its_newer_and_older_name(given, tmp_path):
    _, environment = prepared(TRAINWRIGHT_VENDOR="nvidia", TRAINWRIGHT_OUTPUT_DIR=str(tmp_path), **given)
    assert given.items() <= environment.items()
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" in given:
        assert "TORCH_FR_BUFFER_SIZE" not in environment


@pytest.mark.parametrize("told", [{}, {"TRAINWRIGHT_VENDOR": "cpu", "TRAINWRIGHT_RUNTIME": "torchrun"}])
def test_cpus_get_nothing_of_it(told):
    place, environment = prepared(**told)
    assert place == PLACE
    assert environment == {**told, "USE_TORCH_XLA": "0"}


def test_an_output_that_cannot_be_written_is_no_concern_of_the_recorder(tmp_path):
    (tmp_path / "file").write_text("")
    _, environment = prepared(TRAINWRIGHT_VENDOR="amd", TRAINWRIGHT_OUTPUT_DIR=str(tmp_path / "file"))
    assert "TORCH_FR_DUMP_TEMP_FILE" in environment


def test_torch_xla_has_one_process_for_a_host():
    place, environment = prepared(TRAINWRIGHT_RUNTIME="torch_xla", TRAINWRIGHT_VENDOR="tpu")
    assert (place.per_node, place.nodes, place.node_rank) == (1, 2, 1)
    assert environment["USE_TORCH_XLA"] == "1"


class Library(ModuleType):
    """TorchTPU's function as it was seen: it takes ``nproc_per_node``, and raises ValueError where something lacks."""

    def __init__(self, error=None):
        super().__init__("torch.tpu.distributed")
        self.error, self.asked = error, []

    def set_tpu_launch_env(self, *, nnodes=None, nproc_per_node=None):
        self.asked.append((nnodes, nproc_per_node))
        if self.error:
            raise ValueError(self.error)


def test_torchtpu_sets_what_its_ranks_agree_on(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "torch.tpu.distributed", library)
    place, _ = prepared(TRAINWRIGHT_RUNTIME="torchtpu", TRAINWRIGHT_VENDOR="tpu")
    assert place == PLACE
    assert library.asked == [(None, 4)]


NO_HOSTS = (
    "set_tpu_launch_env(): expected environment variable TPU_WORKER_HOSTNAMES to be a comma-separated list of worker "
    "hostnames or IP addresses, got it as unset"
)  # torch-tpu 0.2.0, with JOB_COMPLETION_INDEX alone


def test_what_torchtpu_misses_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.tpu.distributed", Library(NO_HOSTS))
    with pytest.raises(UserError, match=r"accelerator: TorchTPU cannot be started here: .*TPU_WORKER_HOSTNAMES"):
        prepared(TRAINWRIGHT_RUNTIME="torchtpu")


def test_an_image_without_torchtpu_says_which_one_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.tpu.distributed", None)
    with pytest.raises(UserError, match=r"torchtpu is not in this image .*use an image of the target tpu"):
        prepared(TRAINWRIGHT_RUNTIME="torchtpu")


def test_an_unknown_runtime_is_named_beside_the_known_ones():
    with pytest.raises(UserError, match=r"TRAINWRIGHT_RUNTIME: 'jax' is not a runtime; .* torchtpu, torch_xla"):
        prepared(TRAINWRIGHT_RUNTIME="jax")

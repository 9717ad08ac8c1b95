"""A manifest as the operator thinks of it: every field where it belongs, every default, and refusals whole."""

from __future__ import annotations

import pytest

from builders import make_job
from trainwright_operator.api import names
from trainwright_operator.api.spec import Accelerator, Output, Problem, SecretKey, SpecError, parse_job, parse_pool


def test_a_small_job_has_the_defaults() -> None:
    job = make_job().build()
    assert (job.name, job.namespace, job.generation, job.deletion_timestamp) == ("gpt-corpus", "default", 1, None)
    spec = job.spec
    assert spec.output == Output(persistent_volume_claim={"claimName": "runs"}, sub_path="gpt-corpus")
    assert spec.accelerator == Accelerator()
    assert (spec.suspend, spec.max_restarts, spec.termination_grace_period_seconds) == (False, 3, 30)
    limits = (spec.active_deadline_seconds, spec.ttl_seconds_after_finished, spec.hang_timeout_seconds)
    assert limits == (None, None, None)
    assert (spec.offline, spec.delete_after_finished, spec.hub_token, spec.script) == (False, False, None, None)
    assert spec.training_arguments == {"max_steps": 200, "learning_rate": 3e-4}


def test_every_field_of_a_manifest_is_parsed() -> None:
    spec = (
        make_job()
        .nodes(2, 4)
        .with_("spec.accelerator.pool", "h100")
        .with_("spec.output", {"emptyDir": {}, "subPath": "team/run", "adopt": True, "asyncSave": True})
        .with_("spec.maxRestarts", 0)
        .with_("spec.activeDeadlineSeconds", 60)
        .with_("spec.ttlSecondsAfterFinished", 0)
        .with_("spec.deleteAfterFinished", True)
        .with_("spec.hangTimeoutSeconds", 600)
        .with_("spec.terminationGracePeriodSeconds", 120)
        .with_("spec.offline", True)
        .with_("spec.sample", {"prompts": ["a"]})
        .suspended()
        .build()
        .spec
    )
    assert spec.accelerator == Accelerator("h100", 2, 4)
    assert spec.output == Output(empty_dir={}, sub_path="team/run", adopt=True, async_save=True)
    assert spec.output.volume == {"emptyDir": {}}
    assert (spec.max_restarts, spec.active_deadline_seconds, spec.ttl_seconds_after_finished) == (0, 60, 0)
    assert (spec.delete_after_finished, spec.hang_timeout_seconds, spec.offline, spec.suspend) == (
        True,
        600,
        True,
        True,
    )
    assert spec.termination_grace_period_seconds == 120
    assert spec.sample == {"prompts": ["a"]}


def test_a_script_takes_the_place_of_model_dataset_and_task() -> None:
    spec = make_job().script(path="/src/train.py", args=["--x"]).build().spec
    assert spec.script == {"path": "/src/train.py", "args": ["--x"]}
    assert (spec.model, spec.dataset, spec.task) == (None, None, None)


def test_a_token_is_a_reference_and_no_argument() -> None:
    token = {"secretKeyRef": {"name": "hub", "key": "token"}}
    # The reference itself is refused until uploading is built, so it is read past the check.
    from trainwright_operator.api import spec as module

    read = module._job_spec(make_job().training(hubToken=token).manifest()["spec"], "x")
    assert read.hub_token == SecretKey("hub", "token")
    assert "hub_token" not in read.training_arguments


def test_a_pod_template_is_parsed_into_its_fields() -> None:
    template = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"x": "y"}},
        "image": "registry.example/trainer:1",
        "imagePullSecrets": [{"name": "pull"}],
        "resources": {"limits": {"memory": "4Gi"}},
        "env": [{"name": "A", "value": "1"}],
        "volumes": [{"name": "corpus", "emptyDir": {}}],
        "volumeMounts": [{"name": "corpus", "mountPath": "/data"}],
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"operator": "Exists"}],
        "serviceAccountName": "trainer",
    }
    read = make_job().with_("spec.podTemplate", template).build().spec.pod_template
    assert (read.labels, read.annotations) == ({"team": "a"}, {"x": "y"})
    assert (read.image, read.service_account_name) == ("registry.example/trainer:1", "trainer")
    assert read.volumes == ({"name": "corpus", "emptyDir": {}},)
    assert read.volume_mounts == ({"name": "corpus", "mountPath": "/data"},)
    assert (read.node_selector, read.tolerations) == ({"zone": "a"}, ({"operator": "Exists"},))


def test_rows_are_held_out_where_evaluation_has_none() -> None:
    job = make_job()
    evaluated = job.training(evalStrategy="steps")
    assert "validationFraction" not in job.build().spec.dataset
    assert evaluated.build().spec.dataset["validationFraction"] == 0.05
    for key, value in (("evalSource", "/e"), ("evalSplit", "test"), ("validationFraction", 0.2)):
        dataset = evaluated.with_(f"spec.dataset.{key}", value).build().spec.dataset
        assert dataset.get("validationFraction") == (0.2 if key == "validationFraction" else None)


def test_what_is_null_is_absent() -> None:
    job = make_job().with_("spec.accelerator", None).with_("spec.podTemplate", {"env": None}).training(seed=None)
    spec = job.with_("metadata.labels", None).build().spec
    assert spec.accelerator == Accelerator()
    assert "seed" not in spec.training_arguments


def test_a_null_in_a_models_configuration_is_a_value() -> None:
    spec = make_job().with_("spec.model.fromConfig.n_inner", None).build().spec
    assert spec.model["fromConfig"]["n_inner"] is None


def test_an_object_as_an_api_server_gives_it() -> None:
    status = {"state": "Running", "whatever": [1]}
    job = make_job().with_("metadata.managedFields", [{"manager": "kubectl"}]).with_("metadata.resourceVersion", "7")
    read = job.with_("metadata.deletionTimestamp", "2026-01-01T00:00:00Z").with_("status", status).build()
    assert read.status == status
    assert read.deletion_timestamp == "2026-01-01T00:00:00Z"


def test_a_generated_name_is_stood_in_for() -> None:
    job = make_job().without("metadata.name").with_("metadata.generateName", "try-").build()
    assert job.name == "try-00000"


def test_all_problems_are_raised_together() -> None:
    with pytest.raises(SpecError) as error:
        make_job().without("spec.output").training(maxSteps="many").named("A").build()
    assert [problem.path for problem in error.value.problems] == [
        *("metadata.name", "spec.trainingArguments.maxSteps", "spec.output"),
    ]
    assert isinstance(error.value.problems[0], Problem)
    assert str(error.value).count("\n") == 2


@pytest.mark.parametrize(
    "content", [None, [], "x", {}, {"kind": "Pod"}, {"kind": ["TrainingJob"]}, {"kind": "TrainingJob"}]
)
def test_what_is_no_job_is_refused_in_words(content: object) -> None:
    with pytest.raises(SpecError):
        parse_job(content)  # type: ignore[arg-type]


def pool(**spec: object) -> dict[str, object]:
    return {"apiVersion": names.API_VERSION, "kind": names.POOL_KIND, "metadata": {"name": "p"}, "spec": spec}


def test_the_fields_of_a_pool_are_parsed() -> None:
    tpu = parse_pool(pool(vendor="tpu", topology="4x4", chipsPerHost=4, slices=2, shmSize="16Gi"))
    assert (tpu.name, tpu.vendor, tpu.topology, tpu.chips_per_host, tpu.slices) == ("p", "tpu", "4x4", 4, 2)
    assert (tpu.runtime, tpu.per_node, tpu.shm_size, tpu.env) == (None, None, "16Gi", ())


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, "spec.vendor"),
        ({"vendor": "intel"}, "spec.vendor"),
        ({"vendor": "nvidia", "topology": "4x4"}, "spec.topology"),
        ({"vendor": "tpu", "topology": "4x4"}, "spec.chipsPerHost"),
        ({"vendor": "tpu", "topology": "4x", "chipsPerHost": 4}, "spec.topology"),
        ({"vendor": "cpu", "runtime": "torch_xla"}, "spec.runtime"),
        ({"vendor": "cpu", "perNode": 0}, "spec.perNode"),
    ],
)
def test_a_pool_that_cannot_exist_is_refused_at_its_field(spec: dict[str, object], path: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_pool(pool(**spec))
    assert [problem.path for problem in error.value.problems] == [path]


def test_a_job_is_no_pool() -> None:
    with pytest.raises(SpecError, match="kind: is TrainingJob, not AcceleratorPool"):
        parse_pool(make_job().manifest())

"""The reconciler against an API server that fails between any two of its writes."""

import asyncio
import copy
from datetime import UTC, datetime, timedelta

import pytest

from builders import make_job
from fake.api_server import FakeApiServer
from trainwright_operator.cluster.client import Api, ApiError
from trainwright_operator.cluster.informer import Stores
from trainwright_operator.cluster.metrics import Metrics
from trainwright_operator.cluster.reconciler import Reconciler
from trainwright_operator.cluster.recorder import Recorder
from trainwright_operator.cluster.resources import POOLS, TRAINING_JOBS, Queues
from trainwright_operator.cluster.settings import Settings

PATH = "/apis/trainwright.dev/v1alpha1/namespaces/default/trainingjobs/train"
JOB_PATH = "/apis/batch/v1/namespaces/default/jobs/train-0-1"
SERVICE_PATH = "/api/v1/namespaces/default/services/tj-train"
KEY = ("default", "train")
START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """One TrainingJob of two pods in the fake, and the reconciler that serves it; ``now`` moves when a test says so."""

    def __init__(self, api, server):
        self.api, self.server, self.now = api, server, START
        self.restart()

    def restart(self):
        """As the operator's process does: everything that was only in memory is gone."""
        self.stores = Stores()
        self.metrics = Metrics()
        self.recorder = Recorder(self.api, "operator")
        self.reconciler = Reconciler(self.api, self.stores, Settings(), self.metrics, self.recorder, lambda: self.now)
        self.see()

    def see(self):
        """What a watch would bring."""
        self.stores.take(TRAINING_JOBS, copy.deepcopy(self.server.objects[PATH]))
        for path, obj in list(self.server.objects.items()):
            if "/jobs/" in path:
                self.stores.jobs.put(obj)
            if "/services/" in path:
                self.stores.services.put(obj)

    def lose_the_service(self):
        """It is deleted, and the watch says so."""
        lost = self.server.objects.pop(SERVICE_PATH)
        self.server.version += 1
        self.stores.services.remove(
            {**lost, "metadata": {**lost["metadata"], "resourceVersion": str(self.server.version)}}
        )
        return lost

    async def reconcile(self):
        self.see()
        again = await self.reconciler.reconcile(KEY)
        await self.recorder.flush()
        return again

    @property
    def status(self):
        return self.server.objects[PATH].get("status", {})

    def condition(self, kind):
        found = {one["type"]: one for one in self.status.get("conditions", [])}
        return found.get(kind, {})

    def count(self, verb, resource):
        return self.server.requests[verb, resource]


def ready_pod(server, index):
    """The pod of that index of the first attempt, as its node tells of it."""
    job = server.objects[JOB_PATH]
    template, index_label = job["spec"]["template"], {"batch.kubernetes.io/job-completion-index": str(index)}
    return {
        "metadata": {
            "namespace": "default",
            "name": f"train-0-1-{index}",
            "labels": template["metadata"]["labels"] | index_label,
            "resourceVersion": "1000",
            "ownerReferences": [
                {"kind": "Job", "name": "train-0-1", "uid": job["metadata"]["uid"], "controller": True}
            ],
        },
        "spec": template["spec"],
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def play(scene, job=None):
    async def run():
        server = FakeApiServer()
        manifest = (job or make_job("train").nodes(2)).manifest()
        server.put(PATH, manifest)
        async with server.serve() as connection, Api(connection) as api:
            await scene(World(api, server), server)

    asyncio.run(run())


def test_a_new_job_takes_three_writes_and_looking_again_takes_none():
    async def scene(world, server):
        await world.reconcile()
        assert {
            (verb, what): n for (verb, what), n in server.requests.items() if verb != "GET" and what != "events"
        } == {
            ("POST", "services"): 1,
            ("POST", "jobs"): 1,
            ("PATCH", "trainingjobs"): 1,
        }
        before = sum(server.requests.values())
        for _ in range(5):
            await world.reconcile()
        world.restart()
        await world.reconcile()
        assert sum(server.requests.values()) == before

    play(scene)


@pytest.mark.parametrize("ready", [True, False])
def test_the_start_of_a_job_in_a_queue_is_written_if_its_pods_are_not_ready_at_once(ready):
    async def scene(world, server):
        assert await world.reconcile() == 2
        assert world.status == {}
        server.objects[JOB_PATH]["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        world.restart()  # what is not written yet is known by the Job
        if ready:
            for index in range(2):
                world.stores.pods.put(ready_pod(server, index))
        else:
            world.now += timedelta(seconds=2)
        await world.reconcile()
        assert world.status["state"] == ("Running" if ready else "Starting")
        assert [one["attempt"] for one in world.status["attempts"]] == [1]
        assert world.count("PATCH", "trainingjobs") == 1

    play(scene, make_job("train").nodes(2).with_("metadata.labels", {"kueue.x-k8s.io/queue-name": "team"}))


def test_a_deleted_job_of_this_name_is_waited_for_until_its_service_is_gone():
    async def scene(world, server):
        owner = {"kind": "TrainingJob", "name": "train", "uid": "former", "controller": True}
        path = "/api/v1/namespaces/default/services/tj-train"
        meta = {"name": "tj-train", "namespace": "default", "ownerReferences": [owner]}
        server.put(path, {"kind": "Service", "metadata": meta})
        assert await world.reconcile() == 2
        assert world.status["display"]["state"] == "Pending (WaitingForFormerJob)"
        assert not world.condition("Stalled")
        del server.objects[path]
        await world.reconcile()
        assert world.status["state"] == "Starting"

    play(scene)


@pytest.mark.parametrize("died_after", ["the Service", "the Job"])
def test_a_crash_between_two_writes_is_made_good(died_after):
    async def scene(world, server):
        fails = {"the Service": ("POST", "/jobs"), "the Job": ("PATCH", "/status")}[died_after]
        server.fail(fails[0], 503, times=4, path=fails[1])
        with pytest.raises(ApiError):
            await world.reconcile()
        world.restart()
        await world.reconcile()
        assert [path for path in server.objects if "/jobs/" in path] == [JOB_PATH]
        assert [one["attempt"] for one in world.status["attempts"]] == [1]
        assert world.status["state"] == "Starting"

    play(scene)


def test_a_job_that_was_created_but_not_yet_seen_is_adopted():
    async def scene(world, server):
        await world.reconcile()
        made = server.objects[JOB_PATH]
        server.objects[PATH].pop("status")
        server.put(PATH, server.objects[PATH])
        world.restart()
        world.stores.jobs.remove(made)
        await world.reconciler.reconcile(KEY)
        assert server.objects[JOB_PATH]["metadata"]["uid"] == made["metadata"]["uid"]
        assert world.status["state"] == "Starting"

    play(scene)


def test_a_status_that_changed_meanwhile_is_not_overwritten():
    async def scene(world, server):
        world.see()
        server.put(PATH, {**server.objects[PATH], "status": {"state": "Elsewhere"}})
        with pytest.raises(ApiError, match="409"):
            await world.reconciler.reconcile(KEY)
        assert world.status == {"state": "Elsewhere"}

    play(scene)


def test_what_an_admission_webhook_refuses_is_told_and_tried_again_later():
    async def scene(world, server):
        server.fail("POST", 403, times=1, path="/jobs")
        again = await world.reconcile()
        assert again == 30.0
        assert (world.condition("Stalled")["reason"], world.condition("Stalled")["message"]) == ("Refused", "injected")
        await world.reconcile()
        assert JOB_PATH in server.objects
        assert world.condition("Stalled")["status"] == "False"

    play(scene)


def test_the_labels_that_are_to_be_passed_on_are_taken_from_the_job_itself():
    async def scene(world, server):
        labelled = server.objects[PATH]
        labelled["metadata"]["labels"] = {"team": "nlp", "other": "x"}
        server.put(PATH, labelled)
        settings = Settings(propagate_labels=("team", "cost"))
        world.reconciler = Reconciler(
            world.api, world.stores, settings, world.metrics, world.recorder, lambda: world.now
        )
        await world.reconcile()
        for path in (JOB_PATH, SERVICE_PATH):
            labels = server.objects[path]["metadata"]["labels"]
            assert (labels.get("team"), labels.get("other")) == ("nlp", None)

    play(scene)


def test_a_service_that_is_deleted_under_its_pods_is_made_again_at_once():
    async def scene(world, server):
        await world.reconcile()
        made = world.lose_the_service()
        await world.reconcile()
        assert server.objects[SERVICE_PATH]["spec"] == made["spec"]
        assert world.count("POST", "services") == 2
        await world.reconcile()
        assert world.count("POST", "services") == 2, "it is known, though no watch has told it yet"

    play(scene)


@pytest.mark.parametrize("why", ["forbidden", "taken"])
def test_a_service_that_may_not_be_made_again_changes_nothing_else(why):
    async def scene(world, server):
        await world.reconcile()
        made = world.lose_the_service()
        if why == "taken":
            owner = {"kind": "CronJob", "name": "x", "uid": "x", "controller": True}
            server.put(SERVICE_PATH, {**made, "metadata": {**made["metadata"], "ownerReferences": [owner]}})
            world.see = lambda: None
        else:
            server.fail("POST", 403, times=9, path="/services")
        assert await world.reconcile() == 30.0, "retrying"
        assert world.status["state"] == "Starting"
        words = "Service tj-train belongs to CronJob/x, but the pods need it"
        said = words if why == "taken" else "Service tj-train cannot be recreated: injected"
        assert said in world.condition("Reconciling")["message"]

    play(scene)


def test_a_deletion_that_is_refused_changes_nothing_of_what_is_known():
    async def scene(world, server):
        await world.reconcile()
        complete = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}
        server.put(JOB_PATH, {**server.objects[JOB_PATH], "status": {"conditions": [complete]}})
        world.now += timedelta(seconds=60)
        await world.reconcile()
        await world.reconcile()
        ended = world.status
        assert ended["state"] == "Succeeded"
        server.fail("DELETE", 403, times=99, message="protected")
        world.now += timedelta(seconds=200)
        for _ in range(3):
            assert await world.reconcile() == 30.0
        assert world.status == ended
        server.faults.clear()
        await world.reconcile()
        assert JOB_PATH not in server.objects

    play(scene, make_job("train").nodes(2).with_("spec.ttlSecondsAfterFinished", 100))


def test_what_waits_for_a_deletion_that_is_refused_says_so():
    async def scene(world, server):
        await world.reconcile()
        suspended = server.objects[PATH]["spec"] | {"suspend": True}
        server.put(PATH, {**server.objects[PATH], "spec": suspended})
        server.fail("DELETE", 403, times=99, message='admission webhook "keep" denied the request')
        assert await world.reconcile() == 30.0
        assert world.status["state"] == "Stopping"
        told = '; Job train-0-1 cannot be deleted: admission webhook "keep" denied the request'
        assert told in world.condition("Reconciling")["message"]
        before = world.count("PATCH", "trainingjobs")
        await world.reconcile()
        assert world.count("PATCH", "trainingjobs") == before

    play(scene)


DRA = {
    "apiVersion": "trainwright.dev/v1alpha1",
    "kind": "AcceleratorPool",
    "metadata": {"name": "dra", "resourceVersion": "1"},
    "spec": {"vendor": "nvidia", "deviceClassName": "gpu.example.com", "perNode": 1, "image": "trainer"},
}


@pytest.mark.parametrize("said", ["404 page not found", "the server could not find the requested resource"])
def test_a_kind_that_the_cluster_does_not_serve_is_reported_with_the_fix(said):
    async def scene(world, server):
        world.stores.take(POOLS, DRA)
        server.fail("POST", 404, path="/resourceclaimtemplates", message=said)
        assert await world.reconcile() == 30.0
        held = world.condition("Stalled")
        assert (held["reason"], world.status["state"]) == ("Refused", "Pending")
        assert held["message"] == (
            "this cluster does not serve ResourceClaimTemplate of resource.k8s.io/v1, which the pool's deviceClassName "
            "needs: choose a pool with a resourceName, or upgrade to Kubernetes 1.34 or newer"
        )
        await world.reconcile()
        assert JOB_PATH in server.objects

    play(scene, make_job("train").nodes(2).with_("spec.accelerator.pool", "dra"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (404, 'namespaces "default" not found'),
        (403, "forbidden: unable to create new content in namespace default because it is being terminated"),
    ],
)
def test_of_a_namespace_that_goes_nothing_is_told(code, said):
    async def scene(world, server):
        server.fail("POST", code, path="/services", message=said)
        assert await world.reconcile() == 30.0
        assert world.status == {}
        assert world.count("POST", "events") == 0

    play(scene)


def claimed(*modes):
    return {"metadata": {"name": "runs", "namespace": "default"}, "spec": {"accessModes": list(modes)}}


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_claim_for_one_node_holds_two_up_until_it_is_replaced(nodes):
    async def scene(world, server):
        server.put("/api/v1/namespaces/default/persistentvolumeclaims/runs", claimed("ReadWriteOnce"))
        again = await world.reconcile()
        held = world.condition("Stalled")
        if nodes == 1:
            assert held == {}
            assert JOB_PATH in server.objects
            return
        assert again == 30.0
        assert (held["reason"], world.status["state"]) == ("OutputNotShared", "Pending")
        assert "PersistentVolumeClaim runs is ReadWriteOnce, and pods on several nodes write to it" in held["message"]
        assert JOB_PATH not in server.objects
        server.put("/api/v1/namespaces/default/persistentvolumeclaims/runs", claimed("ReadWriteOnce", "ReadWriteMany"))
        await world.reconcile()
        assert JOB_PATH in server.objects

    play(scene, make_job("train").nodes(nodes))


def test_a_claim_that_is_yet_to_come_is_left_to_the_scheduler():
    async def scene(world, server):
        await world.reconcile()
        assert world.status["state"] == "Starting"
        assert JOB_PATH in server.objects

    play(scene)


NODE_PATH = "/api/v1/nodes/node-a"
TAKEN = {
    "metadata": {"name": "node-a"},
    "spec": {"taints": [{"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}]},
}


def stopped_pod(server):
    """A pod that ended by a signal of which nothing else in the cluster tells."""
    pod = ready_pod(server, 0)
    ended = {"exitCode": 143, "message": '{"reason": "x", "exit_code": 143, "ended_by": "signal"}'}
    pod["spec"] = {**pod["spec"], "nodeName": "node-a"}
    pod["status"] = {
        "phase": "Failed",
        "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
    }
    return pod


@pytest.mark.parametrize(
    ("node", "code", "reason", "said"),
    [
        (TAKEN, None, "NodeLeaving", "stopped on request; node node-a is taken by GKE, as for maintenance"),
        (None, None, "NodeLeaving", "stopped on request; node node-a is gone"),
        (TAKEN, 403, "UnexplainedStop", "stopped on request, though nothing in the cluster tells of one"),
    ],
)
def test_the_node_of_a_pod_that_was_asked_to_stop_is_looked_at_once(node, code, reason, said):
    async def scene(world, server):
        await world.reconcile()
        await world.reconcile()
        if node:
            server.put(NODE_PATH, copy.deepcopy(node))
        if code:
            server.fail("GET", code, path=NODE_PATH)
        world.stores.pods.put(stopped_pod(server))
        for _ in range(4):
            await world.reconcile()
        (entry,) = world.status["attempts"]
        assert (entry["outcome"], entry["reason"], entry["message"]) == ("Disrupted", reason, said)
        assert world.count("GET", "nodes") == 1

    play(scene)


def test_a_spec_that_this_release_cannot_read_is_told_and_not_tried_for_ever():
    async def scene(world, server):
        assert await world.reconcile() is None
        assert world.condition("Stalled")["reason"] == "InvalidSpec"
        assert "spec.trainingArguments.maxStepz" in world.condition("Stalled")["message"]
        assert await world.reconcile() is None
        assert world.count("PATCH", "trainingjobs") == 1

    play(scene, make_job("train").training(maxStepz=3))


def test_pushes_are_written_at_most_once_in_an_interval_and_the_newest_wins():
    async def scene(world, server):
        await world.reconcile()
        world.now += timedelta(seconds=20)
        for step in (10, 11, 12):
            world.reconciler.keep_progress(KEY, {"trainerStatus": {}, "trainwright": {"step": step}, "attempt": 1})
            again = await world.reconcile()
        assert world.status["progress"]["step"] == 10
        assert 0 < again <= 15
        world.now += timedelta(seconds=15)
        await world.reconcile()
        assert world.status["progress"]["step"] == 12
        assert world.count("PATCH", "trainingjobs") == 3

    play(scene)


def test_the_events_of_what_waits_are_read_soon_again_until_they_tell_why(monkeypatch):
    monkeypatch.setattr("trainwright_operator.cluster.events_reader.FRESH_SECONDS", 0)
    monkeypatch.setattr("trainwright_operator.cluster.events_reader.SHARE", 0)

    async def scene(world, server):
        await world.reconcile()
        world.now = datetime.now(UTC) + timedelta(seconds=4)
        job = server.objects[JOB_PATH]
        job["status"] = {"startTime": (world.now - timedelta(seconds=4)).strftime("%Y-%m-%dT%H:%M:%SZ")}
        server.put(JOB_PATH, job)
        assert await world.reconcile() == 1.0
        told = {"type": "Warning", "reason": "FailedCreate", "message": "exceeded quota: none"}
        told |= {"metadata": {"name": "e"}, "involvedObject": {"kind": "Job", "name": "train-0-1"}}
        server.put("/api/v1/namespaces/default/events/e", told)
        assert await world.reconcile() == 15.0
        assert "exceeded quota: none" in world.condition("Queued")["message"]

    play(scene)


@pytest.mark.parametrize("code", [403, 503])
def test_what_waits_is_told_without_events_where_they_cannot_be_read(code):
    async def scene(world, server):
        await world.reconcile()
        job = server.objects[JOB_PATH]
        job["status"] = {"startTime": "2026-01-01T00:00:00Z"}
        server.put(JOB_PATH, job)
        server.fail("GET", code, times=100, path="/events")
        world.now = START + timedelta(seconds=30)
        assert await world.reconcile() == 15.0
        assert "Job train-0-1 lacks its pods" in world.condition("Queued")["message"]
        await world.reconcile()
        assert world.count("GET", "events") == 1

    play(scene)


def test_a_gang_that_starts_pod_by_pod_is_told_once():
    async def scene(world, server):
        await world.reconcile()
        world.now += timedelta(seconds=60)
        for index, waits in ((0, True), (1, False)):
            world.stores.pods.put(ready_pod(server, index))
            again = await world.reconcile()
            assert (world.count("PATCH", "trainingjobs") == 1) is waits
            assert not waits or 0 < again <= 3
        assert world.status["state"] == "Running"

    play(scene)


def test_the_first_word_of_the_scheduler_is_told_at_once_and_the_next_ones_at_intervals():
    async def scene(world, server):
        def says(message, version):
            pod = ready_pod(server, 0)
            pod["metadata"] |= {"resourceVersion": str(version), "creationTimestamp": "2026-01-01T00:00:00Z"}
            word = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            pod["status"] = {"phase": "Pending", "conditions": [word]}
            world.stores.pods.put(pod)

        await world.reconcile()
        written = []
        for second in range(10, 71):
            world.now = START + timedelta(seconds=second)
            says(f"0/{second} nodes are available", 1000 + second)
            await world.reconcile()
            if (message := world.condition("Queued").get("message")) not in written:
                written.append(message)
        assert [message.split("/")[1].split()[0] for message in written] == ["10", "25", "40", "55", "70"]

    play(scene)


def test_a_workload_that_lost_its_labels_gets_them_back_and_is_not_created_for_ever():
    job = make_job("train").with_("metadata.labels", {"kueue.x-k8s.io/queue-name": "team"})

    async def scene(world, server):
        world.reconciler = Reconciler(
            world.api, world.stores, Settings(), world.metrics, world.recorder, lambda: world.now, queues=Queues(True)
        )
        await world.reconcile()
        (path,) = (path for path in server.objects if "/workloads/" in path)
        labels = server.objects[path]["metadata"].pop("labels")
        world.stores.workloads.remove(server.put(path, server.objects[path]))  # as the watch by labels says
        for _ in range(3):
            await world.reconcile()
        assert server.objects[path]["metadata"]["labels"] == labels
        assert world.count("POST", "workloads") == 2

    play(scene, job)


def test_an_event_that_cannot_be_written_does_not_stop_the_work():
    async def scene(world, server):
        server.fail("POST", 403, times=10, path="/events")
        await world.reconcile()
        assert world.status["state"] == "Starting"

    play(scene)

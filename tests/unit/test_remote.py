"""What is shown of jobs in a cluster, without one: tables, summaries, diagnoses, and lines of several pods in order."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from builders import make_job
from scene import Scene, running
from trainwright_operator.cli import main
from trainwright_operator.commands.completion import commands
from trainwright_operator.core.states import finished
from trainwright_operator.remote import board, describing, diagnosis, loglines, rendering
from trainwright_operator.remote.cluster import Absent, Expired, RemoteError, Unreachable, refusal
from trainwright_operator.remote.diagnosis import Facts, diagnose
from trainwright_operator.remote.loglines import Line, Source
from trainwright_operator.remote.watching import Watch
from trainwright_operator.report.summary import summarize

NOW = datetime(2026, 1, 1, 0, 10, tzinfo=UTC)


def stored(scene: Scene) -> dict:
    """The object as the API server would hold it."""
    return {**scene.builder.manifest(), "status": scene.status}


def with_condition(kind: str, reason: str, message: str, state: str = "Queued", **spec) -> dict:
    job = make_job().manifest()
    job["spec"] |= spec
    listed = [{"type": kind, "status": "True", "reason": reason, "message": message}]
    return {
        **job,
        "status": {"state": state, "display": {"state": state}, "observedGeneration": 1, "conditions": listed},
    }


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(what, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()


# watch


class Said:
    """A board that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, key, before, job) -> None:
        self.lines.append(f"{key[1]} {board.status_of(job)['state']}")

    def gone(self, key) -> None:
        self.lines.append(f"{key[1]} gone")

    def say(self, message) -> None:
        self.lines.append(message)

    def close(self) -> None:
        """Nothing."""


KEY = ("default", "gpt-corpus")


def failed_scene() -> Scene:
    return running().exit_all(64).settle()


def test_a_watch_is_over_when_all_have_finished_and_tells_only_changes() -> None:
    said = Said()
    watch = Watch(said, {KEY})
    scene = running()
    watch.look({KEY: stored(scene), ("default", "other"): stored(scene)})
    watch.look({KEY: stored(scene)})
    assert not watch.over
    watch.look({KEY: stored(scene.exit_all(0).settle())})
    assert watch.over
    assert watch.failed == set()
    assert said.lines == ["gpt-corpus Running", "gpt-corpus Succeeded"]


def test_a_job_that_had_failed_before_counts_only_when_it_is_named() -> None:
    for wanted, failed in ((set(), set()), ({KEY}, {KEY})):
        watch = Watch(Said(), wanted)
        watch.look({KEY: stored(failed_scene())})
        assert (watch.over, watch.failed) == (True, failed)


def test_a_job_that_vanishes_before_its_end_counts_as_failed() -> None:
    watch = Watch(Said(), set())
    watch.look({KEY: stored(running())})
    watch.look({})
    assert (watch.over, watch.failed) == (True, {KEY})


def test_a_target_that_was_raised_is_not_finished() -> None:
    scene = running().exit_all(0).settle()
    assert finished(stored(scene))
    assert not finished(stored(scene.edit("spec.trainingArguments.maxSteps", 400)))


def test_the_table_has_the_columns_of_kubectl_and_says_what_is_wrong() -> None:
    scene = running().push(step=140, maxSteps=200, tokensPerSecond=18400.0)
    queued = with_condition("Queued", "Unschedulable", "2 of 2 pods: Insufficient cpu")
    text = printed(board.render({KEY: stored(scene), ("default", "waits"): queued}, NOW, False))
    head, first, second, trouble = (line.split() for line in text.splitlines())
    assert head == ["NAME", "STATE", "STEP", "LOSS", "EVAL", "TOK/S", "ENDS", "RESTARTS"]
    assert first[:4] == ["gpt-corpus", "Running", "140/200", "18.4k"]
    assert second[:2] == ["waits", "Queued"]
    assert " ".join(trouble) == "waits: 2 of 2 pods: Insufficient cpu"


def test_a_pipe_gets_a_line_for_each_change() -> None:
    console = Console(file=io.StringIO(), width=80)
    lines = board.board(console, namespaced=True)
    scene = running()
    lines.update(KEY, None, stored(scene))
    before = stored(scene)
    lines.update(KEY, before, stored(scene.exit_all(1).settle()))
    text = console.file.getvalue()
    assert "default/gpt-corpus: Running" in text
    assert "attempt 1 failed" in text


def test_a_terminal_that_takes_no_line_back_gets_lines() -> None:
    for kind, file, plain in (("dumb", Tty(), True), ("xterm", Tty(), False), ("xterm", io.StringIO(), True)):
        console = Console(file=file, _environ={"TERM": kind, "FORCE_COLOR": "1"})
        shown = board.board(console, namespaced=False)
        shown.close()
        assert isinstance(shown, board.PlainLines) is plain


# report


def full_run() -> dict:
    scene = running().push(step=100, maxSteps=200, epoch=0.5).exit_all(1).settle().start_pods().settle()
    best = {"metric": "eval_loss", "value": 2.1, "step": 150, "checkpoint": "checkpoint-150"}
    word = {"step": 200, "max_steps": 200, "metrics": {"eval_loss": 2.1}, "checkpoint": "checkpoint-200", "best": best}
    return stored(scene.wait(60).exit_all(0, **word).settle())


def test_a_summary_holds_what_was_asked_and_what_came_of_it() -> None:
    summary = summarize(full_run(), NOW)
    assert (summary.state, summary.message) == ("Succeeded", "trained to step 200")
    assert summary.spec["model"] == "gpt2 from its configuration"
    assert summary.spec["accelerator"] == "the default pool, 2 nodes of 1 rank"
    assert summary.arguments == {"maxSteps": 200, "learningRate": 3e-4}
    assert [(one.number, one.outcome, one.steps) for one in summary.attempts] == [
        (1, "Failed", 100),
        (2, "Succeeded", 200),
    ]
    assert summary.best["checkpoint"] == "checkpoint-150"
    assert summary.checkpoint["path"] == "checkpoint-200"
    assert summary.seconds == 63


def test_a_summary_is_written_for_json_screen_and_markdown() -> None:
    summary = summarize(full_run(), NOW)
    assert json.loads(summary.to_json())["metrics"] == {"eval_loss": "2.1"}
    text = printed(rendering.to_screen(summary))
    assert "best         eval_loss 2.1 at step 150, checkpoint-150" in text
    markdown = rendering.to_markdown(summary)
    assert "| arguments | maxSteps 200, learningRate 0.0003 |" in markdown
    assert "## Attempts" in markdown


def test_a_message_cannot_break_a_markdown_table() -> None:
    job = with_condition("Failed", "BadData", "a|b\n<script>", state="Failed")
    row = next(line for line in rendering.to_markdown(summarize(job, NOW)).splitlines() if "state" in line)
    assert row == "| state | Failed: a\\|b &lt;script> |"


def test_a_job_that_nobody_has_looked_at_has_a_summary() -> None:
    summary = summarize(make_job().manifest(), NOW)
    assert (summary.state, summary.seconds, summary.attempts) == ("Pending", None, [])
    assert "state" in printed(rendering.to_screen(summary))


# describe

UNSCHEDULABLE = "2 of 2 pods: Unschedulable: 0/3 nodes are available: "
HELD = {
    "1 Insufficient nvidia.com/gpu, 2 Insufficient memory.": "ask for less nvidia.com/gpu, memory (",
    "3 node(s) had untolerated taint {nvidia.com/gpu: present}.": "tolerate the taint nvidia.com/gpu",
    "3 node(s) didn't match Pod's node affinity/selector.": "no node with room carries the labels",
    'persistentvolumeclaim "runs" not found.': "create the PersistentVolumeClaim runs",
    "pod has unbound immediate PersistentVolumeClaims.": "a claim has no volume yet",
}


@pytest.mark.parametrize("message", HELD)
def test_an_unschedulable_job_is_told_what_would_help(message: str) -> None:
    job = with_condition("Queued", "Unschedulable", UNSCHEDULABLE + message, output={"emptyDir": {}})
    (finding,) = diagnose(Facts(job, NOW))
    assert HELD[message] in finding.fix


def test_describe_says_where_the_run_and_the_model_can_be_seen() -> None:
    job = stored(running())
    assert "ADDRESS" not in printed(describing.render(Facts(job, NOW), []))
    page, model = "https://mlflow.example.com/#/experiments/1/runs/2", "https://huggingface.co/me/model"
    job["status"] |= {"runs": [{"tracker": "mlflow", "url": page}], "model": {"url": model}}
    shown = [line.split() for line in printed(describing.render(Facts(job, NOW), [])).splitlines()]
    assert ["mlflow", page] in shown
    assert ["hub", model] in shown


def test_a_missing_pool_is_answered_with_the_pools_there_are() -> None:
    pools = [{"metadata": {"name": "h100"}}]
    job = with_condition("Stalled", "PoolNotFound", "no pool x", "Pending", output={"emptyDir": {}})
    assert diagnose(Facts(job, NOW, pools=pools))[0].fix == "the pools are h100 and cpu"


def test_a_failed_job_names_its_logs_and_the_fix() -> None:
    (finding,) = diagnose(Facts(stored(failed_scene()), NOW))
    assert finding.what.startswith("it has failed: ")
    assert finding.fix.startswith("trainwright logs gpt-corpus --attempt 1; ")


def test_a_suspended_job_is_explained_with_how_to_resume_it() -> None:
    scene = Scene(make_job().suspended()).settle()
    (finding,) = diagnose(Facts(stored(scene), NOW))
    assert "patch tj gpt-corpus" in finding.fix


def test_a_quota_is_shown_only_where_pods_are_refused() -> None:
    quota = {"metadata": {"name": "small"}, "status": {"hard": {"pods": "4"}, "used": {"pods": "4"}}}
    refused = with_condition("Queued", "PodsRefused", "exceeded quota: small", output={"emptyDir": {}})
    assert diagnose(Facts(refused, NOW, quotas=[quota]))[1].what == "quota small: pods 4 of 4 used"
    assert diagnose(Facts(stored(running()), NOW, quotas=[quota])) == []


def test_the_claims_of_a_job_are_those_of_its_output_and_volumes() -> None:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "corpus"}}, {"name": "none", "emptyDir": {}}]
    job = make_job().with_("spec.podTemplate", {"volumes": volumes}).manifest()
    assert diagnosis.claim_names(job) == ["runs", "corpus"]


def test_a_job_that_is_being_deleted_is_told_by_what_holds_it() -> None:
    job = stored(running())
    job["metadata"] |= {"deletionTimestamp": "2026-01-01T00:01:00Z", "finalizers": ["backup/wait"], "generation": 2}
    (finding,) = diagnose(Facts(job, NOW))
    assert finding.what == "it is being deleted, and waits for its finalizers: backup/wait"


def test_a_running_job_that_is_silent_for_long_is_noticed() -> None:
    scene = running().push(step=3)
    assert diagnose(Facts(stored(scene), scene.now + timedelta(minutes=9))) == []
    (finding,) = diagnose(Facts(stored(scene), scene.now + timedelta(minutes=25)))
    assert finding.what == "it runs, but has reported no progress for 25 minutes"


def test_what_may_not_be_read_is_no_reason() -> None:
    facts = Facts(stored(Scene(make_job()).settle()), NOW, events=None, claims=None, quotas=None, pools=None)
    assert all("Claim" not in finding.what for finding in diagnose(facts))


EVENT = {"involvedObject": {"kind": "Pod", "name": "p", "uid": "u"}, "reason": "FailedScheduling", "metadata": {}}


def test_events_that_say_the_same_are_shown_once() -> None:
    told = [{**EVENT, "message": "no room", "lastTimestamp": f"2026-01-01T00:0{minute}:00Z"} for minute in (1, 5)]
    text = printed(describing.render(Facts(stored(running()), NOW, events=told), []))
    assert text.count("no room") == 1
    assert "5m00s  " in text


def test_events_of_others_are_left_out() -> None:
    job = stored(running())
    pods = [{"metadata": {"name": "p", "uid": "u"}}]
    assert describing.about(EVENT, job, pods)
    assert not describing.about(EVENT, job, [])
    for name, ours in (("gpt-corpus-0-1", True), ("gpt-corpus-2-0-1", False), ("other-0-1", False)):
        assert describing.about({"involvedObject": {"kind": "Job", "name": name}}, job, []) is ours


class Reads:
    """A cluster that holds a job and nothing else, and refuses the kinds of ``refused``."""

    namespace = "default"

    def __init__(self, **refused: RemoteError) -> None:
        self._refused = refused

    def get(self, path: str) -> dict:
        return stored(running())

    def items(self, path: str, **_: str) -> list[dict]:
        if error := self._refused.get(path.rpartition("/")[2]):
            raise error
        return []


def test_what_fails_is_told_apart_from_what_may_not_be_read() -> None:
    cluster = Reads(events=refusal(500, "etcdserver: request timed out"), resourcequotas=refusal(403, "no"))
    facts = describing.gather(cluster, "gpt-corpus", NOW)
    assert (facts.events, facts.quotas, facts.claims) == (None, None, [])
    text = printed(describing.render(facts, []))
    assert "not shown: events: the API server answered 500: etcdserver: request timed out\n" in text
    assert text.endswith("not shown, because you may not read them: resourcequotas\n")


def test_pools_that_could_not_be_read_are_not_said_to_be_missing() -> None:
    job = with_condition("Stalled", "PoolNotFound", "no pool x", "Pending", output={"emptyDir": {}})
    assert diagnose(Facts(job, NOW, pools=None))[0].fix == ""


# logs


def test_lines_of_pods_are_merged_by_time_and_keep_their_own_order() -> None:
    def line(pod: str, time: int) -> Line:
        return Line(f"2026-01-01T00:00:{time:02d}Z", pod, 0, "")

    logs = [iter([line("a", 1), line("a", 5)]), iter([line("b", 2), line("b", 3)])]
    assert [one.source for one in loglines.merged(logs)] == ["a", "b", "b", "a"]


READ = {
    "one rank": (1, "T [rank 7] is the script's own", Line("T", "p", 3, "[rank 7] is the script's own")),
    "several": (2, "T [rank 4] step 1", Line("T", "p", 4, "step 1")),
    "the launcher": (2, "T waiting", Line("T", "p", None, "waiting")),
    "an empty line": (1, "T ", Line("T", "p", 3, "")),
}


@pytest.mark.parametrize("case", READ)
def test_a_line_of_a_log_is_read_with_its_time_and_rank(case: str) -> None:
    ranks, text, expected = READ[case]
    assert loglines.read(Source("p", 1, 3, ranks), text) == expected


def test_ranks_are_told_apart_only_where_there_are_several() -> None:
    line = Line("T", "p", 0, "loss 2")
    several = [Source("p", 1, 8, 4)]
    assert loglines.printer([Source("p", 1, 0, 1)], timestamps=False, alone=False)(line) == "loss 2"
    assert loglines.printer(several, timestamps=False, alone=False)(line) == "[rank  0] loss 2"
    assert loglines.printer(several, timestamps=True, alone=True)(line) == "T loss 2"


def test_the_ranks_of_a_pod_follow_from_its_place() -> None:
    scene = Scene(make_job().nodes(2, per_node=2)).settle().start_pods().settle()
    found = loglines.sources(scene.objects.pods.values())
    assert [(one.attempt, one.first, one.ranks) for one in found] == [(1, 0, 2), (1, 2, 2)]
    assert found[1].has(3)
    assert not found[1].has(1)


# Errors


def test_an_http_status_becomes_the_error_it_means() -> None:
    assert "log in again" in str(refusal(401, ""))
    assert str(refusal(403, "no\nway")) == "no way; ask for the role `view` in the namespace"
    assert isinstance(refusal(404, "gone"), Absent)
    assert isinstance(refusal(410, "too old"), Expired)
    assert str(refusal(500, "")) == "the API server answered 500: HTTP 500"
    passing = [code for code in (400, 422, 429, 500, 502, 503, 504) if isinstance(refusal(code, ""), Unreachable)]
    assert passing == [429, 500, 502, 503, 504]


@pytest.mark.parametrize("command", ["watch", "logs", "report", "describe"])
def test_every_command_has_a_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"\n  trainwright {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kubeconfig", "words"),
    [
        (None, "there is no kubeconfig at "),
        ("not: [a kubeconfig", "the kubeconfig cannot be read: "),
        ("apiVersion: v1\nkind: Config\ncontexts: []\n", "the kubeconfig has no current context"),
    ],
)
def test_a_kubeconfig_that_leads_nowhere_is_one_line_of_error(
    tmp_path: Path, capsys, kubeconfig: str | None, words: str
) -> None:
    path = tmp_path / "kubeconfig"
    if kubeconfig is not None:
        path.write_text(kubeconfig)
    assert main(["watch", "--kubeconfig", str(path)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_job_is_completed_to_no_file() -> None:
    assert {one.name: one.choices for one in commands()}["watch"] == ()


def test_describe_shows_the_peak_memory_beside_that_of_the_accelerator() -> None:
    job = stored(running())
    job["status"]["metrics"] = [{"name": "peak_memory_gib", "value": "61.2"}]
    job["spec"]["accelerator"] = {"pool": "h100"}
    pool = {
        "apiVersion": job["apiVersion"],
        "kind": "AcceleratorPool",
        "metadata": {"name": "h100"},
        "spec": {"vendor": "nvidia", "memoryPerAccelerator": "80Gi"},
    }
    assert "peak memory of an accelerator: 61.2 GiB of 80.0 GiB" in printed(
        describing.render(Facts(job, NOW, pools=[pool]), [])
    )
    assert "61.2 GiB;" in printed(describing.render(Facts(job, NOW), []))


def test_describe_shows_the_estimate_of_the_memory_beside_the_peak() -> None:
    job = stored(running())
    parts = {"parameters": 25.1, "gradients": 6.3, "optimizer": 12.5, "activations": 10.0, "buffers": 1.2}
    job["status"]["memory"] = {"attempt": 1, "estimate": 55.1, **parts}
    estimated = "estimated: 55.1 GiB (parameters 25.1, gradients 6.3, optimizer 12.5, activations 10.0, buffers 1.2)"
    beside = lambda: " ".join(printed(describing.render(Facts(job, NOW), [])).split())  # noqa: E731
    assert f"peak memory of an accelerator: not measured yet; {estimated}" in beside()
    job["status"]["memory"]["peak"] = 54.8
    assert f"peak memory of an accelerator: 54.8 GiB; {estimated}" in beside()

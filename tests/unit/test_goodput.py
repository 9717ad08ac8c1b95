"""Where the time of a job went: lives of jobs beside a second book, which is kept by whoever lets the time pass."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from builders import make_job
from scene import START, Scene
from status_schema import problems
from trainwright.contract import CLOCK_CAUSES, ENV_REACHED_STEP
from trainwright_operator.api import names
from trainwright_operator.api.crd import problems as manifest_problems
from trainwright_operator.api.spec import AcceleratorPool
from trainwright_operator.core import goodput
from trainwright_operator.core.times import read_time, write_time
from trainwright_operator.remote.describing import render
from trainwright_operator.remote.diagnosis import Facts
from trainwright_operator.remote.rendering import to_screen
from trainwright_operator.report.page import page
from trainwright_operator.report.run import read_job
from trainwright_operator.report.summary import summarize

PRICED = AcceleratorPool("gpus", "nvidia", per_node=8, image="i", price={"perAcceleratorHour": 3.6, "currency": "USD"})


class Life(Scene):
    """A scene with a book of its own; ``spend`` lets time pass in the trainer of the attempt at work."""

    def __init__(self, job=None, pool=None) -> None:
        job = (job or make_job()).with_("metadata.creationTimestamp", write_time(START))
        super().__init__(job, *([pool] if pool else []))
        self.book: Counter[str] = Counter()
        self.clock: Counter[str] = Counter()
        self.at = 0

    def passes(self, cause: str, seconds: float) -> Life:
        self.book[cause] += seconds
        self.wait(seconds)
        return self

    def spend(self, **seconds: float) -> Life:
        for cause, amount in seconds.items():
            self.passes(cause, amount)
            self.clock[cause] += amount
        return self

    def report(self, behind: float = 0.0, **more: float) -> Life:
        """The trainer sends its clock; ``behind`` of its last seconds are not counted yet."""
        self.at += 1
        clock = {**self.clock, "open": behind, "step": self.at, "first": 0, **more}
        self.push(step=self.at, maxSteps=1000, clock=clock)
        self.settle()
        return self

    def train(self, starting: float = 20.0) -> Life:
        """The attempt that is due starts, and comes to its first step."""
        self.clock = Counter()
        self.settle().start_pods().settle()
        self.passes("starting", starting)
        self.clock["starting"] = starting / 2  # the pod's part of it; the rest is pulling and meeting
        return self

    def ends(self, code: int, **word: object) -> Life:
        self.exit_all(code, **word).settle()
        return self

    def final(self) -> dict[str, float]:
        return {**self.clock, "step": self.at, "first": 0}

    @property
    def seconds(self) -> dict[str, float]:
        return self.status["goodput"]["seconds"]

    def wall(self) -> float:
        return (read_time(self.status["completionTime"]) - START).total_seconds()

    def adds_up(self, tolerance: float = 0.01) -> None:
        assert sum(self.seconds.values()) == pytest.approx(self.wall(), abs=0.01)
        expected = {cause: amount for cause, amount in self.book.items() if amount}
        assert self.seconds == pytest.approx(expected, abs=tolerance)
        assert problems(self.status) == []


def test_each_second_of_a_quiet_run_has_its_cause():
    life = Life().train(starting=30)
    life.spend(compiling=12, data=3, stepping=100).report().spend(evaluating=7, saving=5, stepping=50).report()
    life.spend(saving=4).ends(0, clock=life.final())
    life.adds_up()
    assert life.status["goodput"]["percent"] == 71  # 150 of 211
    assert life.status["display"]["goodput"] == "71%"


def test_a_restart_shows_its_wait_its_restoring_and_the_redone_steps():
    life = Life().train().spend(data=1, stepping=80).report()
    life.spend(stepping=3)  # dies before it reports them
    life.book["idle"] += life.book["stepping"] - 80
    life.book["stepping"] = 80
    life.ends(137)
    life.passes("waiting", 0).settle()
    life.train(starting=15).spend(restoring=6, redone=30, stepping=60, data=2).report().ends(0, clock=life.final())
    life.adds_up()


def test_later_attempts_know_how_far_the_former_ones_came():
    life = Life().train().spend(stepping=10)
    life.at = 139
    life.report().ends(1)
    life.settle()
    env = {one["name"]: one.get("value") for one in life.pod()["spec"]["containers"][0]["env"]}
    assert env[ENV_REACHED_STEP] == "140"
    first = Life().settle().pod()["spec"]["containers"][0]["env"]
    assert ENV_REACHED_STEP not in {one["name"] for one in first}


def test_a_hang_and_a_lost_node_are_idle_time():
    life = Life().train().spend(stepping=50).report().passes("idle", 600)
    life.ends(124)
    life.train().spend(stepping=50).report().ends(0, clock=life.final())
    life.adds_up()


def test_backoff_and_want_of_room_are_waiting():
    life = Life().train().spend(stepping=5).report().ends(1)
    life.train().spend(stepping=5).report().ends(1)
    life.passes("waiting", 10).settle()  # the backoff
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
    life.pod()["status"] = {"phase": "Pending", "conditions": [scheduled]}
    life.settle().passes("waiting", 3).settle().passes("waiting", 297)
    assert "Queued" in life.holding()
    life.train(starting=8).spend(stepping=5).report().ends(0)
    # the scheduler's first word is believed after 3 s, and belongs to what came before it
    life.book["waiting"] -= 3
    life.book["starting"] += 3
    assert sum(life.seconds.values()) == pytest.approx(life.wall(), abs=0.01)
    assert life.seconds["waiting"] + life.seconds["starting"] == pytest.approx(
        life.book["waiting"] + life.book["starting"], abs=0.01
    )
    assert life.seconds["waiting"] >= 300


def test_suspended_time_stands_apart():
    life = Life().train().spend(stepping=60).report()
    life.edit("spec.suspend", True).settle().spend(saving=4).ends(143, clock=life.final())
    life.passes("suspended", 5000).edit("spec.suspend", False).settle()
    life.train(starting=20).spend(restoring=2, stepping=34).report().ends(0, clock=life.final())
    life.adds_up()
    assert life.status["goodput"]["percent"] == 67  # 94 of 140


def test_time_before_a_pool_exists_is_waiting():
    life = Life(make_job().with_("spec.accelerator.pool", "later"))
    life.pool = None
    life.settle().passes("waiting", 90)
    life.pool = replace(PRICED, name="later")
    life.train().spend(stepping=10).report().ends(0, clock=life.final())
    life.adds_up()


def test_lost_pushes_lose_nothing():
    life = Life().train().spend(data=5, stepping=500, saving=30).report()
    life.spend(stepping=100).spend(stepping=100).ends(0, clock=life.final())
    life.adds_up()


def test_with_no_push_at_all_the_final_word_tells_what_was_measured():
    life = Life().train(starting=20).spend(stepping=70)
    life.ends(0, clock=life.final(), step=70)
    assert life.seconds == pytest.approx({"starting": 10, "stepping": 70, "unmeasured": 10}, abs=0.01)
    assert life.status["display"]["goodput"] == "≥77%"


def test_a_script_that_reports_nothing_is_unmeasured():
    life = Life(make_job().script(path="/train.py")).train()
    life.passes("stepping", 100).ends(0)
    assert life.seconds == {"unmeasured": 120.0}
    assert "percent" not in life.status["goodput"]


def test_a_foreign_trainer_is_unmeasured_while_it_works():
    life = Life(make_job().script(path="/train.py")).train().passes("unmeasured", 30)
    life.push(step=5, maxSteps=10).settle()
    assert life.seconds == {"unmeasured": 50.0}


def test_a_job_extended_after_its_end_was_suspended_in_between():
    life = Life(make_job().training(maxSteps=10)).train().spend(stepping=10).report().ends(0, clock=life_clock(10))
    life.passes("suspended", 400).edit("spec.trainingArguments", {"maxSteps": 20}).settle()
    life.train().spend(stepping=10).report().ends(0, clock=life.final())
    life.adds_up(0.1)


def life_clock(stepping: float) -> dict[str, float]:
    return {"starting": 10.0, "stepping": stepping, "step": 10, "first": 0}


# Cost


def test_held_accelerators_cost_what_the_pool_says():
    life = Life(make_job().nodes(2).with_("spec.accelerator.pool", "gpus"), PRICED)
    life.settle().passes("starting", 0).train(starting=100).spend(stepping=800, data=100).report()
    life.ends(0, clock=life.final())
    assert life.status["acceleratorSeconds"] == pytest.approx(16 * 1000)
    (cost,) = life.status["cost"]
    assert (cost["currency"], cost["amount"], cost["lost"]) == ("USD", pytest.approx(16.0), pytest.approx(3.2))
    assert life.status["display"]["cost"] == "16.00 USD"


def test_nothing_is_paid_while_suspended_or_waiting():
    life = Life(make_job().with_("spec.accelerator.pool", "gpus"), PRICED).train(10).spend(stepping=10).report()
    life.edit("spec.suspend", True).settle().ends(143, clock=life.final())
    held = life.status["acceleratorSeconds"]
    life.passes("suspended", 9999).edit("spec.suspend", False).settle()
    assert life.status["acceleratorSeconds"] == held == pytest.approx(8 * 20)


def test_a_new_price_counts_from_then_on_and_a_new_currency_apart():
    life = Life(make_job().with_("spec.accelerator.pool", "gpus"), PRICED).train(0).spend(stepping=1000).report()
    life.pool = replace(PRICED, price={"perAcceleratorHour": 7.2, "currency": "USD"})
    life.settle().spend(stepping=1000).report()
    life.pool = replace(PRICED, price={"perAcceleratorHour": 1.0, "currency": "EUR"})
    life.spend(stepping=450).report().ends(0, clock=life.final())
    amounts = {one["currency"]: one["amount"] for one in life.status["cost"]}
    assert amounts == {"USD": pytest.approx(8.0 + 16.0), "EUR": pytest.approx(1.0)}
    assert life.status["display"]["cost"] == "24.00 USD + 1.00 EUR"


@pytest.mark.parametrize(
    ("price", "said"),
    [
        (
            {"perAcceleratorHour": 2.5},
            "spec.price.currency: is missing: a price needs its currency, such as USD or EUR",
        ),
        (
            {"currency": "USD"},
            "spec.price.perAcceleratorHour: is missing: give the price of one accelerator for one hour",
        ),
        ({"perAcceleratorHour": 2.5, "currency": "usd"}, "spec.price.currency: "),
        ({"perAcceleratorHour": -1, "currency": "USD"}, "spec.price.perAcceleratorHour: "),
    ],
    ids=str,
)
def test_a_price_that_says_too_little_is_refused_with_the_fix(price, said):
    manifest = {"kind": names.POOL_KIND, "apiVersion": names.API_VERSION, "metadata": {"name": "p"}}
    (found,) = manifest_problems({**manifest, "spec": {"vendor": "cpu", "price": price}})
    assert str(found).startswith(said)


@pytest.mark.parametrize(
    ("amount", "text"),
    {
        0.0: "0.00 USD",
        0.000123: "0.00012 USD",
        0.05: "0.050 USD",
        12.4: "12.40 USD",
        12345.678: "12,345.68 USD",
    }.items(),
)
def test_small_amounts_keep_two_digits(amount, text):
    assert goodput.money(amount, "USD") == text


def test_describe_and_report_name_each_cause_with_its_share_and_the_cost():
    life = Life(make_job().with_("spec.accelerator.pool", "gpus"), PRICED).train(100).spend(stepping=800, data=100)
    life.report().ends(0, clock=life.final())
    job = {**life.builder.manifest(), "status": life.status}
    console = Console(width=200, file=io.StringIO())
    console.print(render(Facts(job, life.now), []))
    console.print(to_screen(summarize(job, life.now)))
    shown = console.file.getvalue()
    assert shown.count("80% of the job's life was steps") == 2
    assert shown.count("8.00 USD, of which 1.60 USD went to other than steps") == 2
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith("data ")] == 2 * [
        ["data", "1m40s", "10.0%"]
    ]
    html = page([read_job(job, [], life.now, "step", 10)], life.now)
    assert '<span class="data" style="flex:100" title="data: 1m40s 10.0%">' in html


def test_an_older_status_has_no_section_of_goodput():
    job = {**make_job().manifest(), "status": {"state": "Running", "display": {"state": "Running"}}}
    assert "Where the time went" not in page([read_job(job, [], START, "step", 10)], START)


# What is not known


def test_a_lost_status_leaves_the_time_before_unmeasured():
    life = Life().train().spend(stepping=200).report()
    life.status = {}
    life.settle()
    life.spend(stepping=100).report().ends(0, clock=life.final())
    assert sum(life.seconds.values()) == pytest.approx(life.wall(), abs=0.01)
    assert life.seconds["stepping"] == pytest.approx(300), "the trainer's clock has all of its attempt"
    assert min(life.seconds.values()) > 0


def test_a_lost_status_of_a_second_attempt_leaves_the_first_unmeasured():
    life = Life().train().spend(stepping=200).report().ends(1)
    life.train().spend(stepping=50).report()
    life.status = {}
    life.settle()
    life.spend(stepping=50).report().ends(0, clock=life.final())
    assert life.seconds == pytest.approx({"unmeasured": 220, "starting": 20, "stepping": 100}, abs=0.01)
    assert life.status["display"]["goodput"] == "≥29%"


def test_a_restored_job_begins_a_new_account_and_says_what_it_found_trained():
    life = Life().train().spend(stepping=10).report(first=140.0)
    assert life.status["goodput"]["stepsBefore"] == 140
    other = Life()
    other.status = {key: life.status[key] for key in ("goodput", "acceleratorSeconds")}
    other.status["goodput"] = {**other.status["goodput"], "since": "2025-01-01T00:00:00Z"}
    other.settle()
    assert other.status["goodput"]["since"] == write_time(START)
    assert other.status["goodput"]["seconds"] == {}


def test_a_clock_set_forward_is_unmeasured_and_reported():
    life = Life().train().spend(stepping=100).report()
    life.wait(3600)
    life.spend(stepping=100).report().ends(0, clock=life.final())
    assert life.seconds == pytest.approx({"starting": 20, "stepping": 200, "unmeasured": 3600}, abs=0.01)
    assert life.status["goodput"]["skewSeconds"] == pytest.approx(3600, abs=0.01)


def test_a_clock_set_back_never_makes_a_negative_number():
    life = Life().train().spend(stepping=100).report()
    life.wait(-90)
    life.spend(stepping=40, data=10).report().ends(0, clock=life.final())
    assert sum(life.seconds.values()) == pytest.approx(life.wall(), abs=0.01)
    assert all(amount >= 0 for amount in life.seconds.values())
    assert life.status["goodput"]["skewSeconds"] > 10
    assert life.status["goodput"]["percent"] <= 100


@pytest.mark.parametrize(
    "clock",
    [
        {"stepping": float("nan"), "open": 1},
        {"stepping": -5, "step": -1},
        {"stepping": "1", "data": True},
        {"stepping": 1e300},
        {"unheard": 4.0},
        [1, 2],
        "x",
    ],
    ids=str,
)
def test_nonsense_from_a_pod_changes_nothing(clock):
    life = Life().train()
    before = life.status["goodput"]
    life.push(step=1, clock=clock).settle()
    assert life.status["goodput"].get("clock") == before.get("clock")
    assert all(amount >= 0 for amount in life.seconds.values())
    assert problems(life.status) == []


def test_an_older_clock_after_a_newer_one_corrects_it():
    life = Life().train().spend(stepping=50)
    clock = dict(life.clock)
    life.spend(stepping=50).report()
    life.push(step=life.at, clock={**clock, "open": 50}).settle()
    assert life.seconds["stepping"] == 50
    life.report()
    assert life.seconds["stepping"] == 100


def test_an_upgrade_counts_the_time_before_it_as_unmeasured():
    life = Life().train().ends(1)
    life.wait(50)
    del life.status["goodput"]
    life.settle()
    assert life.status["goodput"]["seconds"] == {"unmeasured": 20.0}, "the second attempt is still open"


def test_an_upgrade_writes_nothing_to_a_job_that_has_ended():
    life = Life().train().ends(0)
    del life.status["goodput"]
    life.status.pop("acceleratorSeconds")
    life.status["display"].pop("goodput", None)
    before = life.status
    assert life.wait(1000).settle().status == before


# Any life


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, dict[str, float]]]:
    spans = st.floats(0.0, 400.0).map(lambda value: round(value, 1))
    causes = st.dictionaries(st.sampled_from(CLOCK_CAUSES), spans, max_size=4)
    return draw(
        st.lists(st.tuples(st.sampled_from(["fail", "suspend", "evict", "silent"]), causes), min_size=1, max_size=5)
    )


@settings(max_examples=30, deadline=None)
@given(lives(), st.floats(0.0, 5.0))
def test_whatever_happens_the_causes_add_up_to_the_wall_time(attempts, delay):
    life = Life(make_job().with_("spec.maxRestarts", 99))
    for end, causes in attempts:
        life.wait(400).settle()
        life.train(starting=7).spend(**causes)
        if end != "silent":
            life.wait(delay).report()
        if end == "suspend":
            life.edit("spec.suspend", True).settle().ends(143, clock=life.final())
            life.wait(33).edit("spec.suspend", False).settle()
        elif end == "evict":
            life.evict(0).settle().wait(90).settle()
        else:
            life.ends(1)
        assert problems(life.status) == []
    life.wait(400).train().spend(stepping=1).report().ends(0, clock=life.final())
    assert sum(life.seconds.values()) == pytest.approx(life.wall(), rel=0.01)
    measured = sum(one.get("stepping", 0.0) for end, one in attempts if end != "silent") + 1
    assert life.seconds["stepping"] == pytest.approx(measured, abs=1.0), "times are whole seconds"
    assert life.status["state"] == "Succeeded"

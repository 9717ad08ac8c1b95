"""The example of a user's own model, under real launchers: trained, reported, stopped and resumed."""

import re
from pathlib import Path

import pytest
import yaml

from trainer.gangs import Gang
from trainer.receiver import Receiver

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script() -> dict:
    return yaml.safe_load((EXAMPLES / "digits.yaml").read_text())["spec"]["script"]


def test_the_manifest_holds_the_script_word_for_word(script):
    assert script["inline"] == (EXAMPLES / "digits.py").read_text()


def test_two_pods_learn_to_read_and_report_it(script, tmp_path):
    with Receiver() as receiver, Gang(tmp_path, script=script, nodes=2, attempt=2) as gang:
        gang.environment = {"KUBEFLOW_TRAINER_SERVER_URL": receiver.url}
        assert gang.run(120) == [0, 0], gang.log(0) + gang.log(1)
    accuracy = float(re.search(r"never seen: (\d\.\d+)", gang.log(0))[1])
    assert accuracy > 0.9
    word = gang.word(0)
    assert word.metrics["eval_accuracy"] == pytest.approx(accuracy, abs=1e-3)
    assert word.step == word.max_steps == 184  # 8 epochs of 1437 digits in batches of 2 times 32
    assert word.checkpoint == "checkpoint-184"
    assert word.best["metric"] == "accuracy"
    last = receiver.documents[-1]
    assert (last["trainwright"]["step"], last["trainwright"]["attempt"]) == (184, 2)
    assert gang.word(1).metrics == {}


def test_a_stopped_run_resumes_at_its_step(script, tmp_path):
    slower = script["inline"].replace("num_train_epochs=8", "num_train_epochs=60")
    with Receiver() as receiver, Gang(tmp_path, slower) as gang:
        gang.environment = {"KUBEFLOW_TRAINER_SERVER_URL": receiver.url}
        gang.start()
        receiver.wait_for(lambda: any(told["trainwright"]["step"] > 20 for told in receiver.documents), 60)
        gang.signal(0)
        assert gang.wait() == [143], gang.log()
        stopped = gang.word()
    assert stopped.reason == "Preempted"
    assert stopped.checkpoint == f"checkpoint-{stopped.step}"
    shorter = script["inline"].replace("num_train_epochs=8", f"max_steps={stopped.step + 10}")
    with Gang(tmp_path, shorter, attempt=2) as gang:
        assert gang.run(90) == [0], gang.log()
        resumed = gang.word()
    assert resumed.step == stopped.step + 10
    assert f"checkpoint-{resumed.step}" in {path.name for path in (tmp_path / "output").iterdir()}

"""Settings come from the environment, and a wrong value is refused in words."""

import re

import pytest

from trainwright_operator.cluster.settings import SettingsError, from_environment


def test_settings_are_read_from_the_environment_or_have_their_defaults():
    settings = from_environment(
        {"TRAINWRIGHT_NAMESPACES": "a, b", "TRAINWRIGHT_WORKERS": "3", "TRAINWRIGHT_LEADER_ELECTION": "false"}
    )
    assert settings.namespaces == ("a", "b")
    assert settings.workers == 3
    assert settings.leader_election is False
    assert settings.status_interval == 15.0
    assert settings.progress_base_url == "https://trainwright-progress.trainwright-system.svc:8443"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TRAINWRIGHT_WORKERS", "many", "a whole number"),
        ("TRAINWRIGHT_LEADER_ELECTION", "yes", "true or false"),
        ("TRAINWRIGHT_STATUS_INTERVAL", "15s", "a number of seconds"),
    ],
)
def test_a_value_that_is_no_value_is_refused(variable, value, words):
    with pytest.raises(SettingsError, match=f"{variable}='{value}': takes {words}"):
        from_environment({variable: value})


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WORKERS", "0", "WORKERS=0: takes 1 to 1024"),
        ("STATUS_BUDGET", "0", "STATUS_BUDGET=0: takes 0.01 to 10000"),
        ("STATUS_BUDGET", "nan", "STATUS_BUDGET=nan: takes 0.01 to 10000"),
        ("PROGRESS_PORT", "70000", "PROGRESS_PORT=70000: takes 0 to 65535"),
        ("PROGRESS_PORT", "8080", "PROGRESS_PORT=8080: is that of health and metrics (HTTP_PORT)"),
        ("LOG_LEVEL", "info", "LOG_LEVEL='info': takes DEBUG, INFO, WARNING, ERROR"),
        ("LEASE_RENEW_DEADLINE", "15", "takes more than LEASE_PERIOD (2) and less than LEASE_DURATION (15)"),
    ],
)
def test_a_value_with_which_nothing_would_work_is_refused(variable, value, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        from_environment({f"TRAINWRIGHT_{variable}": value})


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("trainwright.dev/job", "is the operator's own; leave it out"),
        ("app.kubernetes.io/managed-by", "is the operator's own; leave it out"),
        ("my team", "a key is a name of at most 63 letters"),
    ],
)
def test_a_label_that_cannot_be_passed_on_is_named(label, words):
    assert from_environment({"TRAINWRIGHT_PROPAGATE_LABELS": "team, cost"}).propagate_labels == ("team", "cost")
    with pytest.raises(SettingsError, match=f"TRAINWRIGHT_PROPAGATE_LABELS={label}: {words}"):
        from_environment({"TRAINWRIGHT_PROPAGATE_LABELS": f"team,{label}"})

"""Settings come from the environment, and a wrong value is refused in words."""

import pytest

from trainwright_operator.cluster.settings import SettingsError, from_environment


def test_defaults_and_values():
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
def test_a_wrong_value_is_refused(variable, value, words):
    with pytest.raises(SettingsError, match=f"{variable}='{value}': takes {words}"):
        from_environment({variable: value})

"""Merge patches between two states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake.api_server import merged
from trainwright_operator.cluster.patches import can_wait, merge_patch

leaves = st.one_of(st.integers(), st.text(max_size=3), st.booleans(), st.lists(st.integers(), max_size=2))
objects = st.recursive(leaves, lambda below: st.dictionaries(st.sampled_from("abcd"), below, max_size=3), max_leaves=8)
states = st.dictionaries(st.sampled_from("abcd"), objects, max_size=4)


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        pytest.param({"a": 1}, {"a": 1}, {}, id="equal"),
        pytest.param({}, {"a": {"b": 1}}, {"a": {"b": 1}}, id="added"),
        pytest.param({"a": 1, "b": 2}, {"b": 2}, {"a": None}, id="removed"),
        pytest.param({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}}, {"a": {"b": 3}}, id="below"),
        pytest.param({"a": [1, 2]}, {"a": [2]}, {"a": [2]}, id="lists are whole"),
        pytest.param({"a": 1}, {"a": {}}, {"a": {}}, id="another kind"),
    ],
)
def test_a_patch_holds_only_what_differs(before, after, patch):
    assert merge_patch(before, after) == patch


@given(states, states)
def test_applying_the_patch_gives_the_other_state(before, after):
    assert merged(before, merge_patch(before, after)) == after


def told(reason="Unschedulable", message="0/12 nodes are available: 3 Insufficient cpu.", status="True"):
    return [{"type": "Queued", "status": status, "reason": reason, "message": message}]


REFUSED = "exceeded quota: q, requested: pods=1, used: pods=4, limited: pods=4"


@pytest.mark.parametrize(
    ("patch", "before", "waits"),
    [
        ({"progress": {"step": 3}, "display": {"step": "3"}}, {}, True),
        ({"metrics": []}, {}, True),
        ({"nodes": {"ready": 1}}, {}, True),
        ({"progress": {}, "conditions": []}, {"conditions": told()}, False),
        ({"state": "Running"}, {}, False),
        pytest.param({"conditions": told()}, {}, False, id="the first word"),
        pytest.param({"conditions": told()}, {"conditions": told("PodsStarting", "")}, False, id="another reason"),
        pytest.param({"conditions": told()}, {"conditions": told(message="")}, False, id="a first message"),
        pytest.param({"conditions": told()}, {"conditions": told(status="False")}, False, id="it holds now"),
        pytest.param(
            {"conditions": told(message="0/13 nodes are available: 1 node is new."), "display": {"why": "0/13"}},
            {"conditions": told()},
            True,
            id="the scheduler's next word",
        ),
        pytest.param(
            {"conditions": told(message="0/13 nodes"), "state": "Running"}, {"conditions": told()}, False, id="a state"
        ),
        pytest.param(
            {"conditions": told("PodsRefused", REFUSED.replace("=4", "=1500m"))},
            {"conditions": told("PodsRefused", REFUSED)},
            True,
            id="what is used of a quota",
        ),
        pytest.param(
            {"conditions": told("PodsRefused", REFUSED)},
            {"conditions": told("PodsRefused", "`kubectl describe job` tells why")},
            False,
            id="why pods are refused",
        ),
    ],
)
def test_only_progress_and_further_messages_may_wait_for_their_turn(patch, before, waits):
    assert can_wait(patch, before) is waits

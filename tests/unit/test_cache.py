"""The cache: newest wins, deletions stick, lists evict, the index follows."""

import pytest

from trainwright_operator.cluster.cache import Store, slim_pod
from trainwright_operator.cluster.controller import settle_seconds


def pod(name, version, job="a"):
    return {
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": str(version), "labels": {"job": job}},
    }


@pytest.fixture
def store():
    return Store(group_by=lambda obj: obj["metadata"]["labels"]["job"])


def names(objects):
    return sorted(obj["metadata"]["name"] for obj in objects)


def test_an_older_object_does_not_replace_a_newer_one(store):
    assert store.put(pod("p", 7))
    assert not store.put(pod("p", 5))
    assert not store.put(pod("p", 7))
    assert store.get(("ns", "p"))["metadata"]["resourceVersion"] == "7"


def test_versions_are_compared_as_numbers(store):
    store.put(pod("p", 9))
    assert store.put(pod("p", 10))


def test_a_late_event_does_not_bring_a_deleted_object_back(store):
    store.put(pod("p", 5))
    assert store.remove(pod("p", 8))
    assert not store.put(pod("p", 6))
    assert store.get(("ns", "p")) is None
    assert store.put(pod("p", 9)), "a new object of the same name is another matter"


def test_a_deletion_that_came_late_does_not_remove_the_successor(store):
    store.put(pod("p", 9))
    assert not store.remove(pod("p", 8))
    assert store.get(("ns", "p")) is not None


def test_the_index_follows_a_changed_label_and_a_deletion(store):
    store.put(pod("p", 1, job="a"))
    store.put(pod("q", 2, job="a"))
    store.put(pod("p", 3, job="b"))
    assert names(store.group("a")) == ["q"]
    assert (store.count("a"), store.count("nobody")) == (1, 0)
    assert names(store.group("b")) == ["p"]
    store.remove(pod("p", 4, job="b"))
    assert store.group("b") == []


def test_a_list_evicts_what_is_gone_and_keeps_what_is_newer_than_it(store):
    store.put(pod("gone", 3))
    store.put(pod("same", 4))
    store.put(pod("after-the-list", 12))
    changed = store.replace([pod("same", 4), pod("new", 9)], version=10)
    assert names(changed) == ["gone", "new"]
    assert names(store) == ["after-the-list", "new", "same"]


def test_managed_fields_are_not_kept(store):
    obj = pod("p", 1)
    obj["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    store.put(obj)
    assert "managedFields" not in store.get(("ns", "p"))["metadata"]
    assert "managedFields" in obj["metadata"], "the caller's object is left alone"


def test_of_a_pod_only_what_is_read_is_kept():
    obj = pod("p", 1)
    obj["metadata"]["annotations"] = {"trainwright.dev/resolved-job": "x" * 3000, "index": "3"}
    obj["spec"] = {"nodeName": "n", "volumes": [{"name": "v"}], "containers": [{"name": "trainer"}]}
    pods = Store(slim=slim_pod)
    pods.put(obj)
    kept = pods.get(("ns", "p"))
    assert kept["metadata"]["annotations"] == {"index": "3"}
    assert kept["spec"] == {"nodeName": "n", "containers": [{"name": "trainer"}]}
    assert "volumes" in obj["spec"], "the caller's object is left alone"


@pytest.mark.parametrize(("pods", "seconds"), [(0, 0.25), (10, 0.25), (1000, 0.5), (5000, 2.0), (100_000, 2.0)])
def test_a_change_in_a_gang_of_thousands_waits_longer_for_more(pods, seconds):
    assert settle_seconds(pods) == seconds

"""The latest known state of the cluster, from which the reconciler reads.

Watches deliver events at least once, out of order after a reconnect, and miss deletions during a relist. So an object
replaces another of the same name only if it is newer, a deletion leaves a tombstone so that a late event cannot bring
the object back, and a full list evicts objects that it does not contain.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

Object = dict[str, Any]
ObjectKey = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is ''."""


def key_of(obj: Object) -> ObjectKey:
    meta = obj["metadata"]
    return meta.get("namespace", ""), meta["name"]


def version_of(obj: Object) -> int:
    """The resourceVersion as a number; it increases over all resources of an API server."""
    version = obj["metadata"].get("resourceVersion", "0")
    return int(version) if version.isdigit() else 0


def slim(obj: Object) -> Object:
    """Without managedFields, which are half of the size of an object and are not used."""
    meta = obj["metadata"]
    if "managedFields" not in meta:
        return obj
    return {**obj, "metadata": {key: value for key, value in meta.items() if key != "managedFields"}}


def slim_pod(obj: Object) -> Object:
    """Also without what all pods of a job carry alike and the operator wrote itself: of thousands it is most."""
    obj = slim(obj)
    meta, spec = obj["metadata"], obj.get("spec") or {}
    annotations = {name: text for name, text in (meta.get("annotations") or {}).items() if len(text) <= LONGEST_KEPT}
    kept = {name: value for name, value in spec.items() if name not in _SAME_IN_ALL_PODS}
    return {**obj, "metadata": {**meta, "annotations": annotations}, "spec": kept}


LONGEST_KEPT = 256
_SAME_IN_ALL_PODS = frozenset({"volumes", "affinity", "tolerations", "securityContext", "topologySpreadConstraints"})


class Store:
    """The objects of one resource, indexed by the result of ``group_by`` (None: not indexed)."""

    def __init__(
        self,
        group_by: Callable[[Object], Hashable | None] = lambda obj: None,
        slim: Callable[[Object], Object] = slim,
    ) -> None:
        self._group_by, self._slim = group_by, slim
        self._objects: dict[ObjectKey, Object] = {}
        self._groups: dict[Hashable, dict[ObjectKey, None]] = {}
        self._deleted: dict[ObjectKey, int] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(self._objects.values())

    def get(self, key: ObjectKey) -> Object | None:
        return self._objects.get(key)

    def group(self, group: Hashable) -> list[Object]:
        return [self._objects[key] for key in self._groups.get(group, ())]

    def count(self, group: Hashable) -> int:
        return len(self._groups.get(group, ()))

    def put(self, obj: Object) -> bool:
        """Store ``obj``; False if it is not newer than the stored object."""
        key, version = key_of(obj), version_of(obj)
        known = self._objects.get(key)
        if (known is not None and version <= version_of(known)) or version <= self._deleted.get(key, -1):
            return False
        if known is not None:
            self._drop(key, known)
        self._deleted.pop(key, None)
        self._objects[key] = self._slim(obj)
        group = self._group_by(obj)
        if group is not None:
            self._groups.setdefault(group, {})[key] = None
        return True

    def remove(self, obj: Object) -> bool:
        """Record that ``obj`` was deleted; False if the store has a newer object of that name, or none."""
        key, version = key_of(obj), version_of(obj)
        known = self._objects.get(key)
        if known is not None and version_of(known) > version:
            return False
        self._deleted[key] = max(version, self._deleted.get(key, 0))
        if known is None:
            return False
        self._drop(key, known)
        return True

    def replace(self, objects: list[Object], version: int) -> list[Object]:
        """Sync the store with a full list at ``version``; returns every object that changed or was removed."""
        changed = [obj for obj in objects if self.put(obj)]
        listed = {key_of(obj) for obj in objects}
        gone = [obj for key, obj in self._objects.items() if key not in listed and version_of(obj) <= version]
        for obj in gone:
            self._drop(key_of(obj), obj)
        self._deleted = {key: at for key, at in self._deleted.items() if at > version}
        return changed + gone

    def _drop(self, key: ObjectKey, obj: Object) -> None:
        del self._objects[key]
        group = self._group_by(obj)
        if group is not None and (members := self._groups.get(group)) is not None:
            members.pop(key, None)
            if not members:
                del self._groups[group]

"""Affinity, topology spread constraints and DNS of ``spec.podTemplate``, under Kubernetes' field names.

A selector that is absent selects the pods of the attempt, because users do not know their labels in advance.
"""

from __future__ import annotations

from typing import Any

from trainwright_operator.api import formats
from trainwright_operator.api.types import Rule, Schema, integer, list_of, record, string

REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
OWN_PODS = "Default: the pods of the attempt."
_VALUELESS, _COMPARING = ("Exists", "DoesNotExist"), ("Gt", "Lt")


def affinity() -> Schema:
    return record(
        "Affinity to nodes and pods, in addition to the node selector of the pool.",
        {
            "nodeAffinity": record(
                "Affinity to nodes by their labels.",
                {
                    REQUIRED: record(
                        "Required node labels.",
                        {"nodeSelectorTerms": list_of("Terms, of which one must match.", _node_term(), 8, least=1)},
                        required=["nodeSelectorTerms"],
                    ),
                    PREFERRED: list_of(
                        "Preferred terms.",
                        record(
                            "A preferred term.",
                            {"weight": _weight(), "preference": _node_term()},
                            required=["weight", "preference"],
                        ),
                        8,
                    ),
                },
            ),
            "podAffinity": _pods("Pods to be placed near to."),
            "podAntiAffinity": _pods("Pods to be placed away from."),
        },
    )


def _pods(about: str) -> Schema:
    preferred = record(
        "A preferred term.",
        {"weight": _weight(), "podAffinityTerm": _pod_term()},
        required=["weight", "podAffinityTerm"],
    )
    return record(
        about,
        {
            REQUIRED: list_of("Terms, all of which must match.", _pod_term(), 8),
            PREFERRED: list_of("Preferred terms.", preferred, 8),
        },
    )


def _weight() -> Schema:
    return integer("The weight of the term.", 1, 100)


def _node_term() -> Schema:
    return record(
        "Labels of a node, all of which must match.",
        {
            "matchExpressions": list_of(
                "The labels.", _expression((*_VALUELESS, "In", "NotIn", *_COMPARING)), 16, least=1
            )
        },
        required=["matchExpressions"],
    )


def _pod_term() -> Schema:
    return record(
        "Pods, and the topology that is shared with them or not.",
        {
            "labelSelector": _selector(f"Which pods. {OWN_PODS}"),
            "topologyKey": _topology(),
            "namespaces": list_of(
                "Namespaces of those pods. Default: the job's namespace.",
                string("A namespace.", 63, least=1, pattern=formats.LABEL),
                16,
            ),
        },
        required=["topologyKey"],
    )


def _topology() -> Schema:
    return string(
        "The node label that defines a topology domain, such as topology.kubernetes.io/zone.",
        317,
        least=1,
        pattern=formats.QUALIFIED,
    )


def _selector(about: str) -> Schema:
    return record(
        about,
        {
            "matchLabels": formats.label_map("Labels of the pods.", 16),
            "matchExpressions": list_of(
                "Expressions over the labels of the pods.", _expression((*_VALUELESS, "In", "NotIn")), 16
            ),
        },
    )


def _expression(operators: tuple[str, ...]) -> Schema:
    compares = set(_COMPARING) <= set(operators)
    return record(
        "A label, an operator and values.",
        {
            "key": string("The label.", 317, least=1, pattern=formats.QUALIFIED),
            "operator": string("How the label is compared.", among=operators),
            "values": list_of(
                "The values to compare with.", string("A value.", 63, pattern=formats.LABEL_VALUE), 64, least=1
            ),
        },
        required=["key", "operator"],
        rules=[_values_fit(), *([_compares_with_a_number()] if compares else [])],
    )


def _values_fit() -> Rule:
    return Rule(
        "(self.operator in ['Exists', 'DoesNotExist']) != has(self.values)",
        "Exists and DoesNotExist take no values; every other operator does",
        lambda data: (data["operator"] in _VALUELESS) != ("values" in data),
        field="values",
        needs=("operator",),
    )


def _compares_with_a_number() -> Rule:
    def holds(data: dict[str, Any]) -> bool:
        values = data.get("values", ())
        alone = len(values) == 1 and str(values[0]).isascii() and str(values[0]).isdigit()
        return data["operator"] not in _COMPARING or not values or alone

    return Rule(
        "!(self.operator in ['Gt', 'Lt']) || !has(self.values) || "
        "(size(self.values) == 1 && self.values.all(k, k.matches('^[0-9]+$')))",
        'Gt and Lt compare with one whole number, such as ["40000"]',
        holds,
        field="values",
        needs=("operator", "values"),
    )


def spreading() -> Schema:
    constraint = record(
        "How evenly the pods are spread over topology domains.",
        {
            "maxSkew": integer("The maximum difference in pods between two domains.", 1),
            "topologyKey": _topology(),
            "whenUnsatisfiable": string(
                "Whether to wait until the constraint holds.", among=["DoNotSchedule", "ScheduleAnyway"]
            ),
            "labelSelector": _selector(f"Which pods are counted. {OWN_PODS}"),
            "minDomains": integer("The minimum number of domains, with DoNotSchedule. Default: 1.", 1),
            "nodeAffinityPolicy": _policy("nodes excluded by affinity", "Honor"),
            "nodeTaintsPolicy": _policy("nodes with taints that are not tolerated", "Ignore"),
        },
        required=["maxSkew", "topologyKey", "whenUnsatisfiable"],
        rules=[
            Rule(
                "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
                "needs whenUnsatisfiable: DoNotSchedule",
                lambda data: "minDomains" not in data or data["whenUnsatisfiable"] == "DoNotSchedule",
                field="minDomains",
                needs=("whenUnsatisfiable",),
            )
        ],
    )
    return list_of("How the pods are spread over nodes, racks or zones.", constraint, 8)


def _policy(nodes: str, default: str) -> Schema:
    return string(f"Whether {nodes} are left out of the count (Honor). Default: {default}.", among=["Honor", "Ignore"])


def spread_over_different() -> Rule:
    def holds(pod: dict[str, Any]) -> bool:
        over = [(one["topologyKey"], one["whenUnsatisfiable"]) for one in pod.get("topologySpreadConstraints", ())]
        return len(over) == len(set(over))

    return Rule(
        "!has(self.topologySpreadConstraints) || self.topologySpreadConstraints.all(a, "
        "self.topologySpreadConstraints.exists_one(b, b.topologyKey == a.topologyKey && "
        "b.whenUnsatisfiable == a.whenUnsatisfiable))",
        "two constraints have the same topologyKey and whenUnsatisfiable; keep one of them",
        holds,
        field="topologySpreadConstraints",
    )


def dns() -> Schema:
    option = record(
        "An option.",
        {
            "name": string("The name of the option.", 253, least=1, pattern=formats.NO_SPACE),
            "value": string("The value of the option. Default: none.", 253),
        },
        required=["name"],
    )
    return record(
        "Additions to the DNS configuration of the pods.",
        {
            "nameservers": list_of(
                "IP addresses of additional DNS servers.",
                string("An IP address.", 45, least=2, pattern=formats.NO_SPACE),
                2,
            ),
            "searches": list_of(
                "Additional search domains.", string("A domain.", 253, least=1, pattern=formats.NO_SPACE), 16
            ),
            "options": list_of("Options of the resolver, such as ndots.", option, 16),
        },
    )

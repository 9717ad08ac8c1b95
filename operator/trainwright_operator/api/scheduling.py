"""Where the scheduler puts pods, and what they resolve: affinity, spreading, DNS, under Kubernetes' own names.

A selector that is left out means the pods of the attempt itself: nobody knows their labels before they are made.
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
        "Which nodes, and which pods near by or far, beside what the pool demands.",
        {
            "nodeAffinity": record(
                "Nodes by their labels.",
                {
                    REQUIRED: record(
                        "What a node must have.",
                        {"nodeSelectorTerms": list_of("One of these must hold.", _node_term(), 8, least=1)},
                        required=["nodeSelectorTerms"],
                    ),
                    PREFERRED: list_of(
                        "What makes a node better.",
                        record(
                            "A wish.",
                            {"weight": _weight(), "preference": _node_term()},
                            required=["weight", "preference"],
                        ),
                        8,
                    ),
                },
            ),
            "podAffinity": _pods("Pods to be near to."),
            "podAntiAffinity": _pods("Pods to be far from."),
        },
    )


def _pods(about: str) -> Schema:
    wish = record(
        "A wish.", {"weight": _weight(), "podAffinityTerm": _pod_term()}, required=["weight", "podAffinityTerm"]
    )
    return record(
        about,
        {
            REQUIRED: list_of("All of these must hold.", _pod_term(), 8),
            PREFERRED: list_of("What makes a node better.", wish, 8),
        },
    )


def _weight() -> Schema:
    return integer("How much it counts.", 1, 100)


def _node_term() -> Schema:
    return record(
        "Labels of a node, all of which must hold.",
        {
            "matchExpressions": list_of(
                "The labels.", _expression((*_VALUELESS, "In", "NotIn", *_COMPARING)), 16, least=1
            )
        },
        required=["matchExpressions"],
    )


def _pod_term() -> Schema:
    return record(
        "Pods, and what they are to share or not to share.",
        {
            "labelSelector": _selector(f"Which pods. {OWN_PODS}"),
            "topologyKey": _topology(),
            "namespaces": list_of(
                "Namespaces of those pods. Default: the job's own.",
                string("A namespace.", 63, least=1, pattern=formats.LABEL),
                16,
            ),
        },
        required=["topologyKey"],
    )


def _topology() -> Schema:
    return string(
        "The label of nodes, such as topology.kubernetes.io/zone, whose value says what is one place.",
        317,
        least=1,
        pattern=formats.QUALIFIED,
    )


def _selector(about: str) -> Schema:
    return record(
        about,
        {
            "matchLabels": formats.label_map("Labels they have.", 16),
            "matchExpressions": list_of("What their labels are.", _expression((*_VALUELESS, "In", "NotIn")), 16),
        },
    )


def _expression(operators: tuple[str, ...]) -> Schema:
    compares = set(_COMPARING) <= set(operators)
    return record(
        "A label and what it may be.",
        {
            "key": string("The label.", 317, least=1, pattern=formats.QUALIFIED),
            "operator": string("How it is compared.", among=operators),
            "values": list_of(
                "What it is compared with.", string("A value.", 63, pattern=formats.LABEL_VALUE), 64, least=1
            ),
        },
        required=["key", "operator"],
        rules=[_values_fit(), *([_compares_with_a_number()] if compares else [])],
    )


def _values_fit() -> Rule:
    return Rule(
        "(self.operator in ['Exists', 'DoesNotExist']) != has(self.values)",
        "Exists and DoesNotExist take no values; every other operator does",
        lambda it: (it["operator"] in _VALUELESS) != ("values" in it),
        field="values",
        needs=("operator",),
    )


def _compares_with_a_number() -> Rule:
    def fine(it: dict[str, Any]) -> bool:
        values = it.get("values", ())
        alone = len(values) == 1 and str(values[0]).isascii() and str(values[0]).isdigit()
        return it["operator"] not in _COMPARING or not values or alone

    return Rule(
        "!(self.operator in ['Gt', 'Lt']) || !has(self.values) || "
        "(size(self.values) == 1 && self.values.all(k, k.matches('^[0-9]+$')))",
        'Gt and Lt compare with one whole number, such as ["40000"]',
        fine,
        field="values",
        needs=("operator", "values"),
    )


def spreading() -> Schema:
    constraint = record(
        "How evenly the pods are spread over one kind of place.",
        {
            "maxSkew": integer("By how many pods two places may differ.", 1),
            "topologyKey": _topology(),
            "whenUnsatisfiable": string("Whether to wait.", among=["DoNotSchedule", "ScheduleAnyway"]),
            "labelSelector": _selector(f"Which pods are counted. {OWN_PODS}"),
            "minDomains": integer("How many places there must be, with DoNotSchedule. Default: 1.", 1),
            "nodeAffinityPolicy": _policy("nodes that affinity leaves out", "Honor"),
            "nodeTaintsPolicy": _policy("nodes whose taints keep the pods out", "Ignore"),
        },
        required=["maxSkew", "topologyKey", "whenUnsatisfiable"],
        rules=[
            Rule(
                "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
                "needs whenUnsatisfiable: DoNotSchedule",
                lambda it: "minDomains" not in it or it["whenUnsatisfiable"] == "DoNotSchedule",
                field="minDomains",
                needs=("whenUnsatisfiable",),
            )
        ],
    )
    return list_of("How the pods are spread over nodes, racks or zones.", constraint, 8)


def _policy(whom: str, default: str) -> Schema:
    return string(f"Whether {whom} are left out of the count (Honor). Default: {default}.", among=["Honor", "Ignore"])


def spread_over_different() -> Rule:
    def fine(pod: dict[str, Any]) -> bool:
        over = [(one["topologyKey"], one["whenUnsatisfiable"]) for one in pod.get("topologySpreadConstraints", ())]
        return len(over) == len(set(over))

    return Rule(
        "!has(self.topologySpreadConstraints) || self.topologySpreadConstraints.all(a, "
        "self.topologySpreadConstraints.exists_one(b, b.topologyKey == a.topologyKey && "
        "b.whenUnsatisfiable == a.whenUnsatisfiable))",
        "two constraints are of one topologyKey and whenUnsatisfiable; keep one of them",
        fine,
        field="topologySpreadConstraints",
    )


def dns() -> Schema:
    option = record(
        "An option.",
        {
            "name": string("Its name.", 253, least=1, pattern=formats.NO_SPACE),
            "value": string("Its value. Default: none.", 253),
        },
        required=["name"],
    )
    return record(
        "What is added to the cluster's DNS, by which the pods find each other.",
        {
            "nameservers": list_of(
                "Addresses of further servers.", string("An IP address.", 45, least=2, pattern=formats.NO_SPACE), 2
            ),
            "searches": list_of(
                "Further domains to look in.", string("A domain.", 253, least=1, pattern=formats.NO_SPACE), 16
            ),
            "options": list_of("Options of the resolver, such as ndots.", option, 16),
        },
    )

"""What a person can do about the words of Kubernetes' own programs: the scheduler, the kubelet, quotas, admission."""

from __future__ import annotations

import re

_FIXES = (
    (
        r"Insufficient ([\w./-]*\w)",
        "ask for less {0} (accelerator, podTemplate.resources), or wait for room, or add nodes",
    ),
    (
        r"untolerated taint\(?s?\)? ?\{([^:}]+)",
        "tolerate the taint {0}: podTemplate.tolerations, or the pool's tolerations",
    ),
    (
        r"node affinity/selector",
        "no node with room carries the labels asked for: compare the nodeSelector of podTemplate and of the pool with "
        "kubectl get nodes --show-labels",
    ),
    (
        r'persistentvolumeclaim "([^"]+)" not found',
        "create the PersistentVolumeClaim {0} in this namespace, or name another in a new run",
    ),
    (r"unbound immediate PersistentVolumeClaims", "a claim has no volume yet: see its events, and its storage class"),
    (r"volume node affinity conflict", "the volume is in another zone than the nodes with room"),
    (
        r"free ports for the requested pod ports",
        "pods on the host's network (podTemplate.hostNetwork) have a node each: wait for room, or add nodes",
    ),
    (r"were unschedulable", "nodes are cordoned: kubectl uncordon them, or wait until others have room"),
    (r"Too many pods", "the nodes hold as many pods as they may: add nodes"),
    (r'configmap "([^"]+)" not found', "create the ConfigMap {0} in this namespace, or name another in a new run"),
    (r'secret "([^"]+)" not found', "create the Secret {0} in this namespace, or name another in a new run"),
    (r"references non-existent (?:config|secret) key: ([\w.-]*\w)", "add the key {0}, or name another in a new run"),
    (r"couldn't find key (\S+) in", "add the key {0}, or name another in a new run"),
    (
        r'serviceaccount "([^"]+)" not found',
        "create the ServiceAccount {0} in this namespace, or leave podTemplate.serviceAccountName out in a new run",
    ),
    (
        r"no PriorityClass with name (\S+) was found",
        "create the PriorityClass {0}, or leave podTemplate.priorityClassName out in a new run",
    ),
    (r"exceeded quota: ([\w.-]*\w)", "wait until other pods end, ask for less, or have the quota {0} raised"),
    (
        r"maximum ([\w.-]+) usage per (?:Container|Pod) is",
        "ask for less {0} in podTemplate.resources of a new run, or have the namespace's LimitRange raised",
    ),
    (
        r"minimum ([\w.-]+) usage per (?:Container|Pod) is",
        "ask for more {0} in podTemplate.resources of a new run, or have the namespace's LimitRange lowered",
    ),
    (r"must specify ([\w.,:-]*\w)", "set {0} in podTemplate.resources of a new run"),
    (
        r'violates PodSecurity .*"(IPC_LOCK)"',
        "the pool's rdmaResources need {0}: label the namespace pod-security.kubernetes.io/enforce=privileged",
    ),
    (
        r'violates PodSecurity "([\w:]+)"',
        "leave out what {0} forbids (podTemplate, the pool), or have the namespace's Pod Security relaxed",
    ),
    (
        r'admission webhook "([^"]+)" denied',
        "do as it says in a new run, or ask who runs {0}; it is tried again",
    ),
    (
        r"ValidatingAdmissionPolicy '([^']+)'",
        "do as it says in a new run, or ask who made the policy {0}; it is tried again",
    ),
    (
        r'failed calling webhook "([^"]+)"',
        "the webhook {0} does not answer: whoever runs it must fix it; it is tried again",
    ),
)


def fixes_for(message: str) -> list[str]:
    """Each once, in the order of the table; none when nothing is known of such words."""
    found = ((fix, list(dict.fromkeys(re.findall(pattern, message)))) for pattern, fix in _FIXES)
    return [fix.format(", ".join(whom)) for fix, whom in found if whom]


def with_fixes(message: str) -> str:
    return "; ".join([message.rstrip(". "), *fixes_for(message)])

"""The words of Kubernetes' own programs, as they were seen, and what a person is told to do about them."""

import pytest

from trainwright_operator.core.fixes import fixes_for, with_fixes

SEEN = {
    '0/3 nodes are available: persistentvolumeclaim "runs" not found. not found': "create the PersistentVolumeClaim",
    "0/3 nodes are available: 3 Insufficient cpu, 3 Insufficient memory.": "ask for less cpu, memory (accelerator,",
    "0/3 nodes are available: 3 node(s) had untolerated taint {gpu: yes}.": "tolerate the taint gpu: podTemplate",
    'MountVolume.SetUp failed for volume "c" : configmap "settings" not found': "create the ConfigMap settings in",
    'secret "token" not found': "create the Secret token in this namespace",
    'MountVolume.SetUp failed for volume "j" : configmap references non-existent config key: train.py': (
        "add the key train.py, or name another"
    ),
    "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) were unschedulable.": "kubectl uncordon",
    'pods "t" is forbidden: maximum memory usage per Container is 200Mi, but limit is 1Gi': "ask for less memory in",
    'pods "t" is forbidden: minimum cpu usage per Container is 2, but request is 1': "ask for more cpu in",
    "couldn't find key token in Secret default/hub": "add the key token, or name another",
    'Error creating: pods "t-0-1-0-" is forbidden: exceeded quota: small, requested: pods=1': "have the quota small",
    'Error creating: pods "t" is forbidden: failed quota: q: must specify limits.cpu,limits.memory': (
        "set limits.cpu,limits.memory in podTemplate.resources"
    ),
    'Error creating: pods "t" is forbidden: no PriorityClass with name high was found': "create the PriorityClass high",
    'Error creating: pods "t" is forbidden: error looking up service account a/b: serviceaccount "b" not found': (
        "create the ServiceAccount b in this namespace"
    ),
    'pods "t" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes': (
        "leave out what restricted:latest forbids"
    ),
    'pods "t" is forbidden: violates PodSecurity "restricted:latest": (container "t" must not include "IPC_LOCK")': (
        "rdmaResources need IPC_LOCK: label the namespace pod-security.kubernetes.io/enforce=privileged"
    ),
    'admission webhook "cost.example.com" denied the request: no budget': "or ask who runs cost.example.com",
    "ValidatingAdmissionPolicy 'night' with binding 'all' denied request: not at night": "who made the policy night",
    'Internal error occurred: failed calling webhook "a.example.com": connection refused': "webhook a.example.com does",
}


@pytest.mark.parametrize("words", SEEN)
def test_a_known_message_gets_its_fix(words):
    assert SEEN[words] in "; ".join(fixes_for(words))
    assert with_fixes(words) == f"{words.rstrip('. ')}; {'; '.join(fixes_for(words))}"


@pytest.mark.parametrize("words", SEEN)
def test_a_message_with_its_fix_has_the_same_fix(words):
    assert fixes_for(with_fixes(words)) == fixes_for(words)


def test_an_unknown_message_gets_no_fix():
    assert with_fixes("the moon is full.") == "the moon is full"

"""Every name the operator writes into a cluster is spelled here and nowhere else."""

from __future__ import annotations

GROUP = "trainwright.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

JOB_KIND, JOB_PLURAL, JOB_SHORT = "TrainingJob", "trainingjobs", "tj"
POOL_KIND, POOL_PLURAL = "AcceleratorPool", "acceleratorpools"

FIELD_MANAGER = "trainwright-operator"

# Labels on children. The first is the one that watches select by on the server's side.
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "trainwright"
LABEL_JOB = f"{GROUP}/job"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_SLICE = f"{GROUP}/slice"
LABEL_SLICES = f"{GROUP}/slices"
"""On the Jobs of a multislice attempt: how many there are when it is whole."""
LABEL_LEADER = f"{GROUP}/leader"
"""On the pod of the operator that leads: the progress Service selects by it."""
LABEL_JOB_UID = f"{GROUP}/job-uid"
"""Tells pods of this TrainingJob from pods of a former one with the same name."""

# Inside a pod.
CONTAINER = "trainer"
VOLUME_JOB, VOLUME_OUTPUT = "trainwright-job", "trainwright-output"
CLAIM = "accelerators"
"""The claim for a pod's devices, where the pool gives them by Dynamic Resource Allocation."""

# Annotations on children.
ANNOTATION_RESOLVED_JOB = f"{GROUP}/resolved-job"
ANNOTATION_PROGRESS_CA = f"{GROUP}/progress-ca"
ANNOTATION_HASH = f"{GROUP}/hash"
ANNOTATION_MEETS_AT = f"{GROUP}/meets-at"
"""On the Jobs of several pods that tell the operator when they have met: the name and port of node 0."""

ANNOTATION_CONTAINER = "kubectl.kubernetes.io/default-container"
"""Whose log kubectl shows of a pod into which others have put containers of theirs."""

# Annotation on the AcceleratorPool that jobs get when they name none.
ANNOTATION_DEFAULT_POOL = f"{GROUP}/is-default-pool"

MAX_NAME_LENGTH = 40
"""A pod's hostname is <name>-<slice>-<attempt>-<index>, and a hostname ends at 63 characters."""


class Condition:
    """Types of ``status.conditions``."""

    QUEUED = "Queued"
    PODS_READY = "PodsReady"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason:
    """Reasons of our own in conditions, attempts and events; others are Kubernetes' own words (``Unschedulable``)."""

    PODS_STARTING = "PodsStarting"
    PODS_REFUSED = "PodsRefused"
    JOB_NOT_STARTED = "JobNotStarted"
    JOB_SUSPENDED = "JobSuspended"
    JOB_SCALED_DOWN = "JobScaledDown"
    PODS_READY = "PodsReady"
    PODS_NOT_MET = "PodsNotMet"
    TARGET_RAISED = "TargetRaised"
    ATTEMPT_FAILED = "AttemptFailed"
    ATTEMPT_DISRUPTED = "AttemptDisrupted"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    COMPLETED = "TrainingCompleted"
    BAD_CONFIGURATION = "BadConfiguration"
    BAD_DATA = "BadData"
    TOO_MANY_RESTARTS = "TooManyRestarts"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    POOL_NOT_FOUND = "PoolNotFound"
    POOL_UNUSABLE = "PoolUnusable"
    ATTEMPT_INCOMPLETE = "AttemptIncomplete"
    GANG_INCOMPLETE = "GangIncomplete"
    OUTPUT_NOT_SHARED = "OutputNotShared"
    REFUSED = "Refused"
    INVALID_SPEC = "InvalidSpec"
    NAME_TAKEN = "NameTaken"
    WAITING_FOR_FORMER = "WaitingForFormerJob"
    DELETING = "Deleting"
    # Why one pod ended.
    ERROR = "Error"
    HANG = "Hang"
    IMAGE_MISMATCH = "ImageMismatch"
    PREEMPTED = "Preempted"
    POD_DELETED = "PodDeleted"
    JOB_DELETED = "JobDeleted"
    JOB_DEADLINE = "JobDeadlineExceeded"
    PODS_GONE = "PodsGone"
    PEER_LOST = "PeerLost"
    PEER_STOPPED = "PeerStopped"
    UNEXPLAINED_STOP = "UnexplainedStop"
    CONTAINER_LOST = "ContainerLost"
    UNKNOWN = "Unknown"

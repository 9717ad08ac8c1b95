"""Every name that the operator writes into a cluster."""

from __future__ import annotations

GROUP = "trainwright.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

JOB_KIND, JOB_PLURAL, JOB_SHORT = "TrainingJob", "trainingjobs", "tj"
POOL_KIND, POOL_PLURAL = "AcceleratorPool", "acceleratorpools"

FIELD_MANAGER = "trainwright-operator"

# Labels on children. Watches select by the first one.
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "trainwright"
LABEL_JOB = f"{GROUP}/job"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_SLICE = f"{GROUP}/slice"
LABEL_SLICES = f"{GROUP}/slices"
"""On the Jobs of a multislice attempt: the number of Jobs when all exist."""
LABEL_LEADER = f"{GROUP}/leader"
"""On the operator's leader pod: the progress Service selects by it."""
LABEL_PROBE = f"{GROUP}/probe"
"""On pods that wait for more room beside an elastic job, and on their Job: the name of that, in place of LABEL_JOB."""
LABEL_JOB_UID = f"{GROUP}/job-uid"
"""Distinguishes the pods of this TrainingJob from those of a deleted one with the same name."""

# Inside a pod.
CONTAINER = "trainer"
VOLUME_JOB, VOLUME_OUTPUT = "trainwright-job", "trainwright-output"
REQUIREMENTS = "trainwright-requirements"
"""The init container that installs ``spec.script.requirements``, and the volume with what it installs."""
CLAIM = "accelerators"
"""The claim for a pod's devices, if the pool uses Dynamic Resource Allocation."""

# Annotations on children.
ANNOTATION_RESOLVED_JOB = f"{GROUP}/resolved-job"
ANNOTATION_PROGRESS_CA = f"{GROUP}/progress-ca"
ANNOTATION_HASH = f"{GROUP}/hash"
ANNOTATION_MEETS_AT = f"{GROUP}/meets-at"
"""On Jobs whose pods report their rendezvous to the operator: the host name and port of node 0."""

MULTIKUEUE = "kueue.x-k8s.io/multikueue"
"""``spec.managedBy`` of a job that trains in another cluster."""
ANNOTATION_ORIGIN = f"{GROUP}/origin-uid"
"""On the Workload of such a job, which Kueue copies: the uid of the job, which its checkpoints belong to."""
ANNOTATION_ATTEMPTS = f"{GROUP}/attempts"
"""On the same: the number of the last attempt in the clusters that had the job before."""

ANNOTATION_WORKLOAD = "kueue.x-k8s.io/workload"
"""On pods that a Workload of Kueue admitted: its name."""

ANNOTATION_CONTAINER = "kubectl.kubernetes.io/default-container"
"""The container whose log kubectl shows by default."""

ANNOTATION_DEFAULT_POOL = f"{GROUP}/is-default-pool"
"""On the AcceleratorPool of jobs that name no pool."""

MAX_NAME_LENGTH = 40
"""A pod's host name is <name>-<slice>-<attempt>-<index>, at most 63 characters."""


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
    """The operator's reasons in conditions, attempts and events; others come from Kubernetes (``Unschedulable``)."""

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
    NODE_AVOIDED = "NodeAvoided"
    RESTARTED_IN_PLACE = "RestartedInPlace"
    SLOW_RANK = "SlowRank"
    ANOMALY = "Anomaly"
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
    SHRUNK = "Shrunk"
    GROWN = "Grown"
    QUEUE_UNUSABLE = "QueueUnusable"
    WORKLOAD_REPLACED = "WorkloadReplaced"
    WORKLOAD_DELETED = "WorkloadDeleted"
    WORKLOAD_DIFFERS = "WorkloadDiffers"
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
    NODE_LEAVING = "NodeLeaving"
    JOB_DELETED = "JobDeleted"
    JOB_DEADLINE = "JobDeadlineExceeded"
    PODS_GONE = "PodsGone"
    PEER_LOST = "PeerLost"
    PEER_STOPPED = "PeerStopped"
    UNEXPLAINED_STOP = "UnexplainedStop"
    CONTAINER_LOST = "ContainerLost"
    UNKNOWN = "Unknown"

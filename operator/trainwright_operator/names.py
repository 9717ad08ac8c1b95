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

# Annotations on children.
ANNOTATION_RESOLVED_JOB = f"{GROUP}/resolved-job"
ANNOTATION_HASH = f"{GROUP}/hash"

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

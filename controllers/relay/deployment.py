# SPDX-License-Identifier: Apache-2.0
"""The relays' Deployment. Pure."""

from __future__ import annotations

from typing import Any, Final

from ...api.constants import RELAY_NAME
from ...runtime.objects import Object
from .placement import CONTROL_PLANE
from .settings import NAME_LABEL, Settings

PORT: Final = 3478  # in the pod; the Service's may be another
METRICS: Final = 9587
USER: Final = 65532
# A new relay is ready for so long before it counts: agents that hear of it connect before an old one goes.
SETTLED_SECONDS: Final = 5
# After so long without progress the Deployment says so, and so does the Mesh.
PROGRESS_SECONDS: Final = 120


def deployment(settings: Settings) -> Object:
    """Return the Deployment."""
    return {
        "metadata": settings.metadata(),
        "spec": {
            "replicas": settings.replicas,
            "minReadySeconds": SETTLED_SECONDS,
            "progressDeadlineSeconds": PROGRESS_SECONDS,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": NAME_LABEL},
            "template": {"metadata": {"labels": settings.pod_labels()}, "spec": _pod(settings)},
        },
    }


def _pod(settings: Settings) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "serviceAccountName": RELAY_NAME,
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 10,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "affinity": {"nodeAffinity": settings.placement.affinity},
        "topologySpreadConstraints": [_spread(settings)],
        "tolerations": [{"key": CONTROL_PLANE, "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(settings)],
        "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}],
    }
    if settings.image.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image.pull_secrets]
    return pod


def _spread(settings: Settings) -> dict[str, Any]:
    """Spread the relays over the nodes.

    Each revision by itself: anti-affinity counts the old pods too, and on a single node no rollout would ever begin.
    """
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule" if settings.placement.spread else "ScheduleAnyway",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": NAME_LABEL},
        "matchLabelKeys": ["pod-template-hash"],
    }


def _container(settings: Settings) -> dict[str, Any]:
    own = f"{settings.namespace}/{RELAY_NAME}"
    container: dict[str, Any] = {
        "name": "relay",
        "image": settings.image.name,
        "command": ["wirekube-relay"],
        "args": [
            f"--listen=0.0.0.0:{PORT}",
            f"--key-secret={own}",
            f"--publish-key={own}",
            "--allow-peers",
            f"--metrics=0.0.0.0:{METRICS}",  # of the pod, not of the host
        ],
        "ports": [
            {"name": "relay", "containerPort": PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS, "protocol": "TCP"},
        ],
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": _probe("/healthz", periodSeconds=1, failureThreshold=60),
        "livenessProbe": _probe("/healthz", periodSeconds=20, failureThreshold=3),
        "readinessProbe": _probe("/readyz", periodSeconds=5),
        "resources": settings.resources,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - of the container, in memory
    }
    if settings.image.pull_policy:
        container["imagePullPolicy"] = settings.image.pull_policy
    return container


def _probe(path: str, **times: int) -> dict[str, Any]:
    return {"httpGet": {"port": "metrics", "path": path}, "timeoutSeconds": 5, **times}

# SPDX-License-Identifier: Apache-2.0
"""What the managed relay is like, for the Mesh's status: how it is reached, and in words what is missing. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...api.constants import ANNOTATION_ENDPOINT, LABEL_RELAY, NAMESPACE, RELAY_NAME
from ...runtime.conditions import find_condition
from ...runtime.objects import Object
from ..kinds import conditions_of, spec_of
from ..verdicts import Verdict
from .addresses import Reach, reach, ready_pods
from .settings import NAME_LABEL

RELAY_READY: Final = "RelayReady"
KEY_FIELD: Final = "publicKey"
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")


@dataclass(frozen=True)
class Seen:
    """The objects that tell of the relay, as the API server has them now.

    Attributes:
        namespace: of the objects.
        deployment: None while there is none.
        service: None while there is none.
        config_map: where relays put their public key; None while there is none.
        slices: EndpointSlices of the Service.
        node: returns the Node of a name.
        trouble: what the operator could not do, if anything.
    """

    namespace: str
    deployment: Object | None
    service: Object | None
    config_map: Object | None
    slices: Sequence[Object]
    node: Callable[[str], Object | None]
    trouble: Verdict | None = None


def nothing_seen() -> Seen:
    """Return what is seen before anything is there."""
    return Seen(NAMESPACE, None, None, None, (), lambda _: None)


@dataclass(frozen=True)
class Managed:
    """The managed relay as agents and people see it.

    Attributes:
        reach: how it is reached.
        key: the relay's public key in base64; None until a relay has published it.
        problem: what keeps it from working, for people; None when nothing does.
    """

    reach: Reach
    key: str | None
    problem: Verdict | None


def managed(seen: Seen, published: Iterable[dict[str, Any]]) -> Managed:
    """Judge.

    Args:
        seen: the objects.
        published: status.relays now: a ConfigMap that was lost and comes back does not take the key from the agents.
    """
    found = reach(seen.service, seen.slices, seen.node) if seen.service is not None else Reach()
    key = public_key(seen.config_map) or _published_key(found, published)
    return Managed(found, key, seen.trouble or _problem(seen, found, key))


def name_of(found: Reach) -> str:
    """Return what the relay is called in the Mesh's status; it stays when pods move, as agents tell relays by it."""
    return found.names[0] if found.names else RELAY_NAME


def public_key(config_map: Object | None) -> str | None:
    """Return the key in the ConfigMap, if it is one."""
    text = ((config_map or {}).get("data") or {}).get(KEY_FIELD)
    return text if isinstance(text, str) and _KEY.fullmatch(text) else None


def _published_key(found: Reach, published: Iterable[dict[str, Any]]) -> str | None:
    return next((each.get("publicKey") for each in published if each.get("name") == name_of(found)), None)


def _problem(seen: Seen, found: Reach, key: str | None) -> Verdict | None:
    if seen.deployment is None or seen.service is None:
        return _not_ready("RelayStarting", "the relay is being installed")
    if not ready_pods(seen.slices):
        return _nobody(seen)
    if key is None:
        return _not_ready(
            "RelayStarting",
            f"no relay has put its public key into the ConfigMap {seen.namespace}/{RELAY_NAME} yet{_look(seen)}",
        )
    return None if found.endpoints or found.names else _no_address(seen, found)


def _nobody(seen: Seen) -> Verdict:
    conditions = conditions_of(seen.deployment or {})
    failure = find_condition(conditions, "ReplicaFailure") or {}
    progress = find_condition(conditions, "Progressing") or {}
    if failure.get("status") == "True":
        return _not_ready("NoReadyReplica", f"no relay can be started: {failure.get('message')}")
    if progress.get("status") == "False" or progress.get("reason") == "NewReplicaSetAvailable":
        return _not_ready("NoReadyReplica", f"none of the relays is ready{_look(seen)}")
    return _not_ready("RelayStarting", f"no relay is ready yet{_look(seen)}")


def _look(seen: Seen) -> str:
    (label,) = (f"{key}={value}" for key, value in NAME_LABEL.items())
    return f"; see kubectl describe pod -n {seen.namespace} -l {label}"


def _no_address(seen: Seen, found: Reach) -> Verdict:
    kind = spec_of(seen.service or {}).get("type")
    service = f"service {RELAY_NAME} -n {seen.namespace}"
    if found.hidden:
        nodes = ", ".join(found.hidden)
        message = (
            f"relays run on {nodes}, where nobody outside reaches them: there is no ExternalIP; kubectl annotate node "
            f"{found.hidden[0]} {ANNOTATION_ENDPOINT}=IP:PORT, or kubectl label node NODE {LABEL_RELAY}=true where "
            "agents reach the InternalIP"
        )
    elif kind == "ClusterIP":
        message = f"the Service is of the type ClusterIP: put spec.externalIPs into it (kubectl edit {service})"
    else:
        message = f"the Service has no address yet; see kubectl describe {service}"
    if kind == "LoadBalancer":
        message = f"no load balancer has given the Service an address; see kubectl describe {service}, or set relay.managed.serviceType to NodePort"
    return _not_ready("NoRelayAddress", message)


def no_node() -> Verdict:
    """Return what is said when there is no node for relays."""
    message = (
        "there is no node for the relay: none has an ExternalIP, and none is a control plane; choose one that agents "
        f"reach: kubectl label node NODE {LABEL_RELAY}=true"
    )
    return _not_ready("NoRelayNode", message)


def no_image() -> Verdict:
    """Return what is said when nobody knows the relay's image."""
    message = (
        "neither relay.managed.image nor WIREKUBE_RELAY_IMAGE is set, and the operator does not run as a Deployment"
    )
    return _not_ready("NoRelayImage", message)


def refused(kind: str, message: str) -> Verdict:
    """Return what is said when the API server refuses one of the relay's objects."""
    return _not_ready("RelayNotApplied", f"the API server refuses the relay's {kind}: {message}")


def _not_ready(reason: str, message: str) -> Verdict:
    return Verdict(RELAY_READY, "False", reason, message)

# SPDX-License-Identifier: Apache-2.0
"""Names and numbers that several parts of the project use. Those of the user's specification are binding."""

from typing import Final

GROUP: Final = "wirekube.io"
VERSION: Final = "v1alpha1"
GROUP_VERSION: Final = f"{GROUP}/{VERSION}"
MESH_NAME: Final = "default"
NAMESPACE: Final = "wirekube-system"
NODE_LEASE_NAMESPACE: Final = "wirekube-node-lease"  # one Lease for each agent, named as its Node: liveness, no lock
LEASE_RENEW_SECONDS: Final = 20.0
LEASE_STALE_SECONDS: Final = 50.0  # two renewals may fail

LABEL_VPN_ENABLED: Final = f"{GROUP}/vpn-enabled"
LABEL_RELAY: Final = f"{GROUP}/relay"
ANNOTATION_ENDPOINT: Final = f"{GROUP}/endpoint"
ANNOTATION_TRACEPARENT: Final = f"{GROUP}/traceparent"

RELAY_NAME: Final = "wirekube-relay"  # of everything that belongs to the managed relay, also in the Mesh's status

FIELD_MANAGER_OPERATOR: Final = "wirekube-operator"
FIELD_MANAGER_AGENT: Final = "wirekube-agent"

DEFAULT_LISTEN_PORT: Final = 51820
DEFAULT_INTERFACE: Final = "wire_kube"
DEFAULT_MTU: Final = 1420
DEFAULT_KEEPALIVE: Final = 25  # seconds; below the 30 s after which many NATs forget a UDP mapping

FWMARK: Final = 0x574B  # "WK"; on WireGuard's, the probes', the relay client's and the API client's sockets
TABLE: Final = 22347  # 0x574B, our routing table
FIRST_TABLE: Final = 22348  # what of it is asked before table main; see agent/routing/plan.py
ROUTE_PROTOCOL: Final = 187  # tags our routes; not in rt_protos, so nobody else's

VIRTUAL_IPV4: Final = "192.0.2.1"  # RFC 5737 documentation address: WireGuard's constant endpoint, never on a wire
VIRTUAL_IPV6: Final = "2001:db8::1"  # RFC 3849

ENV_NODE_NAME: Final = "NODE_NAME"
ENV_APISERVER: Final = "WIREKUBE_APISERVER"
STATE_DIR: Final = "/var/lib/wirekube"
RUN_DIR: Final = "/run/wirekube"

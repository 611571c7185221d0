# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of, as its YAML file says it: nodes, the NAT in front of each, names, and the Mesh.

    nodes:
    - name: home-a
      nat: eim-apdf       # a router of its own, of this kind
    - name: home-a2
      behind: home-a      # in the same LAN, behind the same router
    defaults: {...}       # fields that every node has unless it says otherwise
    mesh: {...}           # spec of the WireKubeMesh
    names: {...}          # what the internet's DNS server answers

The addresses of services are the same in every lab, so that a Mesh can name them: see the constants below.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from ..api.v1alpha1.base import Cidr, HostPort
from ..api.v1alpha1.mesh import MeshSpec

INTERNET = IPv4Network("203.0.113.0/24")  # RFC 5737 documentation network: nobody's, and never on a wire
STUN_ADDRESSES = (IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2"))
RELAY_ADDRESS = IPv4Address("203.0.113.3")
API_ADDRESS = IPv4Address("203.0.113.5")
DNS_ADDRESS = IPv4Address("203.0.113.9")
FIRST_PUBLIC = 10  # the first public address of nodes and routers; those below are for services
MOST_NODES = 200

API_PORT = 6443
STUN_PORT = 3478
RELAY_PORT = 3478
API_SERVICE = IPv4Address("10.96.0.1")
DNS_SERVICE = IPv4Address("10.96.0.10")

BOXES = ("internet", "stun", "relay", "api", "dns")
ROUTER_PREFIX = "nat-"
POD_PREFIX = "pod-"
FOLDER = Path(__file__).parent / "topologies"
LABEL = r"^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$"


def relay_ports(replicas: int) -> tuple[int, ...]:
    """Return the TCP ports of the relay's processes; several have ports of their own behind RELAY_PORT."""
    return (RELAY_PORT,) if replicas == 1 else tuple(RELAY_PORT + 1 + index for index in range(replicas))


class TopologyError(Exception):
    """A topology cannot be used; the message names the file, the field and the remedy."""


class Nat(StrEnum):
    """What stands between a node and the internet: mapping and filtering in the terms of RFC 4787."""

    NONE = "none"
    EIM_APDF = "eim-apdf"
    EIM_EIF = "eim-eif"
    SYMMETRIC = "symmetric"
    UDP_BLOCKED = "udp-blocked"


class _Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )


class Node(_Model):
    """One node, a network namespace with one link."""

    name: Annotated[str, Field(pattern=LABEL)]
    """Name of the Node: lower-case letters, digits and '-'."""
    nat: Nat = Nat.NONE
    """The router in front of it; `none` gives it a public address."""
    behind: str | None = None
    """Name of the node whose router and LAN it shares, instead of `nat`."""
    kube_proxy: bool = False
    """Whether it carries kube-proxy's postrouting rules: mark 0x4000 is masqueraded, with a random port."""
    input_drop: bool = False
    """Whether its firewall drops what it has not asked for, except ICMP, the mesh interface and WireGuard's port."""
    rp_filter: Literal[0, 1, 2] = 0
    """Reverse path filter of all its interfaces."""
    endpoint: HostPort | None = None
    """The Node's annotation wirekube.io/endpoint."""
    allowed_ips: Annotated[tuple[Cidr, ...], Field(alias="allowedIPs")] = ()
    """Networks behind this node, for its Peer's spec.allowedIPs."""
    pod_cidr: Annotated[IPv4Network | None, Field(alias="podCIDR")] = None
    """Pod range of the Node, at least four addresses. The node gets one pod, at the second of them."""
    api_server: Literal["public", "service"] = "public"
    """Which address its credentials name: the public one, or the Service's (then WIREKUBE_APISERVER names the other)."""
    host_resolver: IPv4Address | None = None
    """DNS server in the host's resolv.conf."""
    cluster_resolver: IPv4Address | None = None
    """DNS server in the agent's own resolv.conf, as dnsPolicy ClusterFirstWithHostNet has it."""
    services: bool = False
    """Whether the Service addresses lead here: the API server's is forwarded, cluster DNS is answered."""


class Relay(_Model):
    """The relay beside the mesh."""

    admission: Literal["allow-list", "open"] = "allow-list"
    """Whether it admits the keys that Peers publish, or every key."""
    replicas: Annotated[int, Field(ge=1, le=4)] = 1
    """Processes with one key behind its address; the first of them answers STUN."""


class Topology(_Model):
    """A whole lab."""

    description: str = ""
    """What it is for, in a line."""
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, max_length=MOST_NODES)]
    """The nodes, in the order in which they are shown."""
    mesh: dict[str, Any] = {}
    """Spec of the WireKubeMesh."""
    names: dict[str, IPv4Address] = {}
    """Names that the internet's DNS server knows; without any there is no such server."""
    relay: Relay | None = Relay()
    """The external relay at 203.0.113.3:3478; null for none."""

    @model_validator(mode="before")
    @classmethod
    def _merge_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("defaults", {}), dict):
            return data
        data = dict(data)
        defaults = data.pop("defaults", {})
        if isinstance(data.get("nodes"), list):
            data["nodes"] = [{**defaults, **node} if isinstance(node, dict) else node for node in data["nodes"]]
        return data

    @field_validator("mesh")
    @classmethod
    def _mesh_is_valid(cls, mesh: dict[str, Any]) -> dict[str, Any]:
        try:
            MeshSpec.model_validate(mesh)
        except ValidationError as error:
            raise ValueError(_first_fault(error)) from None
        return mesh

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [node.name for node in self.nodes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two nodes are named {twice}; give each a name of its own")
        if taken := next(
            (name for name in names if name in BOXES or name.startswith((ROUTER_PREFIX, POD_PREFIX))), None
        ):
            raise ValueError(f"a node is named {taken}, which is a name of the lab's own parts; choose another")
        for node in self.nodes:
            self._check_router(node)
        if sum(node.services for node in self.nodes) > 1:
            raise ValueError("more than one node has services: true; Service addresses lead to one node")
        return self

    def _check_router(self, node: Node) -> None:
        if node.behind is None:
            return
        if node.nat is not Nat.NONE:
            raise ValueError(f"node {node.name} has both nat and behind; remove one")
        owner = next((each for each in self.nodes if each.name == node.behind), None)
        if owner is None or owner.nat is Nat.NONE:
            raise ValueError(f"node {node.name} is behind {node.behind}, which is no node with a nat of its own")

    def node(self, name: str) -> Node:
        """Return a node by its name.

        Raises:
            TopologyError: there is none of this name.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise TopologyError(f"no node {name}; there are {', '.join(each.name for each in self.nodes)}")

    def router_of(self, node: Node) -> str | None:
        """Return the name of the node whose router it is behind, None for a public node."""
        return node.behind or (node.name if node.nat is not Nat.NONE else None)

    def nat_of(self, node: Node) -> Nat:
        """Return the kind of NAT in front of a node, its own or its neighbour's."""
        return self.node(node.behind).nat if node.behind else node.nat


def available() -> list[str]:
    """Return the names of the topologies that are part of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Topology:
    """Load a topology: a name of the package's, or the path of a YAML file.

    Raises:
        TopologyError: it does not exist or says something that cannot be.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TopologyError(
            f"no topology {name}; give one of {', '.join(available())}, or the path of a .yaml file"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TopologyError(f"{path}: {' '.join(str(error).split())}") from None
    return parse(data, str(path))


def parse(data: object, source: str) -> Topology:
    """Check what a file says.

    Raises:
        TopologyError: naming the source and the field.
    """
    if not isinstance(data, dict):
        raise TopologyError(f"{source}: a topology is a mapping with the keys nodes, mesh, names, relay")
    try:
        return Topology.model_validate(data)
    except ValidationError as error:
        raise TopologyError(f"{source}: {_first_fault(error)}") from None


def _first_fault(error: ValidationError) -> str:
    """Return the first fault as `nodes[2].nat: what is wrong`."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such field; correct or remove it"
    elif first["type"] == "string_pattern_mismatch":
        message = f"{first['input']!r} does not match {first['ctx']['pattern']}"
    return f"{where}: {message}" if where else message

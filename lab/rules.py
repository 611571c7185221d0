# SPDX-License-Identifier: Apache-2.0
"""nftables rule sets of routers and nodes. Pure text; each was measured to behave as its name says.

A home router is a masquerade and a firewall that drops what comes unasked, at FORWARD and at INPUT. The INPUT part
matters: a packet that reaches a masquerading box unasked leaves a conntrack entry, with which a later flow of an inside
host to the same remote clashes and gets another port.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address

from .topology import API_ADDRESS, API_PORT, API_SERVICE, Nat, Node

WAN = "wan"
FAULT_TABLE = "lab-fault"
KUBE_PROXY_MARK = 0x4000

# An unasked packet must leave no trace in conntrack.
_DROP_UNASKED = f"""
table inet lab-firewall {{
 chain cin {{
  type filter hook input priority 0; policy accept;
  iifname {WAN} ct state new,invalid drop
 }}
 chain cfwd {{
  type filter hook forward priority 0; policy accept;
  iifname {WAN} ct state established,related accept
  iifname {WAN} drop
 }}
}}
"""

_BLOCK_UDP = """
table inet lab-block {
 chain cfwd {
  type filter hook forward priority -1; policy accept;
  meta l4proto udp drop
 }
}
"""

# Filled by packets that leave; what arrives at a port goes to the inside host that used it last, whoever sent it.
# It knows inside ports only, so it holds for one inside host a port.
_FULL_CONE = """
table ip lab-nat {{
 map fullcone {{
  type inet_service : ipv4_addr . inet_service
  flags dynamic,timeout
  timeout 300s
  size 65536
 }}
 chain cpre {{
  type nat hook prerouting priority dstnat; policy accept;
  iifname {wan} meta l4proto udp dnat to udp dport map @fullcone
 }}
 chain cpost {{
  type nat hook postrouting priority srcnat; policy accept;
  oifname {wan} meta l4proto udp update @fullcone {{ udp sport timeout 300s : ip saddr . udp sport }}
  oifname {wan} snat to {address}
 }}
}}
"""

_KUBE_PROXY = f"""
table inet kube-proxy {{
 chain nat-postrouting {{
  type nat hook postrouting priority srcnat; policy accept;
  meta mark & {KUBE_PROXY_MARK:#x} != {KUBE_PROXY_MARK:#x} return
  meta mark set meta mark ^ {KUBE_PROXY_MARK:#x}
  masquerade fully-random
 }}
}}
"""

_INPUT_DROP = """
table inet host-firewall {{
 chain cin {{
  type filter hook input priority 0; policy drop;
  ct state established,related accept
  ct state invalid drop
  iifname {{ lo, {interface} }} accept
  meta l4proto {{ icmp, ipv6-icmp }} accept
  udp dport {port} accept
 }}
}}
"""

_SERVICES = f"""
table ip lab-services {{
 chain cpre {{
  type nat hook prerouting priority dstnat; policy accept;
  ip daddr {API_SERVICE} tcp dport 443 dnat to {API_ADDRESS}:{API_PORT}
 }}
 chain cout {{
  type nat hook output priority -100; policy accept;
  ip daddr {API_SERVICE} tcp dport 443 dnat to {API_ADDRESS}:{API_PORT}
 }}
 chain cpost {{
  type nat hook postrouting priority srcnat; policy accept;
  ip daddr {API_ADDRESS} ct status dnat masquerade
 }}
}}
"""


def _masquerade(how: str = "") -> str:
    return f"""
table ip lab-nat {{
 chain cpost {{
  type nat hook postrouting priority srcnat; policy accept;
  oifname {WAN} masquerade {how}
 }}
}}
"""


def router_rules(kind: Nat, address: IPv4Address) -> str:
    """Return the rule set of a router of this kind with this public address.

    Raises:
        ValueError: the kind is `none`, which has no router.
    """
    match kind:
        case Nat.EIM_APDF:
            return _masquerade() + _DROP_UNASKED
        case Nat.EIM_EIF:
            return _FULL_CONE.format(wan=WAN, address=address)
        case Nat.SYMMETRIC:
            return _masquerade("random,fully-random") + _DROP_UNASKED
        case Nat.UDP_BLOCKED:
            return _masquerade() + _DROP_UNASKED + _BLOCK_UDP
        case Nat.NONE:
            raise ValueError("a public node has no router")


def node_rules(node: Node, interface: str, port: int) -> str:
    """Return the rule set of a node: what other software on a host brings with it.

    Args:
        node: with its options.
        interface: WireGuard's, which the node's firewall trusts.
        port: WireGuard's, which it leaves open.
    """
    parts = (
        (node.kube_proxy, _KUBE_PROXY),
        (node.input_drop, _INPUT_DROP.format(interface=interface, port=port)),
        (node.services, _SERVICES),
    )
    return "".join(text for wanted, text in parts if wanted)


def balancer_rules(port: int, backends: Sequence[int]) -> str:
    """Return rules for the relay's box that give each TCP connection to a port to one of others there, by chance."""
    ports = ", ".join(f"{index} : {backend}" for index, backend in enumerate(backends))
    return (
        "table ip lab-balancer {\n chain cpre {\n  type nat hook prerouting priority dstnat; policy accept;\n"
        f"  tcp dport {port} redirect to : numgen random mod {len(backends)} map {{ {ports} }}\n }}\n}}\n"
    )


def fault_rules(remotes: list[IPv4Address]) -> str:
    """Return rules for a router (or a public node) that lose all UDP from and to remote public addresses.

    An empty list heals. The table is replaced in one transaction.
    """
    replace = f"table inet {FAULT_TABLE}\ndelete table inet {FAULT_TABLE}\n"
    if not remotes:
        return replace
    those = "{ " + ", ".join(map(str, remotes)) + " }"
    chains = "".join(
        f" chain c{hook} {{\n"
        f"  type filter hook {hook} priority -10; policy accept;\n"
        f"  meta l4proto udp ip saddr {those} drop\n"
        f"  meta l4proto udp ip daddr {those} drop\n"
        " }\n"
        for hook in ("forward", "input", "output")
    )
    return f"{replace}table inet {FAULT_TABLE} {{\n{chains}}}\n"

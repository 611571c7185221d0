# SPDX-License-Identifier: Apache-2.0
"""What the models of both kinds share: settings, checked strings, metadata, conditions."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_NAME = "[a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}([.]{_BYTE}){{3}}"
_IPV6 = "[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){2,7}"
HOST_PORT = rf"^({_NAME}|\[{_IPV6}\]):{_PORT}$"
IP_PORT = rf"^({_IPV4}|\[{_IPV6}\]):{_PORT}$"
QUANTITY = r"^[0-9]+([.][0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
HOST_PREFIX = rf"^({_IPV4}/32|{_IPV6}/128)$"


def rule(expression: str, message: str) -> dict[str, Any]:
    """Return the schema extension for one CEL rule and the message that a person gets who breaks it."""
    return rules((expression, message))


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return the schema extension for several CEL rules, as (expression, message)."""
    return {"x-kubernetes-validations": [{"rule": expression, "message": message} for expression, message in pairs]}


def matches(pattern: str, message: str) -> dict[str, Any]:
    """Return the CEL rule that the string matches; unlike `pattern` it does not show people a regular expression."""
    escaped = pattern.replace("\\", "\\\\")
    return rule(f"self.matches('{escaped}')", message)


def _network(text: str) -> str:
    network = ip_network(text)  # refuses host bits: 10.0.0.1/24 may mean the host or the network
    if network.prefixlen == 0:
        raise ValueError(f"{text} is a default route, which the mesh never takes")
    return text


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _address(text: str) -> str:
    ip_address(text)
    return text


_CIDR_RULES = rules(
    ("isCIDR(self) && cidr(self).prefixLength() > 0", "must be ADDRESS/LENGTH, and not a default route (/0)"),
    (
        "!isCIDR(self) || cidr(self).masked() == cidr(self)",
        "must have no bits beyond its length: a network as 10.0.0.0/24, or one address as 10.0.0.1/32",
    ),
)

# Python checks these patterns as well: objects may have got in before the CRD had a rule.
Port = Annotated[int, Field(ge=1, le=65535)]
HostPort = Annotated[
    str,
    Field(
        pattern=HOST_PORT, max_length=260, json_schema_extra=matches(HOST_PORT, "must be HOST:PORT, port 1 to 65535")
    ),
]
IpPort = Annotated[str, Field(pattern=IP_PORT, max_length=56)]
PublicKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$", max_length=44)]
HostPrefix = Annotated[
    str, Field(max_length=49, json_schema_extra=matches(HOST_PREFIX, "must be one address: IPV4/32 or IPV6/128"))
]
Cidr = Annotated[str, Field(max_length=49, json_schema_extra=_CIDR_RULES)]
IpAddress = Annotated[str, Field(max_length=45), AfterValidator(_address)]
NetworkCidr = Annotated[Cidr, AfterValidator(_network)]
# An amount as pods have it; YAML's `cpu: 2` is a number.
Quantity = Annotated[
    str,
    BeforeValidator(_text),
    Field(pattern=QUANTITY, max_length=24),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY, "maxLength": 24}),
]


class Model(BaseModel):
    """Immutable; camelCase on the wire; tolerant of unknown fields when reading."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )


class Metadata(Model):
    """The part of an object's metadata that is used here."""

    name: str
    uid: str = ""
    creation_timestamp: AwareDatetime | None = None
    generation: int = 0


class Condition(Model):
    """One aspect of the object's state, as in every Kubernetes API."""

    type: Annotated[str, Field(max_length=316)]
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Why, as one CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, for people."""
    observed_generation: int | None = None
    """Generation of the object that this was seen at."""
    last_transition_time: AwareDatetime
    """When the status changed last."""


CONDITION_LIST: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
Conditions = Annotated[tuple[Condition, ...], Field(max_length=32, json_schema_extra=CONDITION_LIST)]


def by_name(key: str = "name") -> dict[str, Any]:
    """Return the schema extension of a list whose items are told apart by one field."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}

# SPDX-License-Identifier: Apache-2.0
"""pydantic's JSON Schema to the structural schema that a CustomResourceDefinition takes. Pure.

Kubernetes refuses `$ref`, `title`, numeric exclusive bounds and unions with null; it has `enum` but no `const`.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_DROPPED = frozenset({"$defs", "title"})


def structural(schema: Schema) -> Schema:
    """Convert a whole schema.

    Raises:
        TypeError: a union of different types, which a structural schema cannot express.
    """
    return _node(schema, schema.get("$defs", {}))


def without_defaults(schema: Schema) -> Schema:
    """Return the schema without defaults, at any depth: a status says only what somebody has observed."""
    return _without(schema, "default")


def without_rules(schema: Schema) -> Schema:
    """Return the schema without CEL rules, at any depth: what only the operator writes was checked where it came from.

    In a long list they would also cost more than the API server allows.
    """
    return _without(schema, "x-kubernetes-validations")


def _without(schema: Schema, keyword: str) -> Schema:
    out = {key: value for key, value in schema.items() if key != keyword}
    if "properties" in out:
        out["properties"] = {name: _without(child, keyword) for name, child in out["properties"].items()}
    if "items" in out:
        out["items"] = _without(out["items"], keyword)
    return out


def _node(schema: Schema, defs: Schema) -> Schema:
    if "$ref" in schema:
        target = defs[schema["$ref"].rpartition("/")[2]]
        return _node({**target, **{key: value for key, value in schema.items() if key != "$ref"}}, defs)
    out: Schema = {}
    for key, value in schema.items():
        if key not in _DROPPED:
            out |= _keyword(key, value, defs)
    if out.get("type") == "object" and "default" in out:
        out["default"] = {}  # the defaults of its fields then apply, each written once
    if "x-kubernetes-validations" in out:
        out.pop("pattern", None)  # the rule says the same, with a message for people
    return out


def _keyword(key: str, value: Any, defs: Schema) -> Schema:
    if key == "properties":
        return {key: {name: _node(child, defs) for name, child in value.items()}}
    if key in {"items", "additionalProperties"}:
        # A boolean has no place beside `properties`; unknown fields are pruned anyway.
        return {key: _node(value, defs)} if isinstance(value, dict) else {}
    if key == "default":
        return {} if value is None or value in ([], ()) else {key: value}
    if key == "const":
        return {"enum": [value]}
    if key in {"anyOf", "oneOf"}:
        return _union(value, defs)
    return {key: value}


def _union(branches: list[Schema], defs: Schema) -> Schema:
    """Merge a union: null goes (an optional field is absent, never null), branches of one type become that type."""
    solid = [_node(branch, defs) for branch in branches if branch.get("type") != "null"]
    types = {branch.get("type") for branch in solid}
    if len(types) != 1:
        raise TypeError(f"a union of different types has no structural schema: {sorted(map(str, types))}")
    return solid[0] if len(solid) == 1 else {"type": types.pop()}

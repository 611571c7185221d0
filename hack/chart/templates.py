# SPDX-License-Identifier: Apache-2.0
"""Makes a Helm template of a manifest: strings that depend on the release, and fields that values replace or add to.

An expression inside a string stands in a double-quoted YAML string. A field or a list's end that values fill is first a
marker in the data, which the dumper writes on a line of its own, and that line then becomes the block of the template:

    nodeSelector: __3__      {{- with .Values.agent.nodeSelector }}
                             nodeSelector:
                               {{- toYaml . | nindent 8 }}
                             {{- end }}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

_NEVER = 1_000_000  # columns: an expression must not be folded
Block = Callable[[str, int], list[str]]
"""Makes lines of a template from a field's key ("" for what is added to a list) and its indentation."""
_MARKED = re.compile(r"^( *)(?:([A-Za-z]+): |- )__(\d+)__$")


class _Expression(str):
    """A string with a template's expression in it."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: _Expression) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(_Expression, _quoted)


def scalar(value: str, *, quote: bool = True) -> Block:
    """Return a block that writes a field with one value, and leaves the field out where the value is empty."""
    shown = "{{ . | quote }}" if quote else "{{ . }}"
    return lambda key, _indent: [f"{{{{- with .Values.{value} }}}}", f"{key}: {shown}", "{{- end }}"]


def mapping(value: str) -> Block:
    """Return a block that writes a field with a map or a list, and leaves the field out where that is empty."""
    return lambda key, indent: [
        f"{{{{- with .Values.{value} }}}}",
        f"{key}:",
        f"  {{{{- toYaml . | nindent {indent + 2} }}}}",
        "{{- end }}",
    ]


def items(value: str) -> Block:
    """Return a block that adds the items of a list to those that the manifest has."""
    return lambda _key, indent: [
        f"{{{{- with .Values.{value} }}}}",
        f"{{{{- toYaml . | nindent {indent} }}}}",
        "{{- end }}",
    ]


def variable(name: str, value: str) -> Block:
    """Return a block that adds an environment variable where the value is not empty."""
    return lambda _key, _indent: [
        f"{{{{- with .Values.{value} }}}}",
        f"- name: {name}",
        "  value: {{ . | quote }}",
        "{{- end }}",
    ]


class Template:
    """One manifest on its way to a template.

    Args:
        manifest: the object; it is not changed.
        whole: strings that become an expression: `{"wirekube:dev": "{{ .Values.image.repository }}:..."}`.
        parts: what becomes an expression wherever it stands in a string: `{"wirekube-system": "{{ .Release.Namespace }}"}`.
    """

    def __init__(self, manifest: Mapping[str, Any], whole: Mapping[str, str], parts: Mapping[str, str]) -> None:
        self._data, self._blocks = _rewritten(manifest, lambda text: _expression(text, whole, parts)), list[Block]()

    def replace(self, path: str, block: Block) -> None:
        """Put a block into the place of a field, which need not be there; `containers.agent` is the item of that name."""
        parent, _, key = path.rpartition(".")
        _at(self._data, parent)[key] = self._marker(block)

    def extend(self, path: str, block: Block) -> None:
        """Add a block to the end of a list."""
        _at(self._data, path).append(self._marker(block))

    def render(self) -> str:
        """Return the template's text."""
        text = yaml.dump(self._data, Dumper=_Dumper, sort_keys=False, width=_NEVER, allow_unicode=True)
        return "".join(f"{line}\n" for each in text.splitlines() for line in self._lines(each))

    def _marker(self, block: Block) -> str:
        self._blocks.append(block)
        return f"__{len(self._blocks) - 1}__"

    def _lines(self, line: str) -> list[str]:
        found = _MARKED.match(line)
        if not found:
            return [line]
        indent = found[1]
        return [f"{indent}{each}" for each in self._blocks[int(found[3])](found[2] or "", len(indent))]


def _at(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = next(each for each in data if each["name"] == part) if isinstance(data, list) else data[part]
    return data


def _rewritten(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _rewritten(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_rewritten(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def _expression(text: str, whole: Mapping[str, str], parts: Mapping[str, str]) -> str:
    """Put expressions in, and keep from Helm what only looks like one."""
    found = whole.get(text) or text.replace("{{", "{{ `{{` }}")
    for given, expression in parts.items():
        found = found.replace(given, expression)
    return text if found == text else _Expression(found)

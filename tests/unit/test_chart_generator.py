# SPDX-License-Identifier: Apache-2.0
"""hack/chart: what it reads, what it makes of a manifest, and that it notices a chart that is out of date."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from chart import mesh_spec
from kustomize import Unsupported, images, sources
from templates import Template, items, mapping, scalar, variable

ROOT = Path(__file__).resolve().parents[2]


def kustomization(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(text)
    return folder


def test_resources_are_read_in_order_with_the_images_put_in(tmp_path: Path) -> None:
    top = kustomization(
        tmp_path / "top",
        "resources: [a.yaml, ../part]\nimages:\n- {name: ours, newName: example.com/ours, newTag: v1}\n",
    )
    part = kustomization(tmp_path / "part", "resources: [b.yaml]")
    (top / "a.yaml").write_text("kind: A\n---\nkind: B\n")
    (part / "b.yaml").write_text("kind: C\ncontainers:\n- {image: ours}\n- {image: other}\n")
    last = {"kind": "C", "containers": [{"image": "example.com/ours:v1"}, {"image": "other"}]}
    assert sources(top) == [("top-a", [{"kind": "A"}, {"kind": "B"}]), ("part-b", [last])]
    assert images(top) == {"ours": "example.com/ours:v1"}


@pytest.mark.parametrize("where", ["top", "part"])
def test_what_it_does_not_know_it_refuses(tmp_path: Path, where: str) -> None:
    top = kustomization(tmp_path / "top", "resources: [../part]\n")
    kustomization(tmp_path / "part", "resources: []\n")
    path = tmp_path / where / "kustomization.yaml"
    path.write_text(path.read_text() + "namePrefix: x-\n")
    with pytest.raises(Unsupported, match=f"{where}/kustomization.yaml: .* namePrefix"):
        sources(top)


def test_expressions_stand_in_quoted_strings_and_what_looks_like_one_is_kept() -> None:
    manifest = {"namespace": "here", "who": "a:here:b", "image": "i:1", "text": 'say "{{ x }}"', "number": 1}
    template = Template(manifest, {"i:1": "{{ .I }}"}, {"here": "{{ .NS }}"})
    assert template.render().splitlines() == [
        'namespace: "{{ .NS }}"',
        'who: "a:{{ .NS }}:b"',
        'image: "{{ .I }}"',
        r'text: "say \"{{ `{{` }} x }}\""',
        "number: 1",
    ]


def test_blocks_stand_where_their_fields_stand() -> None:
    manifest = {"spec": {"replicas": 1, "list": [{"name": "a", "env": [{"name": "A"}]}], "after": "x"}}
    template = Template(manifest, {}, {})
    template.replace("spec.replicas", scalar("n", quote=False))
    template.extend("spec.list.a.env", variable("LEVEL", "level"))
    template.extend("spec.list.a.env", items("env"))
    template.replace("spec.more", mapping("more"))
    assert (
        template.render()
        == """\
spec:
  {{- with .Values.n }}
  replicas: {{ . }}
  {{- end }}
  list:
  - name: a
    env:
    - name: A
    {{- with .Values.level }}
    - name: LEVEL
      value: {{ . | quote }}
    {{- end }}
    {{- with .Values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  after: x
  {{- with .Values.more }}
  more:
    {{- toYaml . | nindent 4 }}
  {{- end }}
"""
    )
    assert manifest["spec"]["replicas"] == 1


def test_the_meshs_spec_knows_its_fields_and_no_others() -> None:
    spec = mesh_spec()
    assert spec["additionalProperties"] is False
    assert spec["properties"]["relay"]["additionalProperties"] is False
    assert spec["properties"]["mtu"]["minimum"] == 1280
    assert "x-kubernetes" not in str(spec)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("config", "hack/chart"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(copy / "hack/chart"), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_drift_is_named_and_mended(copy: Path) -> None:
    assert run(copy, "--check").returncode == 0
    daemonset = copy / "config/agent/daemonset.yaml"
    daemonset.write_text(daemonset.read_text().replace("periodSeconds: 2\n", "periodSeconds: 3\n"))
    rest = copy / "config/rbac/kustomization.yaml"
    rest.write_text(rest.read_text().replace("- events.yaml\n", ""))
    checked = run(copy, "--check")
    assert checked.returncode == 1
    assert sorted(line.split()[0].rpartition("/")[2] for line in checked.stderr.splitlines()) == [
        "agent-daemonset.yaml",
        "rbac-events.yaml",
    ]
    assert run(copy).returncode == 0
    assert run(copy, "--check").returncode == 0
    manifests = copy / "config/helm/wirekube/templates/manifests"
    assert "periodSeconds: 3" in (manifests / "agent-daemonset.yaml").read_text()
    assert not (manifests / "rbac-events.yaml").exists()


def test_the_defaults_are_those_of_the_manifests() -> None:
    values = yaml.safe_load((ROOT / "config/helm/wirekube/values.yaml").read_text())
    operator = yaml.safe_load((ROOT / "config/operator/deployment.yaml").read_text())["spec"]
    assert values["operator"]["replicas"] == operator["replicas"]
    assert values["operator"]["resources"] == operator["template"]["spec"]["containers"][0]["resources"]
    assert (values["image"]["repository"], values["image"]["tag"]) == ("wirekube", "dev")

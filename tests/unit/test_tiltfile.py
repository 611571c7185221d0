# SPDX-License-Identifier: Apache-2.0
"""The Tiltfile, evaluated by a Starlark interpreter with Tilt's functions, against the repository.

Each function has the arguments of Tilt's API reference, so that a misspelt one fails, and notes its call. What the
rendered manifests must be for it is in tests/integration/test_config_dev.py.
"""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import starlark
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
BASE = "wirekube-base:test"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
WORKLOADS = {"wirekube-operator", "wirekube-agent"}

Call = dict[str, Any]


class Tilt:
    """Tilt's functions, as far as the Tiltfile uses them; a Blob is a string here."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.images: dict[str, Call] = {}
        self.resources: dict[str, Call] = {}
        self.allowed: list[str] = []
        self.settings: dict[str, Call] = {}
        self.applied = ""

    def version_settings(self, check_updates: bool = True, constraint: str = "") -> None:
        self.settings["version"] = {"check_updates": check_updates}

    def analytics_settings(self, enable: bool) -> None:
        self.settings["analytics"] = {"enable": enable}

    def ci_settings(self, k8s_grace_period: str = "", timeout: str = "30m", readiness_timeout: str = "5m") -> None:
        self.settings["ci"] = {"k8s_grace_period": k8s_grace_period}

    def allow_k8s_contexts(self, contexts: str | list[str]) -> None:
        self.allowed += [contexts] if isinstance(contexts, str) else contexts

    def local(
        self,
        command: str | list[str],
        quiet: bool = False,
        command_bat: str | list[str] = "",
        echo_off: bool = False,
        env: dict[str, str] | None = None,
        dir: str = "",
        stdin: str | None = None,
    ) -> str:
        assert isinstance(command, list)
        self.commands.append(command)
        return f"{BASE}\n" if command[1:] == ["base"] else ""

    def sync(self, local_path: str, remote_path: str) -> Call:
        return {"step": "sync", "local": local_path, "remote": remote_path}

    def run(self, cmd: str | list[str], trigger: str | list[str] | None = None, echo_off: bool = False) -> Call:
        return {"step": "run", "cmd": cmd}

    def docker_build(
        self,
        ref: str,
        context: str,
        build_args: dict[str, str] | None = None,
        dockerfile: str = "Dockerfile",
        dockerfile_contents: str = "",
        live_update: list[Call] | None = None,
        match_in_env_vars: bool = False,
        ignore: str | list[str] = "",
        only: str | list[str] = "",
        entrypoint: str | list[str] = "",
        target: str = "",
        ssh: str | list[str] = "",
        network: str = "",
        secret: str | list[str] = "",
        extra_tag: str | list[str] = "",
        container_args: list[str] | None = None,
        cache_from: str | list[str] = "",
        pull: bool = False,
        platform: str = "",
        extra_hosts: str | list[str] = "",
    ) -> None:
        assert ref not in self.images
        built = {"args": build_args or {}, "only": only, "target": target, "live": live_update or []}
        self.images[ref] = built | {"context": context, "dockerfile": dockerfile, "after": len(self.commands)}

    def kustomize(self, pathToDir: str, kustomize_bin: str = "", flags: list[str] | None = None) -> str:  # noqa: N803
        assert (ROOT / pathToDir / "kustomization.yaml").is_file()
        return (ROOT / pathToDir / "mesh.yaml").read_text()

    def k8s_yaml(self, yaml: str, allow_duplicates: bool = False) -> None:
        self.applied += yaml

    def port_forward(
        self, local_port: int, container_port: int = 0, name: str = "", link_path: str = "", host: str = ""
    ) -> Call:
        return {"local": local_port, "container": container_port, "path": link_path}

    def link(self, url: str, name: str = "") -> Call:
        return {"url": url}

    def k8s_resource(
        self,
        workload: str = "",
        new_name: str = "",
        port_forwards: Any = (),
        extra_pod_selectors: Any = (),
        trigger_mode: Any = None,
        resource_deps: list[str] | None = None,
        objects: list[str] | None = None,
        auto_init: bool = True,
        pod_readiness: str = "",
        links: Any = (),
        labels: str | list[str] = "",
        discovery_strategy: str = "",
    ) -> None:
        assert workload or (new_name and objects), "a resource without a workload needs a name and objects"
        name = new_name or workload
        assert name not in self.resources
        call = {"workload": workload, "objects": objects or [], "deps": resource_deps or [], "readiness": pod_readiness}
        self.resources[name] = call | {"forwards": port_forwards, "links": links}


FUNCTIONS = [name for name in vars(Tilt) if not name.startswith("_")]


def evaluate(tilt: Tilt, text: str) -> Tilt:
    """Run a Tiltfile as Tilt would: statements on the top level are allowed."""
    dialect = starlark.Dialect.standard()
    dialect.enable_top_level_stmt = True
    module = starlark.Module()
    for name in FUNCTIONS:
        module.add_callable(name, getattr(tilt, name))
    starlark.eval(module, starlark.parse("Tiltfile", text, dialect), starlark.Globals.standard())
    return tilt


@pytest.fixture
def tilt() -> Tilt:
    return evaluate(Tilt(), (ROOT / "Tiltfile").read_text())


def documents(path: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((CONFIG / path).read_text()) if each]


def copied(target: str) -> set[str]:
    """Return what the stages up to a target copy from the context."""
    stages = re.split(r"^FROM \S+ AS (\S+)\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    bodies = dict(zip(stages[::2], stages[1::2], strict=True))
    wanted = [bodies["wireguard"]] if target == "wireguard" else [bodies[s] for s in bodies if s != "wireguard"]
    lines = [line for body in wanted for line in re.findall(r"^COPY (?!--from)(.+)$", body, re.MULTILINE)]
    return {source.rstrip("/") for line in lines for source in line.split()[:-1]}


def test_a_misspelt_argument_is_found():
    with pytest.raises(starlark.StarlarkError, match="live_updates"):
        evaluate(Tilt(), "docker_build('a', '.', live_updates=[])")


def test_the_images_are_those_of_the_manifests(tilt: Tilt):
    named = {each["name"] for each in documents("default/kustomization.yaml")[0]["images"]}
    assert set(tilt.images) == named


def test_each_image_is_built_from_a_stage_of_the_dockerfile(tilt: Tilt):
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    for image in tilt.images.values():
        assert image["target"] in stages
        assert (image["context"], image["dockerfile"]) == (".", "Dockerfile")
    assert tilt.images["wirekube"]["target"] == stages[-1]


def test_the_base_is_what_hack_image_says(tilt: Tilt):
    arguments = re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)
    assert set(tilt.images["wirekube"]["args"]) == set(arguments)
    assert tilt.images["wirekube"]["args"]["BASE"] == BASE


def test_what_comes_from_outside_is_made_before_the_builds(tilt: Tilt):
    assert ["hack/image", "prepare"] in tilt.commands
    script = (ROOT / "hack/image").read_text()
    for command in tilt.commands:
        assert (ROOT / command[0]).is_file()
        assert command[1] in script
    assert all(image["after"] > tilt.commands.index(["hack/image", "prepare"]) for image in tilt.images.values())


def test_a_build_sees_exactly_what_its_stages_copy(tilt: Tilt):
    for image in tilt.images.values():
        assert {path.rstrip("/") for path in image["only"]} == copied(image["target"])


def test_every_package_is_synced_to_where_it_is_installed(tilt: Tilt):
    steps = [step for step in tilt.images["wirekube"]["live"] if step["step"] == "sync"]
    sources = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    installed = re.search(r"COPY --from=dependencies (\S+) ", DOCKERFILE)
    assert installed
    expected = {
        package: f"{installed[1]}/lib/python3.11/site-packages/{place}"
        for package, place in sources["sources"].items()
        if package != "src/wirekube"
    }
    assert {step["local"]: step["remote"] for step in steps} == expected
    assert all((ROOT / step["local"]).is_dir() for step in steps)


def test_synced_files_are_in_the_build(tilt: Tilt):
    """Tilt watches nothing else."""
    image = tilt.images["wirekube"]
    assert {step["local"] for step in image["live"] if step["step"] == "sync"} <= set(image["only"])


def test_the_process_is_restarted_after_the_files_are_there(tilt: Tilt):
    *before, last = tilt.images["wirekube"]["live"]
    assert {step["step"] for step in before} == {"sync"}
    assert last["step"] == "run"
    shell, script, action = last["cmd"]
    assert (shell, action) == ("sh", "restart")
    for role in ("operator", "agent"):
        patch = documents(f"dev/{role}.yaml")[0]["spec"]["template"]["spec"]["containers"][-1]
        assert patch["command"] == ["sh", script, "run", f"wirekube-{role}"]
        assert patch["volumeMounts"][0]["mountPath"] == str(Path(script).parent)


def test_every_workload_has_a_resource(tilt: Tilt):
    there = {
        each["metadata"]["name"]
        for path in ("operator/deployment.yaml", "agent/daemonset.yaml")
        for each in documents(path)
        if each["kind"] in ("Deployment", "DaemonSet")
    }
    assert {call["workload"] for call in tilt.resources.values() if call["workload"]} == there == WORKLOADS


def probed(workload: str) -> int:
    """Return the port at which the kubelet asks for a workload's health."""
    path = {"wirekube-operator": "operator/deployment.yaml", "wirekube-agent": "agent/daemonset.yaml"}
    found = next(each for each in documents(path[workload]) if each["kind"] in ("Deployment", "DaemonSet"))
    container = next(each for each in found["spec"]["template"]["spec"]["containers"] if "readinessProbe" in each)
    return int(container["readinessProbe"]["httpGet"]["port"])


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
def test_metrics_and_health_are_forwarded(tilt: Tilt, workload: str):
    call = next(call for call in tilt.resources.values() if call["workload"] == workload)
    port = probed(workload)
    assert call["forwards"] == [{"local": port, "container": port, "path": "/metrics"}]
    assert [each["url"] for each in call["links"]] == [f"http://localhost:{port}/readyz?verbose"]


def test_no_two_forwards_share_a_port(tilt: Tilt):
    ports = [each["local"] for call in tilt.resources.values() for each in call["forwards"]]
    assert len(ports) == len(set(ports)) == len(WORKLOADS)


def test_the_mesh_is_applied_when_its_kind_is_known(tilt: Tilt):
    mesh = documents("dev/mesh.yaml")[0]
    call = tilt.resources["mesh"]
    assert call["objects"] == [f"{mesh['metadata']['name']}:{mesh['kind']}".lower()]
    assert call["readiness"] == "ignore"
    workloads = {name for name, each in tilt.resources.items() if each["workload"]}
    assert {"operator"} <= set(call["deps"]) <= workloads


def test_the_relay_is_reached_without_a_load_balancer(tilt: Tilt):
    relay = yaml.safe_load(tilt.applied)["spec"]["relay"]
    assert (relay["provider"], relay["managed"]["serviceType"]) == ("managed", "NodePort")


def test_the_context_of_make_kind_up_is_allowed(tilt: Tilt):
    name = re.search(r"^name=(\S+)$", (ROOT / "hack/kind/cluster").read_text(), re.MULTILINE)
    assert name
    assert tilt.allowed == [f"kind-{name[1]}"]


def test_tilt_reports_to_nobody(tilt: Tilt):
    assert tilt.settings["analytics"] == {"enable": False}
    assert tilt.settings["version"] == {"check_updates": False}


def test_the_line_that_make_tilt_ci_changes_is_there():
    """In a file that runs in both roles, and what they answer is what the script waits for."""
    script = (ROOT / "hack/tilt-ci").read_text()
    variables = dict(re.findall(r"^(source|old|new)=('[^']+'|\S+)", script, re.MULTILINE))
    text = (ROOT / variables["source"]).read_text()
    assert text.count(variables["old"].strip("'")) == 1
    assert variables["new"].strip("'") not in text


def test_without_tilt_make_tilt_ci_says_so(tmp_path: Path):
    for name in ("dirname", "bash"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    done = subprocess.run(
        [ROOT / "hack/tilt-ci"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("no tilt in PATH: skipped\n")

"""Helm without a cluster: what it makes of the chart's values. Helm itself comes from tools/localcluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.localcluster import build
from tools.localcluster.paths import cache_folder

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tokenservice-operator"
Object = dict[str, Any]
Render = Callable[..., "Rendered"]


class Rendered(list[Object]):
    """The objects of a release, in the order in which Helm installs them."""

    def of(self, kind: str) -> list[Object]:
        return [item for item in self if item["kind"] == kind and "helm.sh/hook" not in annotated(item)]

    def hooks(self) -> list[Object]:
        return [item for item in self if "helm.sh/hook" in annotated(item)]

    def one(self, kind: str) -> Object:
        [found] = self.of(kind)
        return found

    def named(self, kind: str, name: str) -> Object:
        [found] = [item for item in self.of(kind) if item["metadata"]["name"] == name]
        return found


def annotated(item: Object) -> dict[str, str]:
    return item["metadata"].get("annotations") or {}


def job_template(objects: Rendered) -> Object:
    """The Job's manifest as the operator finds it in its ConfigMap."""
    [text] = [item["data"]["job-template.yaml"] for item in objects.of("ConfigMap") if "settings.yaml" in item["data"]]
    loaded: Object = yaml.safe_load(text)
    return loaded


def pod_specs(objects: Rendered) -> Iterator[Object]:
    """Of every pod that the release brings about: Deployments, the test, Jobs."""
    for item in objects:
        if item["kind"] == "Deployment":
            yield item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            yield item["spec"]
        elif item["kind"] == "ConfigMap" and "job-template.yaml" in item["data"]:
            yield job_template(objects)["spec"]["template"]["spec"]


def granted(role: Object) -> set[tuple[str, str, str]]:
    """The rights of a role: (group, resource, verb)."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@dataclass(frozen=True)
class Helm:
    """`values` are written to a file in `folder`; the image's repository is given unless they give it."""

    program: Path
    folder: Path

    @classmethod
    def built(cls, folder: Path) -> Helm:
        programs = build.programs(cache_folder())
        build.ensure(programs, ["helm"])
        return cls(programs.path("helm"), folder)

    def run(self, *arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        file = self.folder / "values.yaml"
        file.write_text(yaml.safe_dump({"image": {"repository": "registry.example.com/operator"}} | (values or {})))
        return subprocess.run([self.program, *arguments, "--values", file], capture_output=True, text=True, check=False)

    def render(self, values: Object | None = None, *arguments: str, release: str = "tokenservice-operator") -> Rendered:
        done = self.run("template", release, str(CHART), "--namespace", "system", *arguments, values=values)
        assert done.returncode == 0, done.stderr
        return Rendered(item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item)

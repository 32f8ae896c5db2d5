"""Writes data/managed_fields.json: what a real API server records while others edit what we applied.

    KUBECONFIG=... python tests/unit/kube/capture_managed_fields.py

Uses the cluster of KUBECONFIG and a namespace of its own, which it removes. Run it again for a new version of Kubernetes.
"""

# ruff: noqa: E501, ASYNC221 - a table with one case a line; a script that may block

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "operator"))

from tokenservice.kube.apply import with_hash
from tokenservice.kube.client import Client, Resource
from tokenservice.kube.connection import Connection

NAMESPACE = "capture-managed-fields"
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
SERVICES = Resource("", "v1", "services", "Service")
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
OUT = Path(__file__).parent / "data" / "managed_fields.json"

LABELS = {"app.kubernetes.io/name": "token-server", "tokenservice.dev/service": "chat"}


def deployment() -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": NAMESPACE, "labels": LABELS},
        "spec": {
            "replicas": 1,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"tokenservice.dev/deployment": "chat"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {**LABELS, "tokenservice.dev/deployment": "chat"}},
                "spec": {
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 90,
                    "nodeSelector": {"disk": "ssd"},
                    "securityContext": {"runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                    "affinity": {
                        "nodeAffinity": {
                            "requiredDuringSchedulingIgnoredDuringExecution": {
                                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]
                            }
                        }
                    },
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {"matchLabels": {"tokenservice.dev/service": "chat"}},
                        }
                    ],
                    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["hub"]}],
                    "imagePullSecrets": [{"name": "pull"}],
                    "containers": [
                        {
                            "name": "server",
                            "image": "registry.example/serving:1",
                            "args": ["--dtype", "bfloat16"],
                            "env": [
                                {"name": "TOKEN_SERVER_PORT", "value": "8000"},
                                {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}}},
                                {"name": "EMPTY", "value": ""},
                            ],
                            "ports": [{"name": "http", "containerPort": 8000}],
                            "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"example.com/gpu": 1}},
                            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1},
                            "securityContext": {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False},
                            "volumeMounts": [{"name": "cache", "mountPath": "/var/cache"}],
                        },
                        {
                            "name": "sidecar",
                            "image": "registry.example/dns:1",
                            "ports": [
                                {"containerPort": 53},
                                {"containerPort": 53, "protocol": "UDP"},
                            ],
                        },
                    ],
                    "volumes": [
                        {"name": "cache", "emptyDir": {}},
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1024Mi"}},
                        {"name": "keys", "secret": {"secretName": "keys", "items": [{"key": "a", "path": "b"}]}},
                    ],
                },
            },
        },
    }  # fmt: skip


def service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": NAMESPACE, "labels": LABELS},
        "spec": {
            "selector": {"tokenservice.dev/service": "chat"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def budget() -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": "chat",
            "namespace": NAMESPACE,
            "labels": LABELS,
            "finalizers": ["example.dev/one", "example.dev/two"],
        },
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {"tokenservice.dev/deployment": "chat"}},
        },
    }


def with_empties() -> dict[str, Any]:
    """Everything that can be written empty."""
    out = deployment()
    out["metadata"]["annotations"] = {}
    pod = out["spec"]["template"]["spec"]
    out["spec"]["template"]["metadata"]["annotations"] = {}
    pod.update(nodeSelector={}, securityContext={}, tolerations=[], affinity={}, imagePullSecrets=[], hostAliases=[])
    pod["containers"][0].update(args=[], env=[], resources={}, securityContext={}, volumeMounts=[])
    pod["containers"] = pod["containers"][:1]
    return out


def with_nulls() -> dict[str, Any]:
    out = deployment()
    pod = out["spec"]["template"]["spec"]
    pod["priorityClassName"] = None
    pod["containers"][0]["resources"] = None
    return out


def with_zeros() -> dict[str, Any]:
    """Values that Go leaves out when it writes."""
    out = deployment()
    out["spec"].update(replicas=0, paused=False, minReadySeconds=0)
    pod = out["spec"]["template"]["spec"]
    pod.update(hostNetwork=False, hostPID=False, priorityClassName="", schedulerName="", restartPolicy="")
    pod["containers"][0].update(stdin=False, tty=False, workingDir="", command=[])
    pod["containers"][0]["readinessProbe"].update(initialDelaySeconds=0)
    pod["volumes"][2]["secret"].update(optional=False)
    return out


def kubectl(*args: str, stdin: str | None = None, refused: str | None = None) -> str:
    run = subprocess.run(["kubectl", "-n", NAMESPACE, *args], input=stdin, capture_output=True, text=True, check=False)
    if run.returncode and refused and refused in run.stderr:
        return run.stderr
    if run.returncode:
        raise SystemExit(f"kubectl {' '.join(args)}: {run.stderr}")
    return run.stdout


def edit(kind: str, change: Callable[[dict[str, Any]], object]) -> Callable[[], None]:
    """What `kubectl edit` does in the end: reads the object, changes it, replaces it."""

    def run() -> None:
        for _ in range(20):  # controllers write in between
            obj = json.loads(kubectl("get", kind, "chat", "-o", "json"))
            change(obj)
            if "Conflict" not in kubectl("replace", "-f", "-", stdin=json.dumps(obj), refused="Conflict"):
                return

    return run


def pod_of(obj: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = obj["spec"]["template"]["spec"]
    return found


def server_of(obj: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod_of(obj)["containers"][0]
    return found


def run(*args: str) -> Callable[[], None]:
    return lambda: (kubectl(*args), None)[1]


def nothing() -> None:
    pass


SERVER = "spec.template.spec.containers[name=server]"
# name, what we want, what the others do, the drift that must be found (None: none)
CASES: list[tuple[str, Resource, dict[str, Any], Callable[[], None], str | None]] = [
    ("deployment as applied", DEPLOYMENTS, deployment(), nothing, None),
    ("empty values", DEPLOYMENTS, with_empties(), nothing, None),
    ("null values", DEPLOYMENTS, with_nulls(), nothing, None),
    ("zero values", DEPLOYMENTS, with_zeros(), nothing, None),
    ("zero values, then edited by others", DEPLOYMENTS, with_zeros(), edit("deployment", lambda o: server_of(o).update(imagePullPolicy="Never")), None),
    ("kubectl set image", DEPLOYMENTS, deployment(), run("set", "image", "deployment/chat", "server=other:2"), f"{SERVER}.image"),
    ("kubectl set env", DEPLOYMENTS, deployment(), run("set", "env", "deployment/chat", "-c=server", "TOKEN_SERVER_PORT=9"), f"{SERVER}.env[name=TOKEN_SERVER_PORT].value"),
    ("another's env", DEPLOYMENTS, deployment(), run("set", "env", "deployment/chat", "-c=server", "THEIRS=1"), None),
    ("env removed", DEPLOYMENTS, deployment(), run("set", "env", "deployment/chat", "-c=server", "EMPTY-"), f"{SERVER}.env[name=EMPTY].name"),
    ("secret reference edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: server_of(o)["env"][1]["valueFrom"]["secretKeyRef"].update(key="x")), f"{SERVER}.env[name=HF_TOKEN].valueFrom"),
    ("kubectl scale", DEPLOYMENTS, deployment(), run("scale", "deployment/chat", "--replicas=3"), "spec.replicas"),
    ("kubectl rollout restart", DEPLOYMENTS, deployment(), run("rollout", "restart", "deployment/chat"), None),
    ("label changed", DEPLOYMENTS, deployment(), run("label", "deployment/chat", "--overwrite", "tokenservice.dev/service=x"), "metadata.labels[tokenservice.dev/service]"),
    ("label removed", DEPLOYMENTS, deployment(), run("label", "deployment/chat", "app.kubernetes.io/name-"), "metadata.labels[app.kubernetes.io/name]"),
    ("another's label", DEPLOYMENTS, deployment(), run("label", "deployment/chat", "theirs=1"), None),
    ("another's annotation", DEPLOYMENTS, deployment(), run("annotate", "deployment/chat", "theirs=1"), None),
    ("atomic list edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["tolerations"][0].update(effect="NoExecute")), "spec.template.spec.tolerations"),
    ("atomic list added to", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["tolerations"].append({"operator": "Exists"})), "spec.template.spec.tolerations"),
    ("atomic map edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["nodeSelector"].update(disk="hdd")), "spec.template.spec.nodeSelector"),
    ("args edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: server_of(o)["args"].append("--more")), f"{SERVER}.args"),
    ("affinity edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o).pop("affinity")), "spec.template.spec.affinity"),
    ("resources edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: server_of(o)["resources"]["requests"].update(cpu="2")), f"{SERVER}.resources.requests.cpu"),
    ("resources said differently", DEPLOYMENTS, deployment(), edit("deployment", lambda o: server_of(o)["resources"]["requests"].update(memory="1Gi")), None),
    ("port edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: server_of(o)["ports"][0].update(containerPort=9000)), f"{SERVER}.ports"),
    ("one of two ports of one number removed", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["containers"][1]["ports"].pop(0)), "spec.template.spec.containers[name=sidecar].ports[containerPort=53]"),
    ("volume replaced", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["volumes"].__setitem__(0, {"name": "cache", "hostPath": {"path": "/"}})), "spec.template.spec.volumes[name=cache].emptyDir"),
    ("empty directory given a size", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["volumes"][0]["emptyDir"].update(sizeLimit="1Gi")), None),
    ("container added", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["containers"].append({"name": "theirs", "image": "x:1"})), None),
    ("container removed", DEPLOYMENTS, deployment(), edit("deployment", lambda o: pod_of(o)["containers"].pop(1)), "spec.template.spec.containers[name=sidecar]"),
    ("probe edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: server_of(o)["readinessProbe"].update(periodSeconds=5)), f"{SERVER}.readinessProbe.periodSeconds"),
    ("defaulted value of the probe edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: server_of(o)["readinessProbe"].update(timeoutSeconds=5)), None),
    ("strategy edited", DEPLOYMENTS, deployment(), edit("deployment", lambda o: o["spec"]["strategy"]["rollingUpdate"].update(maxSurge=3)), "spec.strategy.rollingUpdate.maxSurge"),
    ("hash edited", DEPLOYMENTS, deployment(), run("annotate", "deployment/chat", "--overwrite", "tokenservice.dev/applied-hash=x"), "changed"),
    ("managed fields wiped", DEPLOYMENTS, deployment(), run("patch", "deployment/chat", "--type=merge", '-p={"metadata":{"managedFields":[{}]}}'), "nothing is owned by tokenservice-operator"),
    ("service as applied", SERVICES, service(), nothing, None),
    ("service port edited", SERVICES, service(), edit("service", lambda o: o["spec"]["ports"][0].update(targetPort=1)), "spec.ports[port=80].targetPort"),
    ("service port moved", SERVICES, service(), edit("service", lambda o: o["spec"]["ports"][0].update(port=81)), "spec.ports"),
    ("service selector edited", SERVICES, service(), run("set", "selector", "service/chat", "x=y"), "spec.selector"),
    ("service type edited", SERVICES, service(), edit("service", lambda o: o["spec"].update(type="NodePort")), None),
    ("budget as applied", BUDGETS, budget(), nothing, None),
    ("budget edited", BUDGETS, budget(), edit("pdb", lambda o: o["spec"].update(maxUnavailable=2)), "spec.maxUnavailable"),
    ("finalizer removed", BUDGETS, budget(), edit("pdb", lambda o: o["metadata"]["finalizers"].remove("example.dev/one")), "metadata.finalizers[example.dev/one]"),
]  # fmt: skip


async def main() -> None:
    cases: list[dict[str, Any]] = []
    manifests: list[dict[str, Any]] = []
    version = json.loads(subprocess.run(["kubectl", "version", "-o", "json"], capture_output=True, check=True).stdout)
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], check=True, capture_output=True)
    try:
        async with Client(Connection.from_kubeconfig()) as client:
            for name, resource, wanted, others, drift in CASES:
                desired = with_hash(copy.deepcopy(wanted))
                await client.apply(resource, NAMESPACE, "chat", desired)
                await asyncio.to_thread(others)
                live = json.loads(await client.get(resource, NAMESPACE, "chat"))
                meta = {key: live["metadata"].get(key, []) for key in ("name", "annotations", "managedFields")}
                for entry in meta["managedFields"]:
                    entry.pop("time", None)
                if desired not in manifests:
                    manifests.append(desired)
                cases.append({"name": name, "desired": manifests.index(desired), "live": meta, "drift": drift})
                if live["metadata"].get("finalizers"):
                    kubectl("patch", resource.plural, "chat", "--type=merge", '-p={"metadata":{"finalizers":null}}')
                kubectl("delete", resource.plural, "chat", "--cascade=background")
    finally:
        subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "--wait=false"], check=True, capture_output=True)
    document = {"kubernetes": version["serverVersion"]["gitVersion"], "manifests": manifests, "cases": cases}
    OUT.write_text(
        json.dumps(document, separators=(",", ":"), sort_keys=True).replace('{"desired"', '\n{"desired"') + "\n"
    )


if __name__ == "__main__":
    asyncio.run(main())

"""What Helm makes of the chart, for many values. No cluster is asked; helm itself comes from tools/localcluster."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tokenservice.manager import KEY_BYTES

from tests.apiserver.chart_render import CHART, ROOT, Helm, Object, Render, annotated, granted, pod_specs

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    return Helm.built(tmp_path).run


@pytest.fixture
def render(tmp_path: Path) -> Render:
    return Helm.built(tmp_path).render


EVERYTHING: Object = {
    "image": {"repository": "10.0.0.1:5000/tokenservice/operator", "tag": "v1", "digest": DIGEST},
    "imagePullSecrets": [{"name": "pull"}],
    "replicas": 3,
    "nameOverride": "ts",
    "watchNamespaces": ["team-a", "team-b"],
    "logLevel": "debug",
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "control-plane", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [{"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
    "runAsUser": None,
    "podAnnotations": {"a": "1"},
    "podLabels": {"app.kubernetes.io/component": "mine", "b": "2"},
    "commonLabels": {"team": "serving"},
    "serviceAccount": {"annotations": {"c": "3"}},
    "crds": {"keep": False},
    "metrics": {
        "service": {"port": 9090, "annotations": {"d": "4"}},
        "serviceMonitor": {
            "enabled": True,
            "interval": "30s",
            "scrapeTimeout": "5s",
            "labels": {"release": "prometheus"},
        },
    },
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "apiServer": {"cidrs": ["10.96.0.1/32", "fd00::/64"], "ports": [443]},
    },
}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_lint_finds_nothing(run: Callable[..., subprocess.CompletedProcess[str]], values: Object) -> None:
    done = run("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


def test_the_crds_are_those_of_the_source(render: Render) -> None:
    sources = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert render({"crds": {"keep": False}}).of("CustomResourceDefinition") == sources
    for source in sources:
        source["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    assert render().of("CustomResourceDefinition") == sources
    assert render({"crds": {"enabled": False}}).of("CustomResourceDefinition") == []


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_every_pod_meets_the_restricted_standard(render: Render, values: Object) -> None:
    specs = list(pod_specs(render(values)))
    assert len(specs) == 2
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"].get("runAsUser") == (65532 if not values else None)
        kinds = {volume["name"]: {*volume} - {"name"} for volume in spec["volumes"]}
        assert kinds in ({"tmp": {"emptyDir"}}, {"tmp": {"emptyDir"}, "token-key": {"secret"}})
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({"repository": "r.io/op"}, "r.io/op:0.1.0"),
        ({"repository": "r.io/op", "tag": "v2"}, "r.io/op:v2"),
        ({"repository": "r.io/op", "digest": DIGEST}, f"r.io/op@{DIGEST}"),
        ({"repository": "r.io/op", "tag": "v2", "digest": DIGEST}, f"r.io/op:v2@{DIGEST}"),
    ],
)
def test_the_image(render: Render, image: Object, reference: str) -> None:
    objects = render({"image": image})
    assert [spec["containers"][0]["image"] for spec in pod_specs(objects)] == [reference] * 2


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_selectors_find_the_operators_pods_and_not_the_tests(render: Render, values: Object) -> None:
    objects = render(values)
    pods = objects.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    [test] = [item for item in objects.hooks() if item["kind"] == "Pod"]
    selectors = [
        objects.one("Deployment")["spec"]["selector"]["matchLabels"],
        objects.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        objects.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        objects.one("Service")["spec"]["selector"],
        *(
            item["labelSelector"]["matchLabels"]
            for item in objects.one("Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector.items() <= pods.items()
        assert not selector.items() <= test["metadata"]["labels"].items()


def test_values_reach_the_operator(render: Render) -> None:
    objects = render(EVERYTHING)
    deployment = objects.one("Deployment")
    template = deployment["spec"]["template"]
    [container] = template["spec"]["containers"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert deployment["spec"]["replicas"] == 3
    assert environment["TOKENSERVICE_LOG_LEVEL"] == "debug"
    assert environment["TOKENSERVICE_NAMESPACES"] == "team-a,team-b"
    assert template["metadata"]["labels"].items() >= {"b": "2", "team": "serving"}.items()
    assert template["metadata"]["annotations"]["a"] == "1"
    assert template["spec"]["priorityClassName"] == "system-cluster-critical"
    assert template["spec"]["nodeSelector"] == EVERYTHING["nodeSelector"]
    assert template["spec"]["tolerations"] == EVERYTHING["tolerations"]
    assert template["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    [constraint] = template["spec"]["topologySpreadConstraints"]
    assert constraint.items() >= EVERYTHING["topologySpreadConstraints"][0].items()
    service = objects.one("Service")
    assert service["spec"]["ports"][0].items() >= {"port": 9090, "targetPort": "http"}.items()
    assert annotated(service) == {"d": "4"}
    monitor = objects.one("ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [
        {"port": "http", "path": "/metrics", "interval": "30s", "scrapeTimeout": "5s"}
    ]
    for item in objects:
        if item["kind"] != "CustomResourceDefinition":
            assert item["metadata"]["labels"]["team"] == "serving", item["kind"]


def test_the_key_of_tokens_reaches_the_operator_as_a_file(render: Render) -> None:
    for values, name in (
        ({}, "tokenservice-operator-token-key"),
        ({"warmPools": {"tokenKeySecret": "mine"}}, "mine"),
    ):
        objects = render(values)
        spec = objects.one("Deployment")["spec"]["template"]["spec"]
        [container] = spec["containers"]
        [file] = [item["value"] for item in container["env"] if item["name"] == "TOKENSERVICE_TOKEN_KEY_FILE"]
        [mount] = [item for item in container["volumeMounts"] if file.startswith(f"{item['mountPath']}/")]
        [volume] = [item for item in spec["volumes"] if item["name"] == mount["name"]]
        [item] = volume["secret"]["items"]
        assert (volume["secret"]["secretName"], f"{mount['mountPath']}/{item['path']}") == (name, file)
        made = objects.of("Secret")
        assert [each["metadata"]["name"] for each in made] == ([name] if name != "mine" else [])
        assert all(len(base64.b64decode(each["data"][item["key"]])) >= KEY_BYTES for each in made)


@pytest.mark.parametrize(("replicas", "budgets"), [(0, 0), (1, 0), (2, 1), (5, 1)])
def test_a_budget_only_where_a_pod_may_go(render: Render, replicas: int, budgets: int) -> None:
    assert len(render({"replicas": replicas}).of("PodDisruptionBudget")) == budgets


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"networkPolicy": {"enabled": False}}, "NetworkPolicy"),
        ({"metrics": {"service": {"enabled": False}}}, "Service"),
        ({"podDisruptionBudget": {"enabled": False}}, "PodDisruptionBudget"),
        ({"serviceAccount": {"create": False, "name": "mine"}}, "ServiceAccount"),
        ({"rbac": {"create": False, "aggregate": False}}, "ClusterRole"),
        ({"rbac": {"create": False, "aggregate": False}}, "Role"),
        ({}, "ServiceMonitor"),
    ],
)
def test_what_is_switched_off_is_not_there(render: Render, values: Object, kind: str) -> None:
    assert render(values).of(kind) == []


def test_the_network_policy_names_what_it_lets_through(render: Render) -> None:
    spec = render().one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 8000, 8001, 443, 6443]
    assert [rule.get("to") for rule in spec["egress"]] == [None, None, None, None]
    spec = render(EVERYTHING).one("NetworkPolicy")["spec"]
    assert spec["ingress"][0]["from"] == EVERYTHING["networkPolicy"]["metricsFrom"]
    assert spec["egress"][3]["to"] == [{"ipBlock": {"cidr": "10.96.0.1/32"}}, {"ipBlock": {"cidr": "fd00::/64"}}]


def test_the_operator_may_not_delete_children_read_secrets_or_use_wildcards(render: Render) -> None:
    objects = render({"rbac": {"aggregate": False}})
    rights = granted(objects.one("ClusterRole")) | granted(objects.one("Role"))
    assert {verb for _, _, verb in rights} <= {"get", "list", "watch", "create", "patch", "update", "delete"}
    deletes = {resource for _, resource, verb in rights if verb == "delete"}
    assert deletes == {"condaenvironments", "controllerrevisions", "pods", "warmpools"}
    assert {resource for _, resource, _ in rights} == {
        "tokenservices",
        "tokenservices/status",
        "tokenservices/finalizers",
        "warmpools/finalizers",
        "condaenvironments",
        "condaenvironments/status",
        "warmpools",
        "warmpools/status",
        "controllerrevisions",
        "deployments",
        "replicasets",
        "services",
        "poddisruptionbudgets",
        "pods",
        "nodes",
        "events",
        "leases",
    }
    # Leases change by name alone, in the operator's own namespace.
    named = [rule["resourceNames"] for rule in objects.one("Role")["rules"] if rule["verbs"] != ["create"]]
    assert named == [["tokenservice-operator"]]
    assert not {item for item in granted(objects.one("ClusterRole")) if item[1] == "leases"}


def test_watched_namespaces_get_roles_of_their_own(render: Render) -> None:
    everywhere = render({"rbac": {"aggregate": False}}).one("ClusterRole")
    objects = render({"rbac": {"aggregate": False}, "watchNamespaces": ["team-a", "system"]}, release="r")
    assert objects.of("ClusterRole") == []
    assert objects.of("ClusterRoleBinding") == []
    roles = {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in objects.of("Role")}
    assert len(roles) == 3
    wanted = {item for item in granted(everywhere) if item[1] != "nodes"}  # which have no namespace
    assert [key[0] for key, item in roles.items() if granted(item) == wanted] == ["team-a", "system"]
    for binding in objects.of("RoleBinding"):
        assert (binding["metadata"]["namespace"], binding["roleRef"]["name"]) in roles
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "r-tokenservice-operator", "namespace": "system"}
        ]


def test_people_get_rights_through_kubernetes_own_roles(render: Render) -> None:
    roles = {
        label: item
        for item in render().of("ClusterRole")
        for label in item["metadata"]["labels"]
        if label.startswith("rbac.authorization.k8s.io/aggregate-to-")
    }
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {verb for _, _, verb in granted(roles[prefix + "view"])} == {"get", "list", "watch"}
    assert roles[prefix + "edit"] is roles[prefix + "admin"]
    for role in ("view", "edit"):
        assert {"tokenservices", "condaenvironments", "warmpools"} <= {
            item[1] for item in granted(roles[prefix + role])
        }
    # The status is the operator's to write.
    assert not {item for item in granted(roles[prefix + "edit"]) if item[1].endswith("/status")}


def test_the_test_cleans_up_and_runs_with_little(render: Render) -> None:
    hooks = render().hooks()
    assert sorted(item["kind"] for item in hooks) == ["Pod", "Role", "RoleBinding", "ServiceAccount"]
    for item in hooks:
        assert annotated(item)["helm.sh/hook"] == "test"
        assert annotated(item)["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    [role] = [item for item in hooks if item["kind"] == "Role"]
    assert granted(role) == {("tokenservice.dev", "tokenservices", verb) for verb in ("create", "patch")}
    weights = {item["kind"]: int(annotated(item)["helm.sh/hook-weight"]) for item in hooks}
    assert max(weights, key=lambda kind: weights[kind]) == "Pod"


def test_names_do_not_clash(render: Render) -> None:
    for values in ({}, EVERYTHING, {"fullnameOverride": "f" * 63}, {"watchNamespaces": ["system"]}):
        objects = render(values, release="r" * 53)
        keys = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in objects]
        assert len(keys) == len(set(keys))
        for kind, _, name in keys:
            assert kind.startswith(("Cluster", "Custom", "Role")) or len(name) <= 63, name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"repository": ""}}, "image.repository is empty: give the registry and repository"),
        ({"replcas": 2}, "additional properties 'replcas' not allowed"),
        ({"replicas": "two"}, "at '/replicas': got string, want integer"),
        ({"image": {"digest": "sha256:ab"}}, "at '/image/digest': 'sha256:ab' does not match"),
        ({"logLevel": "trace"}, "at '/logLevel': value must be one of 'debug', 'info', 'warning', 'error'"),
        ({"lease": {"retrySeconds": 12}}, "lease.retrySeconds (12) must be less than lease.renewDeadlineSeconds (10)"),
        (
            {"lease": {"durationSeconds": 9}},
            "lease.renewDeadlineSeconds (10) must be less than lease.durationSeconds (9)",
        ),
        ({"serviceAccount": {"create": False}}, "serviceAccount.create is false: give serviceAccount.name"),
        (
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor.enabled needs metrics.service.enabled",
        ),
    ],
)
def test_a_mistake_is_named(run: Callable[..., subprocess.CompletedProcess[str]], values: Object, message: str) -> None:
    done = run("template", "r", str(CHART), values=values)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(("version", "accepted"), [("1.30.14", False), ("1.31.0", True), ("1.31.4-gke.100", True)])
def test_old_clusters_are_refused(
    run: Callable[..., subprocess.CompletedProcess[str]], version: str, accepted: bool
) -> None:
    done = run("template", "r", str(CHART), "--kube-version", version)
    assert (done.returncode == 0) is accepted
    assert accepted or "chart requires kubeVersion: >=1.31.0-0" in done.stderr


def test_a_new_chart_alone_restarts_nothing(render: Render) -> None:
    labels = render().one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not [key for key in labels if "chart" in key or "version" in key]

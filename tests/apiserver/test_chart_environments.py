"""What Helm makes of the values about environments: Jobs, their settings, the registry. No cluster is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenservice.api.jobs import EXIT_TERMINAL, SETTINGS_VARIABLE
from tokenservice.builder import settings

from tests.apiserver.chart_render import CHART, Helm, Object, Rendered, annotated, granted, job_template, pod_specs

OWN: Object = {"registry": {"url": "registry.example.com:8443/team"}}
EVALUATION: Object = {"registry": {"enabled": True}}
EVERYTHING: Object = {
    "imagePullSecrets": [{"name": "pull"}],
    "commonLabels": {"team": "serving"},
    "registry": {
        "url": "registry.example.com/team",
        "pullUrl": "mirror.example.com/team",
        "dockerConfigSecret": "logins",
    },
    "builder": {
        "baseImage": "registry.example.com/base:1",
        "baseImages": ["registry.example.com/bases/*"],
        "resources": {"limits": {"memory": "8Gi"}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "build", "operator": "Exists"}],
        "scratchSize": "99Gi",
        "env": {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8"},
        "cache": {"enabled": True, "size": "7Gi", "storageClass": "fast", "accessMode": "ReadWriteMany"},
        "channels": {
            "alias": "https://conda.example.com",
            "defaults": ["https://conda.example.com/main"],
            "allow": ["conda-forge", "https://conda.example.com/*"],
            "mirrors": {"https://conda.anaconda.org/conda-forge": ["https://a/x", "https://b/x"]},
        },
        "pip": {
            "indexUrl": "https://index.example.com/simple",
            "extraIndexUrls": ["https://more.example.com/simple"],
            "allow": ["https://wheels.example.com/*"],
        },
        "credentials": {"conda.example.com": "conda", "registry.example.com:8443": "push"},
        "caBundle": {"configMap": "authorities", "key": "bundle.pem"},
        "timeoutSeconds": 11,
        "retries": 12,
        "solveTimeoutSeconds": 13,
        "deadlineSeconds": 1400,
        "postLinkScripts": ["nccl"],
        "keepImages": 1,
        "collectImages": True,
    },
    "networkPolicy": {"jobs": {"ports": [443, 3128], "cidrs": ["10.0.0.0/8"]}},
}


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm.built(tmp_path_factory.mktemp("values"))


def read(objects: Rendered, folder: Path) -> settings.Settings:
    """The settings, as a Job reads them."""
    file = folder / "settings.yaml"
    file.write_text(objects.named("ConfigMap", "tokenservice-operator-jobs")["data"]["settings.yaml"])
    return settings.load({SETTINGS_VARIABLE: str(file)})


def manager(objects: Rendered) -> tuple[dict[str, Any], Object]:
    """Environment variables of the operator's container, and its pod template."""
    template = objects.named("Deployment", "tokenservice-operator")["spec"]["template"]
    [container] = template["spec"]["containers"]
    return {item["name"]: item.get("value") for item in container["env"]}, template


@pytest.mark.parametrize("values", [OWN, EVALUATION, EVERYTHING], ids=["own", "evaluation", "everything"])
def test_lint_finds_nothing(helm: Helm, values: Object) -> None:
    done = helm.run("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


def test_without_a_registry_there_are_no_environments(helm: Helm) -> None:
    objects = helm.render({"rbac": {"aggregate": False}})
    assert objects.of("ConfigMap") == []
    assert (
        not {"TOKENSERVICE_JOB_TEMPLATE", "TOKENSERVICE_COLLECT_IMAGES", "TOKENSERVICE_KEEP_IMAGES"}
        & manager(objects)[0].keys()
    )
    rights = granted(objects.one("ClusterRole")) | granted(objects.one("Role"))
    assert not {resource for _, resource, _ in rights} & {"jobs", "pods/log"}


def test_the_settings_are_read_as_given(helm: Helm, tmp_path: Path) -> None:
    builder = EVERYTHING["builder"]
    found = read(helm.render(EVERYTHING), tmp_path)
    assert found == settings.Settings(
        registry=settings.RegistrySettings(url="registry.example.com/team", pull_url="mirror.example.com/team"),
        channels=settings.ChannelSettings(
            alias="https://conda.example.com",
            defaults=("https://conda.example.com/main",),
            allow=tuple(builder["channels"]["allow"]),
            mirrors={"https://conda.anaconda.org/conda-forge": ("https://a/x", "https://b/x")},
        ),
        pip=settings.PipSettings(
            index_url="https://index.example.com/simple",
            extra_index_urls=("https://more.example.com/simple",),
            allow=("https://wheels.example.com/*",),
        ),
        base_image="registry.example.com/base:1",
        base_images=("registry.example.com/bases/*",),
        ca_bundle="/etc/tokenservice/ca/ca.crt",
        timeout_seconds=11,
        retries=12,
        solve_timeout_seconds=13,
        credentials={
            "conda.example.com": "/etc/tokenservice/credentials/conda.example.com",
            "registry.example.com:8443": "/etc/tokenservice/credentials/registry.example.com_8443",
        },
        docker_config="/etc/tokenservice/docker/config.json",
        cache_folder="/var/cache/tokenservice",
        post_link_scripts=("nccl",),
    )


def test_the_settings_by_default(helm: Helm, tmp_path: Path) -> None:
    base = "docker.io/continuumio/miniconda3:latest"
    own = settings.RegistrySettings(url="registry.example.com:8443/team")
    assert read(helm.render(OWN), tmp_path) == settings.Settings(registry=own, base_image=base)
    here = settings.RegistrySettings(
        url="tokenservice-operator-registry.system.svc.cluster.local:5000",
        pull_url="localhost:30500",
        plain_http=True,
    )
    assert read(helm.render(EVALUATION), tmp_path) == settings.Settings(registry=here, base_image=base)


@pytest.mark.parametrize("values", [OWN, EVERYTHING], ids=["own", "everything"])
def test_the_operator_gets_the_jobs_template(helm: Helm, values: Object) -> None:
    objects = helm.render(values)
    variables, template = manager(objects)
    [container] = template["spec"]["containers"]
    [mount] = [item for item in container["volumeMounts"] if item["name"] == "jobs"]
    [volume] = [item for item in template["spec"]["volumes"] if item["name"] == "jobs"]
    [item] = volume["configMap"]["items"]
    assert volume["configMap"]["name"] == "tokenservice-operator-jobs"
    assert item["key"] in objects.named("ConfigMap", "tokenservice-operator-jobs")["data"]
    assert variables["TOKENSERVICE_JOB_TEMPLATE"] == f"{mount['mountPath']}/{item['path']}"
    assert variables["TOKENSERVICE_COLLECT_IMAGES"] == ("true" if values is EVERYTHING else "false")
    assert variables["TOKENSERVICE_KEEP_IMAGES"] == ("1" if values is EVERYTHING else "3")


def test_another_template_restarts_the_operator_and_other_settings_do_not(helm: Helm) -> None:
    def annotations(**builder: Any) -> Object:
        found: Object = manager(helm.render(OWN | {"builder": builder}))[1]["metadata"]["annotations"]
        return found

    assert annotations() == annotations(retries=9) != annotations(scratchSize="1Gi")


def test_a_job_says_when_it_is_tried_again(helm: Helm) -> None:
    spec = job_template(helm.render(EVERYTHING))["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (3, 1400)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    give_up, again = spec["podFailurePolicy"]["rules"]
    assert (give_up["action"], give_up["onExitCodes"]["values"]) == ("FailJob", [EXIT_TERMINAL])
    assert again == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


@pytest.mark.parametrize("values", [OWN, EVALUATION, EVERYTHING], ids=["own", "evaluation", "everything"])
def test_a_job_holds_no_right(helm: Helm, values: Object) -> None:
    objects = helm.render(values)
    spec = job_template(objects)["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    account = objects.named("ServiceAccount", spec["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    bound = {
        subject["name"]
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for item in objects.of(kind)
        for subject in item["subjects"]
    }
    assert account["metadata"]["name"] not in bound
    assert bound == {"tokenservice-operator"}


def test_a_jobs_container_runs_as_told(helm: Helm) -> None:
    objects = helm.render(EVERYTHING)
    [container] = job_template(objects)["spec"]["template"]["spec"]["containers"]
    spec = job_template(objects)["spec"]["template"]["spec"]
    assert (container["name"], container["command"]) == ("job", ["tokenservice"])
    assert "args" not in container
    assert container["image"] == manager(objects)[1]["spec"]["containers"][0]["image"]
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert variables == {
        "HTTPS_PROXY": "http://proxy:3128",
        "NO_PROXY": "10.0.0.0/8",
        "TOKENSERVICE_SETTINGS": "/etc/tokenservice/settings.yaml",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
    }
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert container["resources"]["limits"] == {"memory": "8Gi"}
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["tolerations"] == EVERYTHING["builder"]["tolerations"]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]


@pytest.mark.parametrize("values", [OWN, EVALUATION, EVERYTHING], ids=["own", "evaluation", "everything"])
def test_what_the_settings_name_is_mounted(helm: Helm, tmp_path: Path, values: Object) -> None:
    objects = helm.render(values)
    found = read(objects, tmp_path)
    spec = job_template(objects)["spec"]["template"]["spec"]
    [container] = spec["containers"]
    mounts = {item["mountPath"]: item for item in container["volumeMounts"]}
    assert not [path for path in mounts if ":" in path]
    assert {item["name"] for item in mounts.values()} == {item["name"] for item in spec["volumes"]}
    wanted = {"/tmp", "/etc/tokenservice/settings.yaml", *found.credentials.values(), found.cache_folder}
    wanted |= {str(Path(file).parent) for file in (found.ca_bundle, found.docker_config) if file}
    assert mounts.keys() == wanted - {""}
    writable = {path for path, item in mounts.items() if not item.get("readOnly")}
    assert writable == {"/tmp", found.cache_folder} - {""}


def test_volumes_come_from_what_the_owner_named(helm: Helm) -> None:
    objects = helm.render(EVERYTHING)
    spec = job_template(objects)["spec"]["template"]["spec"]
    volumes = {item["name"]: item for item in spec["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": "99Gi"}
    assert volumes["docker"]["secret"] == {
        "secretName": "logins",
        "items": [{"key": ".dockerconfigjson", "path": "config.json"}],
    }
    assert volumes["ca"]["configMap"] == {"name": "authorities", "items": [{"key": "bundle.pem", "path": "ca.crt"}]}
    claim = objects.named("PersistentVolumeClaim", volumes["cache"]["persistentVolumeClaim"]["claimName"])
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "7Gi"}},
    }
    folders = {item["name"]: item["mountPath"] for item in spec["containers"][0]["volumeMounts"]}
    secrets = {folders[name]: item["secret"]["secretName"] for name, item in volumes.items() if "credentials" in name}
    assert secrets == {
        "/etc/tokenservice/credentials/conda.example.com": "conda",
        "/etc/tokenservice/credentials/registry.example.com_8443": "push",
    }


@pytest.mark.parametrize("values", [EVALUATION, EVERYTHING], ids=["evaluation", "everything"])
@pytest.mark.parametrize("user", [65532, None])
def test_every_pod_meets_the_restricted_standard(helm: Helm, values: Object, user: int | None) -> None:
    specs = list(pod_specs(helm.render(values | {"runAsUser": user})))
    assert len(specs) == (4 if values is EVALUATION else 3)
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"].get("runAsUser") == user
        assert spec["securityContext"].get("fsGroup") in (None, user)
        for volume in spec["volumes"]:
            assert not volume.keys() - {"name", "emptyDir", "configMap", "secret", "persistentVolumeClaim"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_rights_of_the_operator_with_environments(helm: Helm) -> None:
    without, objects = (helm.render(values | {"rbac": {"aggregate": False}}) for values in ({}, OWN))
    assert granted(objects.one("ClusterRole")) == granted(without.one("ClusterRole"))
    assert granted(objects.one("Role")) - granted(without.one("Role")) == {
        *(("batch", "jobs", verb) for verb in ("list", "watch", "create", "delete")),
        *(("", "pods", verb) for verb in ("list", "watch")),
        ("", "pods/log", "get"),
        ("", "events", "list"),
    }
    some = helm.render(OWN | {"watchNamespaces": ["team-a"], "rbac": {"aggregate": False}})
    assert some.of("ClusterRole") == []
    assert {
        role["metadata"]["namespace"] for role in some.of("Role") if ("batch", "jobs", "create") in granted(role)
    } == {"system"}
    assert not [role for role in some.of("Role") if ("", "nodes", "list") in granted(role)]


def test_jobs_reach_what_they_need_and_nobody_reaches_them(helm: Helm) -> None:
    def policy(values: Object) -> tuple[Object, list[Any]]:
        objects = helm.render(values)
        spec = objects.named("NetworkPolicy", "tokenservice-operator-jobs")["spec"]
        labels = job_template(objects)["spec"]["template"]["metadata"]["labels"]
        assert spec["podSelector"]["matchLabels"].items() <= labels.items()
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in spec
        return spec, [[port["port"] for port in rule["ports"]] for rule in spec["egress"]]

    assert policy(OWN)[1] == [[53, 53], [80, 443, 8443]]
    assert policy(EVALUATION)[1] == [[53, 53], ["push"], [80, 443]]
    spec, ports = policy(EVERYTHING)
    assert ports == [[53, 53], [443, 3128]]
    assert spec["egress"][1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_the_evaluation_registry_is_written_by_jobs_and_read_by_nodes(helm: Helm) -> None:
    objects = helm.render(EVALUATION | {"networkPolicy": {"registry": {"cidrs": ["192.0.2.0/24"]}}})
    pod = objects.named("Deployment", "tokenservice-operator-registry")["spec"]["template"]
    inside = objects.named("Service", "tokenservice-operator-registry")["spec"]
    outside = objects.named("Service", "tokenservice-operator-pull")["spec"]
    config = {
        name: yaml.safe_load(text)
        for name, text in objects.named("ConfigMap", "tokenservice-operator-registry")["data"].items()
    }
    containers = {item["name"]: item for item in pod["spec"]["containers"]}
    for service, port in ((inside, 5000), (outside, 5001)):
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        [exposed] = service["ports"]
        container = containers[exposed["targetPort"]]
        assert container["ports"] == [{"name": exposed["targetPort"], "containerPort": port, "protocol": "TCP"}]
        [_, file] = container["args"]
        assert config[Path(file).name]["http"]["addr"] == f":{port}"
    assert (inside["type"], inside["ports"][0]["port"]) == ("ClusterIP", 5000)
    assert (outside["type"], outside["ports"][0]["nodePort"]) == ("NodePort", 30500)
    assert config["push.yml"]["storage"]["delete"] == {"enabled": True}
    assert config["pull.yml"]["storage"]["maintenance"]["readonly"] == {"enabled": True}
    assert [item["mountPath"] for item in containers["pull"]["volumeMounts"] if not item["readOnly"]] == []

    policy = objects.named("NetworkPolicy", "tokenservice-operator-registry")["spec"]
    push, pull = policy["ingress"]
    [peer] = push["from"]
    assert peer["podSelector"]["matchLabels"].items() <= (
        job_template(objects)["spec"]["template"]["metadata"]["labels"].items()
    )
    assert pull["from"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("storage", "claims", "kept"),
    [
        ({}, 0, False),
        ({"persistent": True, "storageClass": "fast"}, 1, False),
        ({"persistent": True, "keep": True}, 1, True),
    ],
)
def test_the_registrys_storage(helm: Helm, storage: Object, claims: int, kept: bool) -> None:
    objects = helm.render({"registry": {"enabled": True, "storage": {"size": "9Gi"} | storage}})
    pod = objects.named("Deployment", "tokenservice-operator-registry")["spec"]["template"]["spec"]
    [volume] = [item for item in pod["volumes"] if item["name"] == "storage"]
    found = objects.of("PersistentVolumeClaim")
    assert len(found) == claims
    if not found:
        assert volume["emptyDir"] == {"sizeLimit": "9Gi"}
        return
    assert volume["persistentVolumeClaim"] == {"claimName": found[0]["metadata"]["name"]}
    assert found[0]["spec"]["resources"] == {"requests": {"storage": "9Gi"}}
    assert found[0]["spec"].get("storageClassName") == storage.get("storageClass")
    assert (annotated(found[0]).get("helm.sh/resource-policy") == "keep") is kept


def test_nothing_else_selects_the_pods_of_jobs_and_registry(helm: Helm) -> None:
    objects = helm.render(EVALUATION)
    operators = objects.named("Deployment", "tokenservice-operator")["spec"]["selector"]["matchLabels"]
    registry = objects.named("Deployment", "tokenservice-operator-registry")["spec"]["selector"]["matchLabels"]
    jobs = job_template(objects)["spec"]["template"]["metadata"]["labels"]
    assert not operators.items() <= jobs.items()
    assert not operators.items() <= registry.items()
    assert not registry.items() <= jobs.items()


def test_a_new_chart_alone_changes_no_job(helm: Helm) -> None:
    for labels in (
        job_template(helm.render(EVERYTHING))["metadata"]["labels"],
        job_template(helm.render(EVERYTHING))["spec"]["template"]["metadata"]["labels"],
    ):
        assert not [key for key in labels if "chart" in key or "version" in key]
        assert labels["team"] == "serving"


def test_names_do_not_clash_or_grow_too_long(helm: Helm) -> None:
    values: Object = {
        "registry": {"enabled": True, "storage": {"persistent": True}},
        "builder": {"cache": {"enabled": True}},
    }
    objects = helm.render(values, release="r" * 53)
    keys = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in objects]
    assert len(keys) == len(set(keys))
    assert [name for kind, _, name in keys if len(name) > 63 and kind in ("Service", "ConfigMap", "Deployment")] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"registry": {"enabled": True, "url": "r.io"}}, "registry.enabled and registry.url are both given"),
        (
            OWN | {"watchNamespaces": ["a"], "builder": {"collectImages": True}},
            "builder.collectImages is true with watchNamespaces",
        ),
        ({"registry": {"pullUrl": "r.io"}}, "registry.pullUrl is given without registry.url"),
        ({"registry": {"url": "https://r.io"}}, "at '/registry/url': 'https://r.io' does not match"),
        ({"builder": {"credentials": {"https://r.io": "s"}}}, "'https://r.io' does not match pattern"),
    ],
)
def test_a_mistake_is_named(helm: Helm, values: Object, message: str) -> None:
    done = helm.run("template", "r", str(CHART), values=values)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "It makes no images of conda environments"),
        (OWN, "go to registry.example.com:8443/team/environments"),
        (EVALUATION, "nodes read as localhost:30500"),
    ],
)
def test_the_notes_say_what_is_on(helm: Helm, values: Object, text: str) -> None:
    done = helm.run("install", "r", str(CHART), "--dry-run=client", "--namespace=system", values=values)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout

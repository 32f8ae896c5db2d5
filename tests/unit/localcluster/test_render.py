from __future__ import annotations

import dataclasses
import json
import tomllib
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml

from tools.localcluster import network, objects, records
from tools.localcluster.addresses import Resolvers, subnet_of, subnets
from tools.localcluster.api import node_ready, object_path
from tools.localcluster.errors import UnsupportedError
from tools.localcluster.paths import ClusterPaths, cache_folder, state_root
from tools.localcluster.records import Record, Wish, fresh, merged
from tools.localcluster.render import Machine, Rendered, registry_config, render

NETWORK = "10.213.4.0/24"


def machine(name: str, number: int) -> Machine:
    state = Path("/state/demo")
    return Machine(
        name=name,
        number=number,
        folder=state / "nodes" / name,
        certificates=state / "pki",
        bin=state / "bin",
        cgroup_root=f"/tokenservice-localcluster/demo/{name}",
        cni_bin=Path("/usr/lib/cni"),
        resolvers=Resolvers((IPv4Address("192.0.2.53"),)),
        kwok_stages=Path("/cache/stage"),
        audit_log=state / "audit.log",
        proxies={"HTTPS_PROXY": "http://proxy.example:3128"},
    )


def rendered(wish: Wish, name: str | None = None) -> Rendered:
    record = fresh("demo", wish, NETWORK)
    name = name or record.first
    return render(machine(name, record.machines[name]), record)


def argv(found: Rendered, name: str) -> list[str]:
    [component] = [c for c in found.components if c["name"] == name]
    return list(component["argv"])


def test_a_control_plane_alone_has_no_node() -> None:
    names = [c["name"] for c in rendered(Wish("control-plane")).components]
    assert names == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "registry"]


def test_the_first_machine_has_everything_and_the_second_a_node() -> None:
    wish = Wish("node", nodes=2, kwok_nodes=5)
    first = {c["name"] for c in rendered(wish).components}
    second = {c["name"] for c in rendered(wish, "node-2").components}
    assert second == {"containerd", "kubelet", "kube-proxy"}
    assert second | {"coredns", "kwok", "etcd", "kube-apiserver"} < first


def test_the_api_server_authorizes_by_node_and_rbac() -> None:
    arguments = argv(rendered(Wish()), "kube-apiserver")
    assert "--authorization-mode=Node,RBAC" in arguments
    assert "--advertise-address=10.213.4.10" in arguments
    assert not any("audit" in argument for argument in arguments)


def test_an_audit_log_has_writes_only() -> None:
    found = rendered(Wish(audit=True))
    assert "--audit-log-path=/state/demo/audit.log" in argv(found, "kube-apiserver")
    policy = yaml.safe_load(found.files["audit-policy.yaml"])
    assert policy["omitStages"] == ["RequestReceived"]
    assert policy["rules"] == [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]


def test_bodies_are_logged_when_asked_for_and_never_those_of_secrets() -> None:
    policy = yaml.safe_load(rendered(Wish(audit=True, audit_bodies=True)).files["audit-policy.yaml"])
    _, bodies, rest = policy["rules"]
    assert bodies["level"] == "Request"
    assert bodies["resources"] == [
        {"group": "", "resources": ["pods"]},
        {"group": "tokenservice.dev", "resources": ["tokenservices"]},
    ]
    assert rest == {"level": "Metadata"}


def test_client_limits_are_raised_only_when_asked_for() -> None:
    for wish, expected in ((Wish(), False), (Wish(raise_client_limits=True), True)):
        found = rendered(wish)
        assert ("--kube-api-qps=1000" in argv(found, "kube-controller-manager")) is expected
        assert ("qps" in yaml.safe_load(found.files["scheduler.yaml"])["clientConnection"]) is expected


def test_the_kubelet_stays_in_its_cgroups() -> None:
    config = yaml.safe_load(rendered(Wish()).files["kubelet.yaml"])
    assert config["cgroupRoot"] == "/tokenservice-localcluster/demo/node-1"
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["clusterDNS"] == ["10.96.0.10"]


def test_containerd_reaches_the_registry_without_tls() -> None:
    found = rendered(Wish(nodes=2), "node-2")
    config = tomllib.loads(found.files["containerd.toml"])
    assert config["version"] == 3
    assert config["plugins"]["io.containerd.cri.v1.runtime"]["restrict_oom_score_adj"] is True
    hosts = tomllib.loads(found.files["hosts/10.213.4.10:5000/hosts.toml"])
    assert hosts["server"] == "http://10.213.4.10:5000"
    [containerd] = [c for c in found.components if c["name"] == "containerd"]
    assert containerd["env"]["HTTPS_PROXY"] == "http://proxy.example:3128"


def test_every_machine_gives_its_pods_other_addresses() -> None:
    wish = Wish(nodes=2)
    ranges = set()
    for name in ("node-1", "node-2"):
        config = json.loads(rendered(wish, name).files["cni/10-localcluster.conflist"])
        ranges.add(config["plugins"][0]["ipam"]["ranges"][0][0]["subnet"])
    assert ranges == {"10.244.1.0/24", "10.244.2.0/24"}


def test_names_outside_the_cluster_are_asked_of_the_hosts_servers() -> None:
    assert "forward . 192.0.2.53\n" in rendered(Wish()).files["Corefile"]


def test_the_registry_deletes_and_remembers_nothing() -> None:
    config = yaml.safe_load(registry_config(Path("/cache/registry"), "word"))
    assert config["storage"]["delete"] == {"enabled": True}
    assert "cache" not in config["storage"]


def test_rules_let_out_what_leaves_and_change_nothing_between_machines() -> None:
    rules = network.host_rules(subnet_of(NETWORK), "owner", Resolvers(()))
    assert [(rule.table, rule.chain) for rule in rules] == [("filter", "FORWARD")] * 2 + [("nat", "POSTROUTING")]
    assert rules[2].arguments[:5] == ("-s", NETWORK, "!", "-o", "tsca4")


def test_a_resolver_on_the_hosts_loopback_is_passed_on_to() -> None:
    rules = network.host_rules(
        subnet_of(NETWORK), "owner", Resolvers((IPv4Address("10.213.4.1"),), IPv4Address("127.0.0.1"))
    )
    assert [rule.arguments[-1] for rule in rules if rule.chain == "PREROUTING"] == ["127.0.0.1:53"] * 2


def test_only_the_owners_rules_are_removed() -> None:
    saved = """\
-P FORWARD ACCEPT
-A FORWARD -i tsca0 -m comment --comment "tokenservice-localcluster /s/demo" -j ACCEPT
-A FORWARD -i tsca1 -m comment --comment "tokenservice-localcluster /s/demo2" -j ACCEPT
-A FORWARD -j DOCKER
"""
    removed = network.removals(saved, "tokenservice-localcluster /s/demo")
    assert removed == [
        [
            "-D",
            "FORWARD",
            "-i",
            "tsca0",
            "-m",
            "comment",
            "--comment",
            "tokenservice-localcluster /s/demo",
            "-j",
            "ACCEPT",
        ]
    ]


def test_pods_of_other_machines_are_reached_through_them() -> None:
    lines = network.machine_commands(subnet_of(NETWORK), 1, [0, 1, 2])
    assert lines[3:] == ["route replace 10.244.1.0/24 via 10.213.4.10", "route replace 10.244.3.0/24 via 10.213.4.12"]


def test_simulated_pods_are_nowhere_and_not_on_the_internet() -> None:
    """Each cluster's route on the host has a metric of its own: it goes with the cluster, and the others stay."""
    assert "route replace local 10.250.0.0/16 dev lo" in network.machine_commands(subnet_of(NETWORK), 0, [0, 1])
    assert {each.metric for each in subnets()[:256]} == set(range(1, 257))


def test_up_again_keeps_what_it_does_not_name() -> None:
    record = fresh("demo", Wish("node", nodes=2, audit=True), NETWORK)
    assert merged(record, Wish()) == record
    assert merged(record, Wish(nodes=3)).machines == {"node-1": 0, "node-2": 1, "node-3": 2}
    assert merged(record, Wish(kwok_nodes=9)).audit is True


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish("control-plane"), "exists with --shape node"),
        (Wish(nodes=1), "remove-node"),
        (Wish(nodes=41), "1 to 40"),
        (Wish(kwok_nodes=2), "take it down first"),
        (Wish(kwok_nodes=-1), "0 to 5000"),
        (Wish(audit_bodies=True), "needs --audit"),
    ],
)
def test_what_cannot_be_changed_is_refused(wish: Wish, words: str) -> None:
    record = fresh("demo", Wish("node", nodes=2, kwok_nodes=3), NETWORK)
    with pytest.raises(UnsupportedError, match=words):
        merged(record, wish)


def test_a_control_plane_alone_cannot_have_real_nodes() -> None:
    with pytest.raises(UnsupportedError, match="--shape node"):
        fresh("demo", Wish("control-plane", nodes=1), NETWORK)


def test_machines_keep_their_usual_numbers() -> None:
    assert records.number_for("node-2", {"node-1": 0}) == 1
    assert records.number_for("node-2", {"node-1": 0, "other": 1}) == 2
    assert records.number_for("blue", {"node-1": 0}) == 1
    assert fresh("demo", Wish(nodes=3), NETWORK).machines == {"node-1": 0, "node-2": 1, "node-3": 2}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = fresh("demo", Wish("node", nodes=2, kwok_nodes=1), NETWORK)
    path = tmp_path / "cluster.json"
    assert records.load(path) is None
    records.save(path, record)
    assert records.load(path) == record
    assert Record(**dataclasses.asdict(record)).server == "https://10.213.4.10:6443"


def test_objects_have_paths_and_kwok_nodes_are_tainted() -> None:
    record = fresh("demo", Wish("node", kwok_nodes=1), NETWORK)
    paths = [object_path(obj) for obj in objects.initial(record)]
    assert "/api/v1/namespaces/kube-system/services/kube-dns" in paths
    assert "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns" in paths
    node = objects.kwok_node(3)
    assert object_path(node) == "/api/v1/nodes/kwok-3"
    assert node["spec"]["taints"][0]["effect"] == "NoSchedule"


def test_a_node_is_ready_when_it_says_so() -> None:
    assert node_ready({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert not node_ready({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
    assert not node_ready(None)


def test_folders_follow_the_environment() -> None:
    assert cache_folder({"TOKENSERVICE_CACHE": "/c"}) == Path("/c")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/tokenservice-operator")
    assert state_root({}) == Path("/var/lib/tokenservice-localcluster")
    assert state_root({"TOKENSERVICE_LOCALCLUSTER_STATE": "/s"}) == Path("/s")


def test_a_clusters_cgroup_is_unique_to_its_state_folder() -> None:
    one, two = ClusterPaths(Path("/a"), "demo"), ClusterPaths(Path("/b"), "demo")
    assert one.cgroup != two.cgroup
    assert len(ClusterPaths(Path("/" + "x" * 300), "demo").owner) <= 200
    with pytest.raises(UnsupportedError, match="--name"):
        ClusterPaths(Path("/a"), "../b")

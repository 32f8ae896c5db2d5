"""Which nodes would take a pod, and which are no place to bring images to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenservice.api.meta import Node, Taint
from tokenservice.nodes.fit import UNPACKED, lost, takes, tolerated, unfit

from tests.unit.services.builders import node

GPU = "nvidia.com/gpu"
GIB = 1024**3


def with_disk(quantity: str) -> Node:
    return node("n", allocatable={"ephemeral-storage": quantity})


def deleted() -> Node:
    metadata = msgspec.structs.replace(node("n").metadata, deletion_timestamp="2026-03-01T11:59:00Z")
    return msgspec.structs.replace(node("n"), metadata=metadata)


def with_conditions(**conditions: str) -> Node:
    raw = [{"type": kind, "status": status} for kind, status in conditions.items()]
    return msgspec.convert({"metadata": {"name": "n"}, "status": {"conditions": raw}}, Node)


UNFIT: dict[str, tuple[Node, str | None]] = {
    "nothing is wrong": (node("n"), None),
    "being deleted": (deleted(), "it is being deleted"),
    "cordoned": (node("n", unschedulable=True), "it is cordoned"),
    "not Ready": (node("n", ready=False), "it is not Ready"),
    "lost: its kubelet is silent": (with_conditions(Ready="Unknown"), "it is not Ready"),
    "without a Ready condition": (with_conditions(DiskPressure="False"), "it is not Ready"),
    "without conditions: it has just joined": (with_conditions(), "it is not Ready"),
    "its disk is full": (node("n", pressure=True), "its disk is full (DiskPressure)"),
    "it says nothing of its disk": (with_conditions(Ready="True"), None),
    "short of memory, which images do not need": (with_conditions(Ready="True", MemoryPressure="True"), None),
    "tainted, which is for `takes` to tell": (node("n", taints=[{"key": "a", "effect": "NoSchedule"}]), None),
    "cordoned and not Ready": (node("n", unschedulable=True, ready=False), "it is cordoned"),
}


@pytest.mark.parametrize(("found", "why"), UNFIT.values(), ids=UNFIT)
def test_why_a_node_is_unfit(found: Node, why: str | None) -> None:
    assert unfit(found) == why
    assert unfit(found, size=GIB) == why


DISKS: dict[str, int | None] = {
    "101430960Ki": 101430960 * 1024,
    "94522638172": 94522638172,
    "100Gi": 100 * GIB,
    "1Ti": 1024 * GIB,
    "95000Mi": 95000 * 1024**2,
    "100G": 100 * 10**9,
    "95000000k": 95 * 10**9,
    "0": 0,
    "1.5Gi": 3 * GIB // 2,
    "1e11": 10**11,
    # No amount: no opinion.
    "": None,
    "Gi": None,
    "100GB": None,
    "100gi": None,
    "1iG": None,
    "-5Gi": None,
    "many": None,
}


@pytest.mark.parametrize(("quantity", "size"), DISKS.items())
def test_the_disk_has_to_hold_images_as_they_come_and_unpacked(quantity: str, size: int | None) -> None:
    found = with_disk(quantity)
    assert unfit(found) is None
    if size is None:
        assert unfit(found, 10**18) is None
        return
    assert unfit(found, size // UNPACKED) is None
    why = unfit(found, size // UNPACKED + 1)
    assert why is not None
    assert why.startswith("its disk is too small: ")


def test_how_much_is_missing_is_told_in_gigabytes() -> None:
    assert unfit(with_disk("94522638172"), 40 * 10**9) == ("its disk is too small: 95 GB for images of about 120 GB")


def test_nothing_is_asked_of_the_disk_while_the_size_of_the_images_is_not_known() -> None:
    assert unfit(with_disk("1Ki")) is None


@given(st.integers(0, 10**6), st.sampled_from(["", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"]))
def test_every_suffix_of_a_quantity_is_known(number: int, suffix: str) -> None:
    power = "kMGTP".find(suffix[:1].replace("K", "k")) + 1 if suffix else 0
    size = number * (1024 if suffix.endswith("i") else 1000) ** power
    assert unfit(with_disk(f"{number}{suffix}"), size // UNPACKED) is None
    assert unfit(with_disk(f"{number}{suffix}"), size // UNPACKED + 1) is not None


@given(st.text(max_size=12))
def test_whatever_a_node_says_of_its_disk_can_be_read(quantity: str) -> None:
    assert unfit(with_disk(quantity), 0) is None


# -- nodeSelector and affinity


LABELS = {"zone": "a", "gpus": "4", "empty": ""}


def required(*terms: dict[str, Any]) -> dict[str, Any]:
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    }


def where(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def labelled(*expressions: dict[str, Any]) -> dict[str, Any]:
    return required({"matchExpressions": list(expressions)})


def named(operator: str, *names: str) -> dict[str, Any]:
    return {"matchFields": [where("metadata.name", operator, *names)]}


PLACED: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing is asked for": ({}, True),
    "nulls": ({"nodeSelector": None, "affinity": None, "tolerations": None, "containers": None}, True),
    "selector: the label": ({"nodeSelector": {"zone": "a"}}, True),
    "selector: another value": ({"nodeSelector": {"zone": "b"}}, False),
    "selector: no such label": ({"nodeSelector": {"rack": "1"}}, False),
    "selector: all of them": ({"nodeSelector": {"zone": "a", "gpus": "4"}}, True),
    "selector: one of two": ({"nodeSelector": {"zone": "a", "gpus": "8"}}, False),
    "selector: an empty value": ({"nodeSelector": {"empty": ""}}, True),
    "selector: an empty value is not no label": ({"nodeSelector": {"rack": ""}}, False),
    "affinity to pods alone": ({"affinity": {"podAffinity": {}}}, True),
    "affinity: null": ({"affinity": {"nodeAffinity": None}}, True),
    "affinity: preferred only": (
        {
            "affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "preference": {"matchExpressions": [where("zone", "In", "b")]}}
                    ]
                }
            }
        },
        True,
    ),
    "In": (labelled(where("zone", "In", "b", "a")), True),
    "In: another value": (labelled(where("zone", "In", "b", "c")), False),
    "In: no such label": (labelled(where("rack", "In", "1")), False),
    "NotIn": (labelled(where("zone", "NotIn", "b")), True),
    "NotIn: its value": (labelled(where("zone", "NotIn", "b", "a")), False),
    "NotIn: no such label": (labelled(where("rack", "NotIn", "1")), True),
    "Exists": (labelled(where("empty", "Exists")), True),
    "Exists: no such label": (labelled(where("rack", "Exists")), False),
    "DoesNotExist": (labelled(where("rack", "DoesNotExist")), True),
    "DoesNotExist: there it is": (labelled(where("empty", "DoesNotExist")), False),
    "Gt": (labelled(where("gpus", "Gt", "3")), True),
    "Gt: equal": (labelled(where("gpus", "Gt", "4")), False),
    "Gt: as a number, not as text": (labelled(where("gpus", "Gt", "10")), False),
    "Gt: below zero": (labelled(where("gpus", "Gt", "-1")), True),
    "Gt: no such label": (labelled(where("rack", "Gt", "-1")), False),
    "Gt: the label is no number": (labelled(where("zone", "Gt", "-1")), False),
    "Lt": (labelled(where("gpus", "Lt", "10")), True),
    "Lt: equal": (labelled(where("gpus", "Lt", "4")), False),
    "Lt: no such label": (labelled(where("rack", "Lt", "1")), False),
    "Lt: the label is no number": (labelled(where("zone", "Lt", "5")), False),
    "an operator of a later version": (labelled(where("zone", "Like", "a")), False),
    "all expressions of a term": (labelled(where("zone", "In", "a"), where("gpus", "Exists")), True),
    "one expression of two": (labelled(where("zone", "In", "a"), where("rack", "Exists")), False),
    "one term of two": (
        required({"matchExpressions": [where("zone", "In", "b")]}, {"matchExpressions": [where("gpus", "Exists")]}),
        True,
    ),
    "no term of two": (
        required({"matchExpressions": [where("zone", "In", "b")]}, {"matchExpressions": [where("rack", "Exists")]}),
        False,
    ),
    "an empty term matches nothing": (required({}), False),
    "a term of empty lists matches nothing": (required({"matchExpressions": [], "matchFields": []}), False),
    "an empty term beside one that matches": (required({}, {"matchExpressions": [where("zone", "Exists")]}), True),
    "a field": (required(named("In", "n")), True),
    "a field: another node": (required(named("In", "m")), False),
    "a field: any but this node": (required(named("NotIn", "n")), False),
    "a field and a label": (required({**named("In", "n"), "matchExpressions": [where("zone", "In", "a")]}), True),
    "a field, but not the label": (
        required({**named("In", "n"), "matchExpressions": [where("zone", "In", "b")]}),
        False,
    ),
    "the label, but not the field": (
        required({**named("In", "m"), "matchExpressions": [where("zone", "In", "a")]}),
        False,
    ),
    "fields are not labels": (required({"matchFields": [where("zone", "In", "a")]}), False),
    "selector and affinity": ({"nodeSelector": {"zone": "b"}, **labelled(where("zone", "In", "a"))}, False),
}


@pytest.mark.parametrize(("asked", "fits"), PLACED.values(), ids=PLACED)
def test_where_a_pod_asks_to_be(asked: dict[str, Any], fits: bool) -> None:
    assert takes(node("n", labels=LABELS), asked) is fits


@given(st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz")), st.sampled_from("abcd"), st.data())
def test_of_in_and_not_in_and_of_exists_and_does_not_exist_one_holds(
    labels: dict[str, str], key: str, data: st.DataObject
) -> None:
    found = node("n", labels=labels)
    values = data.draw(st.lists(st.sampled_from("xyz"), min_size=1))
    assert takes(found, labelled(where(key, "In", *values))) is not takes(found, labelled(where(key, "NotIn", *values)))
    assert takes(found, labelled(where(key, "Exists"))) is not takes(found, labelled(where(key, "DoesNotExist")))


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_numbers_of_labels_are_compared_as_numbers(label: int, limit: int) -> None:
    found = node("n", labels={"size": str(label)})
    assert takes(found, labelled(where("size", "Gt", str(limit)))) is (label > limit)
    assert takes(found, labelled(where("size", "Lt", str(limit)))) is (label < limit)


# -- taints


def taint(effect: str = "NoSchedule", key: str = GPU, value: str = "") -> dict[str, str]:
    return {"key": key, "effect": effect, "value": value}


TAINTED: dict[str, tuple[list[dict[str, str]], list[dict[str, Any]], bool]] = {
    "no taint": ([], [], True),
    "NoSchedule": ([taint()], [], False),
    "NoExecute": ([taint("NoExecute")], [], False),
    "PreferNoSchedule is a wish": ([taint("PreferNoSchedule")], [], True),
    "Exists": ([taint(value="present")], [{"key": GPU, "operator": "Exists"}], True),
    "Exists, of this effect": ([taint()], [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}], True),
    "Exists, of another effect": ([taint()], [{"key": GPU, "operator": "Exists", "effect": "NoExecute"}], False),
    "Exists, the effect is empty: any": (
        [taint("NoExecute")],
        [{"key": GPU, "operator": "Exists", "effect": ""}],
        True,
    ),
    "Exists, of another key": ([taint()], [{"key": "team", "operator": "Exists"}], False),
    "Equal": ([taint(value="a")], [{"key": GPU, "operator": "Equal", "value": "a"}], True),
    "Equal is what an operator is by default": ([taint(value="a")], [{"key": GPU, "value": "a"}], True),
    "Equal is what an empty operator is": ([taint(value="a")], [{"key": GPU, "operator": "", "value": "a"}], True),
    "Equal, to another value": ([taint(value="a")], [{"key": GPU, "value": "b"}], False),
    "Equal, to no value": ([taint()], [{"key": GPU}], True),
    "Equal, to null": ([taint()], [{"key": GPU, "value": None}], True),
    "Equal, where a value is asked for": ([taint(value="a")], [{"key": GPU}], False),
    "Equal, of another key": ([taint(value="a")], [{"key": "team", "value": "a"}], False),
    "no key: every taint": ([taint(), taint("NoExecute", "team", "a")], [{"operator": "Exists"}], True),
    "an empty key: every taint": ([taint()], [{"key": "", "operator": "Exists"}], True),
    "no key, of one effect": (
        [taint(), taint("NoExecute", "team")],
        [{"operator": "Exists", "effect": "NoSchedule"}],
        False,
    ),
    "no key and not Exists tolerates nothing": ([taint()], [{"operator": "Equal", "value": ""}], False),
    "one of two taints": ([taint(), taint(key="team")], [{"key": GPU, "operator": "Exists"}], False),
    "both taints": (
        [taint(), taint(key="team", value="a")],
        [{"key": GPU, "operator": "Exists"}, {"key": "team", "value": "a"}],
        True,
    ),
    "for a while is for now": (
        [taint("NoExecute")],
        [{"key": GPU, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        True,
    ),
}


@pytest.mark.parametrize(("taints", "tolerations", "fits"), TAINTED.values(), ids=TAINTED)
def test_taints(taints: list[dict[str, str]], tolerations: list[dict[str, Any]], fits: bool) -> None:
    assert takes(node("n", taints=taints), {"tolerations": tolerations}) is fits


TAINTS = st.builds(
    lambda key, value, effect: Taint(key=key, value=value, effect=effect),
    st.sampled_from("ab"),
    st.sampled_from(["", "x"]),
    st.sampled_from(["NoSchedule", "NoExecute"]),
)


@given(TAINTS, st.sampled_from([{}, {"operator": "Equal"}]))
def test_a_taint_is_tolerated_by_its_own_words_and_by_exists(found: Taint, equal: dict[str, str]) -> None:
    own = {"key": found.key, "value": found.value, "effect": found.effect, **equal}
    assert tolerated(found, [own])
    assert tolerated(found, [{"key": found.key, "operator": "Exists"}])
    assert tolerated(found, [{"operator": "Exists"}])
    assert not tolerated(found, [])
    assert not tolerated(found, [{**own, "value": "other"}])
    assert not tolerated(found, [{**own, "key": "other"}])


# -- devices


def gpus(*counts: Any) -> dict[str, Any]:
    return {"containers": [{"resources": {"limits": {GPU: count, "memory": "900Gi"}}} for count in counts]}


DEVICES: dict[str, tuple[dict[str, str], dict[str, Any], bool]] = {
    "none asked for": ({}, {"containers": [{}, {"resources": None}, {"resources": {"limits": None}}]}, True),
    "as many as there are": ({GPU: "4"}, gpus("4"), True),
    "one more": ({GPU: "4"}, gpus("5"), False),
    "over several containers": ({GPU: "4"}, gpus("3", "1"), True),
    "over several containers, one more": ({GPU: "4"}, gpus("3", "2"), False),
    "as a number": ({GPU: "1"}, gpus(1), True),
    "as a number, one more": ({GPU: "1"}, gpus(2), False),
    "a node without": ({"cpu": "64"}, gpus("1"), False),
    "a node whose driver is not there yet": ({GPU: "0"}, gpus("1"), False),
    "of another kind": ({"amd.com/gpu": "8"}, gpus("1"), False),
    "two kinds": (
        {GPU: "1", "rdma/hca": "1"},
        {"containers": [{"resources": {"limits": {GPU: "1", "rdma/hca": "2"}}}]},
        False,
    ),
    "cpu and memory are for the scheduler": (
        {"cpu": "1", "memory": "1Gi"},
        {"containers": [{"resources": {"limits": {"cpu": "64", "memory": "900Gi"}}}]},
        True,
    ),
}


@pytest.mark.parametrize(("allocatable", "asked", "fits"), DEVICES.values(), ids=DEVICES)
def test_devices(allocatable: dict[str, str], asked: dict[str, Any], fits: bool) -> None:
    assert takes(node("n", allocatable=allocatable), asked) is fits


@given(st.integers(0, 16), st.lists(st.integers(0, 8), max_size=4))
def test_a_node_takes_as_many_devices_as_it_has(there: int, counts: list[int]) -> None:
    assert takes(node("n", allocatable={GPU: str(there)}), gpus(*map(str, counts))) is (sum(counts) <= there)


def test_which_node_is_lost() -> None:
    assert not lost(node("n"))
    assert not lost(node("n", unschedulable=True, pressure=True)), "its pods serve"
    assert lost(node("n", ready=False))
    unknown = {"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    assert lost(msgspec.convert(unknown, Node))
    assert lost(msgspec.convert({"metadata": {"name": "n"}}, Node))

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.localcluster.addresses import (
    PODS,
    SERVICES,
    Resolvers,
    choose_resolvers,
    free_subnets,
    name_servers,
    pod_range,
    subnet_of,
    subnets,
    used_networks,
)
from tools.localcluster.errors import UnsupportedError

GATEWAY = IPv4Address("10.213.0.1")


def networks(*texts: str) -> list[IPv4Network]:
    return [IPv4Network(text) for text in texts]


def test_the_first_cluster_gets_the_first_network() -> None:
    assert str(free_subnets(networks("192.0.2.0/24", "127.0.0.0/8"))[0].network) == "10.213.0.0/24"


def test_a_default_route_takes_nothing() -> None:
    assert str(free_subnets(networks("0.0.0.0/0"))[0].network) == "10.213.0.0/24"


def test_what_is_in_use_is_passed_over() -> None:
    assert str(free_subnets(networks("10.213.0.0/24", "10.213.1.128/25"))[0].network) == "10.213.2.0/24"


def test_a_wide_route_makes_another_pool_preferred() -> None:
    first = free_subnets(networks("10.0.0.0/8"))
    assert str(first[0].network) == "172.30.0.0/24"
    assert str(first[-1].network) == "10.213.255.0/24"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)), max_size=20))
def test_no_chosen_network_overlaps_a_narrow_one(raw: list[tuple[int, int]]) -> None:
    used = [IPv4Network((address, prefix), strict=False) for address, prefix in raw]
    narrow = [network for network in used if network.prefixlen > 16]
    for subnet in free_subnets(used):
        assert not any(subnet.network.overlaps(other) for other in narrow)


def test_names_and_ranges_are_unique_and_short_enough_for_interfaces() -> None:
    every = subnets()
    assert len({s.bridge for s in every}) == len({s.network for s in every}) == len(every)
    assert all(len(s.veth(39)) <= 15 for s in every)
    assert not any(s.network.overlaps(PODS) or s.network.overlaps(SERVICES) for s in every)


def test_a_machine_has_its_address_and_its_pods() -> None:
    subnet = subnet_of("10.213.7.0/24")
    addresses = [str(address) for address in (subnet.gateway, subnet.machine(0), subnet.machine(1))]
    assert addresses == ["10.213.7.1", "10.213.7.10", "10.213.7.11"]
    assert [str(pod_range(number)) for number in (0, 1)] == ["10.244.1.0/24", "10.244.2.0/24"]
    with pytest.raises(UnsupportedError, match="at most 40 machines"):
        subnet.machine(40)


def test_a_network_that_no_cluster_uses_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"10\.1\.0\.0/24"):
        subnet_of("10.1.0.0/24")


def test_routes_and_addresses_in_use() -> None:
    routes: list[dict[str, object]] = [
        {"dst": "default"},
        {"dst": "10.1.0.0/16"},
        {"dst": "10.2.0.9"},
        {"type": "local"},
    ]
    links: list[dict[str, object]] = [{"addr_info": [{"local": "192.0.2.2", "prefixlen": 24}]}, {}]
    assert used_networks(routes, links) == networks("10.1.0.0/16", "10.2.0.9/32", "192.0.2.0/24")


def test_name_servers_of_a_resolv_conf() -> None:
    text = "# nameserver 1.1.1.1\nsearch example.com\nnameserver 10.0.0.53\nnameserver fe80::1\nnameserver 127.0.0.53\n"
    assert name_servers(text) == [IPv4Address("10.0.0.53"), IPv4Address("127.0.0.53")]


@pytest.mark.parametrize(
    ("resolv_conf", "upstream", "expected"),
    [
        ("nameserver 192.0.2.53", "", Resolvers((IPv4Address("192.0.2.53"),))),
        ("nameserver 127.0.0.53", "nameserver 192.0.2.9", Resolvers((IPv4Address("192.0.2.9"),))),
        ("nameserver 127.0.0.1", "", Resolvers((GATEWAY,), IPv4Address("127.0.0.1"))),
        ("", "", Resolvers(())),
    ],
)
def test_resolvers_that_a_namespace_reaches(resolv_conf: str, upstream: str, expected: Resolvers) -> None:
    assert choose_resolvers(resolv_conf, upstream, GATEWAY) == expected

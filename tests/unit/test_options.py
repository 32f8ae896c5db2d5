"""The manager's options: where a value comes from, and what a wrong one is answered with."""

from __future__ import annotations

import argparse
import socket
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from tokenservice.options import InvalidOptionError, Options, add_arguments, parse


def test_defaults() -> None:
    made = parse([], {})
    assert made == Options()
    assert made.namespaces == ()
    assert made.pod_name == socket.gethostname()
    assert (made.job_template, made.job_namespace, made.collect_images) == ("", "tokenservice-system", False)
    assert parse(["--lease-namespace=ops"], {}).job_namespace == "ops"
    assert (made.lease_namespace, made.lease_name) == ("tokenservice-system", "tokenservice-operator")
    with pytest.raises(FrozenInstanceError):
        made.workers = 2  # type: ignore[misc]


GIVEN: list[tuple[str, str, Any]] = [
    ("namespaces", "a, b-2,,a", ("a", "b-2")),
    ("namespaces", "", ()),
    ("lease_namespace", "ops", "ops"),
    ("lease_name", "my.lease-1", "my.lease-1"),
    ("lease_duration_seconds", "60", 60),
    ("lease_renew_deadline_seconds", "14", 14),
    ("lease_retry_seconds", "1", 1),
    ("pod_name", "Some Pod", "Some Pod"),
    ("workers", " 8 ", 8),
    ("http_port", "65535", 65535),
    ("cluster_domain", "corp.example", "corp.example"),
    ("job_template", "/etc/jobs/template.yaml", "/etc/jobs/template.yaml"),
    ("job_namespace", "builds", "builds"),
    ("token_key_file", "/etc/key", "/etc/key"),
    ("collect_images", "True", True),
    ("collect_images", "false", False),
    ("keep_images", "0", 0),
    ("log_level", "DEBUG", "debug"),
    ("kubeconfig", "/etc/kube", "/etc/kube"),
]


@pytest.mark.parametrize(("name", "text", "value"), GIVEN)
def test_given_by_flag_or_variable(name: str, text: str, value: Any) -> None:
    flag = "--" + name.replace("_", "-")
    assert getattr(parse([f"{flag}={text}"], {}), name) == value
    assert getattr(parse([], {f"TOKENSERVICE_{name.upper()}": text}), name) == value


def test_the_table_above_knows_every_option() -> None:
    assert {name for name, _, _ in GIVEN} == {item.name for item in fields(Options)}


def test_a_flag_wins_over_a_variable() -> None:
    assert parse(["--workers", "3"], {"TOKENSERVICE_WORKERS": "4"}).workers == 3
    assert parse(["--namespaces", ""], {"TOKENSERVICE_NAMESPACES": "a"}).namespaces == ()


def test_an_empty_variable_is_none() -> None:
    empty = {f"TOKENSERVICE_{item.name.upper()}": "" for item in fields(Options)}
    assert parse([], empty) == Options()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers=many"], "--workers: must be a whole number, not 'many'"),
        (["--workers="], "--workers: must be a whole number, not ''"),
        (["--workers=1.5"], "--workers: must be a whole number, not '1.5'"),
        (["--workers=١"], "--workers: must be a whole number, not '١'"),
        (["--workers=0"], "--workers: must be from 1 to 1000, not 0"),
        (["--workers=1001"], "--workers: must be from 1 to 1000, not 1001"),
        (["--http-port=70000"], "--http-port: must be from 1 to 65535, not 70000"),
        (["--keep-images=10"], "--keep-images: must be from 0 to 9, not 10"),
        (["--lease-duration-seconds=2"], "--lease-duration-seconds: must be from 3 to 3600, not 2"),
        (["--lease-renew-deadline-seconds=1"], "--lease-renew-deadline-seconds: must be from 2 to 3600, not 1"),
        (["--lease-retry-seconds=0"], "--lease-retry-seconds: must be from 1 to 600, not 0"),
        (
            ["--lease-retry-seconds=10"],
            "--lease-retry-seconds: must be less than --lease-renew-deadline-seconds",
        ),
        (
            ["--lease-renew-deadline-seconds=15"],
            "--lease-renew-deadline-seconds: must be less than --lease-duration-seconds",
        ),
        (["--log-level=loud"], "--log-level: must be one of debug, info, warning, error, not 'loud'"),
        (["--namespaces=a,B"], "--namespaces: 'B' is not the name of a namespace"),
        (["--namespaces=" + "a" * 64], f"--namespaces: '{'a' * 64}' is not the name of a namespace"),
        (["--lease-namespace="], "--lease-namespace: '' is not the name of a namespace"),
        (["--job-namespace=A"], "--job-namespace: 'A' is not the name of a namespace"),
        (["--collect-images=yes"], "--collect-images: must be true or false, not 'yes'"),
        (
            ["--collect-images=true", "--namespaces=a"],
            "--collect-images: needs all namespaces: those of others are in use, too",
        ),
        (["--lease-name=A"], "--lease-name: 'A' is not a DNS name (a-z, 0-9, '-' and '.')"),
        (["--cluster-domain=a..b"], "--cluster-domain: 'a..b' is not a DNS name (a-z, 0-9, '-' and '.')"),
        (["--pod-name="], "--pod-name: must not be empty, it tells the replicas apart"),
    ],
)
def test_refused(flags: list[str], message: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        parse(flags, {})
    assert str(caught.value) == message


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(
        InvalidOptionError, match=r"^TOKENSERVICE_HTTP_PORT: must be a whole number, not 'tcp://1.2.3.4'"
    ):
        parse([], {"TOKENSERVICE_HTTP_PORT": "tcp://1.2.3.4"})


def test_unknown_and_shortened_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--work", "--nothing"):
        with pytest.raises(SystemExit):
            parse([flag, "1"], {})
        assert f"unrecognized arguments: {flag} 1" in capsys.readouterr().err


def test_help_has_a_line_for_each_option() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for item in fields(Options):
        assert f"--{item.name.replace('_', '-')} VALUE {item.metadata['doc']}" in text

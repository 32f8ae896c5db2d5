from __future__ import annotations

import hashlib
import io
import json
import ssl
import tarfile
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from tools.localcluster import host, pause, progress
from tools.localcluster.certificates import Authority
from tools.localcluster.cli import main
from tools.localcluster.errors import UnsupportedError
from tools.localcluster.locks import folder_lock

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'


@pytest.mark.parametrize(
    ("machine", "uid", "os_release", "words"),
    [
        ("riscv64", 0, DEBIAN, "riscv64"),
        ("x86_64", 1000, DEBIAN, "needs root"),
        ("x86_64", 0, 'PRETTY_NAME="Fedora Linux 44"\nID=fedora\n', "Fedora Linux 44"),
    ],
)
def test_an_unsupported_host_is_told_why(machine: str, uid: int, os_release: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as raised:
        host.check(machine, uid, os_release)
    assert raised.value.status == 2
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "os_release", [DEBIAN, "ID=ubuntu\nID_LIKE=debian\n", 'ID=linuxmint\nID_LIKE="ubuntu debian"\n']
)
def test_debian_and_its_kin_are_supported(os_release: str) -> None:
    host.check("aarch64", 0, os_release)


def test_an_unknown_option_is_an_error_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["up"])
    assert raised.value.code == 2
    assert "--name" in capsys.readouterr().err


def test_a_bad_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restart", "--name", "Not A Name", "--component", "etcd"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (125, "2 min 5 s")])
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_a_step_tells_how_far_it_is() -> None:
    assert progress.Step("building", lambda: "3 of 4").line() == "building: 3 of 4, 0 s so far"
    assert progress.Step("waiting").line() == "waiting: 0 s so far"


def test_a_lock_leaves_no_file_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with folder_lock(tmp_path / "locked", "nobody"):
            assert list((tmp_path / "locked").iterdir()) == []


def test_the_pause_image_is_whole_and_always_the_same() -> None:
    data = pause.archive(b"program", "docker.io/localcluster/pause:1", "amd64")
    assert data == pause.archive(b"program", "docker.io/localcluster/pause:1", "amd64")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}
    for name, blob in files.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(blob).hexdigest() == name.rsplit("/", 1)[1]
    [listed] = json.loads(files["index.json"])["manifests"]
    assert listed["annotations"] == {"io.containerd.image.name": "docker.io/localcluster/pause:1"}
    manifest = json.loads(files["blobs/sha256/" + listed["digest"].removeprefix("sha256:")])
    [layer] = manifest["layers"]
    with tarfile.open(fileobj=io.BytesIO(files["blobs/sha256/" + layer["digest"].removeprefix("sha256:")])) as tar:
        assert [(member.name, member.mode) for member in tar] == [("pause", 0o755)]


def test_certificates_say_who_and_where_and_are_kept(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    path = authority.issue(
        "kubelet-node-1", "system:node:node-1", ["system:nodes"], ["node-1", IPv4Address("10.213.0.10")]
    )
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=system:node:node-1,O=system:nodes"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [IPv4Address("10.213.0.10")]
    certificate.verify_directly_issued_by(authority.certificate)
    assert path.with_suffix(".key").stat().st_mode & 0o077 == 0
    before = path.read_bytes()
    assert Authority(tmp_path).issue("kubelet-node-1", "system:node:node-1").read_bytes() == before
    ssl.create_default_context(cafile=str(authority.certificate_file)).load_cert_chain(path, path.with_suffix(".key"))


def test_a_kubeconfig_needs_no_other_file(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    target = authority.kubeconfig(
        tmp_path / "k", "demo", "https://10.213.0.10:6443", authority.issue("admin", "a", ["g"])
    )
    config = yaml.safe_load(target.read_text())
    assert config["current-context"] == "demo"
    assert config["clusters"][0]["cluster"]["server"] == "https://10.213.0.10:6443"
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert target.stat().st_mode & 0o077 == 0

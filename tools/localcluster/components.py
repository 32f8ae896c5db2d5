"""What a local cluster is made of: the programs, their versions, and where the finished ones lie. Versions stand in
gomod/*/go.mod too; a unit test holds the two equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .paths import HERE

GO_MODULES = HERE / "gomod"
KUBERNETES = "1.37.2"


@dataclass(frozen=True)
class Program:
    """A program to build: its Go package, and the arguments that make it say its version (empty: it cannot)."""

    package: str
    version_args: tuple[str, ...] = ("--version",)

    @property
    def name(self) -> str:
        return self.package.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Component:
    """A Go module with programs of ours. `variables` are set at link time: what each says as its version.

    `assets` maps folders inside the module to folders beside the programs, for files that a program needs.
    """

    name: str
    version: str
    module: str
    programs: tuple[Program, ...]
    variables: Mapping[str, str]
    assets: Mapping[str, str]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def go_mod(self) -> Path:
        return GO_MODULES / self.name

    def linker_flags(self) -> str:
        return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in self.variables.items())])


def _kubernetes() -> Component:
    package = "k8s.io/kubernetes/cmd/"
    versions = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    major, minor, _ = KUBERNETES.split(".")
    variables: dict[str, str] = {}
    for place in versions:
        variables |= {f"{place}.gitVersion": f"v{KUBERNETES}", f"{place}.gitMajor": major, f"{place}.gitMinor": minor}
    server = [Program(package + name) for name in ("kube-apiserver",)]
    server.append(Program(package + "kubectl", ("version", "--client")))
    rest = [Program(package + n) for n in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")]
    return Component("kubernetes", KUBERNETES, "k8s.io/kubernetes", (*server, *rest), variables, {})


_CONTAINERD = "github.com/containerd/containerd/v2"
_CRANE = "github.com/google/go-containerregistry/cmd/crane"
_REGISTRY = "github.com/distribution/distribution/v3"
COMPONENTS = (
    Component("etcd", "3.7.3", "go.etcd.io/etcd/server/v3", (Program("go.etcd.io/etcd/server/v3"),), {}, {}),
    _kubernetes(),
    Component(
        "pause",
        "1",
        "tokenservice.dev/localcluster/pause",
        (Program("tokenservice.dev/localcluster/pause", ()),),
        {},
        {},
    ),
    Component(
        "registry",
        "3.1.2",
        _REGISTRY,
        (Program(f"{_REGISTRY}/cmd/registry"),),
        {f"{_REGISTRY}/version.version": "v3.1.2"},
        {},
    ),
    Component(
        "helm",
        "4.3.1",
        "helm.sh/helm/v4",
        (Program("helm.sh/helm/v4/cmd/helm", ("version", "--short")),),
        {"helm.sh/helm/v4/internal/version.version": "v4.3.1"},
        {},
    ),
    Component(
        "containerd",
        "2.4.2",
        _CONTAINERD,
        (
            Program(f"{_CONTAINERD}/cmd/containerd"),
            Program(f"{_CONTAINERD}/cmd/containerd-shim-runc-v2", ("-v",)),
            Program(f"{_CONTAINERD}/cmd/ctr"),
        ),
        {f"{_CONTAINERD}/version.Version": "v2.4.2", f"{_CONTAINERD}/version.Package": _CONTAINERD},
        {},
    ),
    Component(
        "coredns",
        "1.14.0",
        "github.com/coredns/coredns",
        (Program("github.com/coredns/coredns", ("-version",)),),
        {},
        {},
    ),
    Component(
        "kwok",
        "0.8.0",
        "sigs.k8s.io/kwok",
        (Program("sigs.k8s.io/kwok/cmd/kwok"),),
        {},
        {"kustomize/stage": "stage"},
    ),
    Component(
        "crane",
        "0.22.1",
        "github.com/google/go-containerregistry",
        (Program(_CRANE, ("version",)),),
        {f"{_CRANE}/cmd.Version": "0.22.1"},
        {},
    ),
)
"""In the order in which they are built: what lets others begin comes first."""

CONTROL_PLANE = (
    "etcd",
    "kube-apiserver",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "registry",
    "helm",
    "crane",
)
NODE = ("kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr", "coredns", "pause")
KWOK = ("kwok",)
TEST_ASSETS = ("etcd", "kube-apiserver", "kubectl")
"""Taken from $KUBEBUILDER_ASSETS where it is set, as controller-runtime's tests do."""


def program_name(component: Component, program: Program) -> str:
    """The file name of a program: its package's last part, except for packages that end in a version."""
    return component.name if program.package == component.module else program.name


def needed(names: Iterable[str]) -> list[tuple[Component, Program]]:
    """The programs with these file names or of components with these names, in the order of building.

    Raises KeyError with the first name that is neither.
    """
    wanted = list(names)
    known = {c.name for c in COMPONENTS} | {program_name(c, p) for c in COMPONENTS for p in c.programs}
    for name in wanted:
        if name not in known:
            raise KeyError(name)
    return [(c, p) for c in COMPONENTS for p in c.programs if c.name in wanted or program_name(c, p) in wanted]


def location(cache: Path, component: Component, program: Program) -> Path:
    """Where the finished program lies."""
    return cache / "bin" / component.folder / program_name(component, program)


def for_shape(shape: str, kwok_nodes: int) -> tuple[str, ...]:
    """The names of the programs that a cluster of this shape runs or hands out."""
    return CONTROL_PLANE + (NODE if shape == "node" else ()) + (KWOK if kwok_nodes else ())

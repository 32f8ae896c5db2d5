"""`make demo`: from nothing to tokens on the terminal, by the steps that a user would take.

Cluster, images, helm install, kubectl apply of a TokenService with its conda environment, the environment's way to an
image, Ready, tokens, one more replica cold and warm, and what there is to look at. Each step can be repeated: the
second time it finds its work done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools import demo_starts

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
NAMESPACE = "tokenservice-demo"
CHANNEL_NAMESPACE = "conda-channel"
OPERATOR_NAMESPACE = "tokenservice-system"
READY_SECONDS = 900.0
TOLD = frozenset({"Scheduled", "FailedScheduling", "Pulling", "Pulled", "Started", "Failed", "FailedMount"})
"""Reasons of pod events that tell how far a start is."""
DIGEST = re.compile("@sha256:[0-9a-f]{64}")


class DemoError(Exception):
    """A step failed; the text says which, and what to do."""


class Steps:
    """Prints each step with the time it took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        print(f"\n=== {title}", flush=True)
        begun = time.monotonic()
        yield
        print(f"    done in {time.monotonic() - begun:.1f} s", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun


def run(*command: str, env: dict[str, str] | None = None, text: str | None = None) -> str:
    """Runs a command whose progress goes to the terminal; returns what it wrote to standard output.

    Raises DemoError if it fails.
    """
    done = subprocess.run(command, env=env, input=text, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise DemoError(
            f"`{' '.join(command[:6])}` failed (exit code {done.returncode}); see above. {done.stdout[-2000:]}"
        )
    return done.stdout


class Cluster:
    """kubectl and helm against one cluster, and the registry that its nodes pull from."""

    def __init__(self, environment: dict[str, str], registry: str, *, plain_http: bool) -> None:
        self.environment = environment
        self.registry = registry
        self.plain_http = plain_http

    @classmethod
    def local(cls, name: str) -> Cluster:
        answer = run(PYTHON, "tools/localcluster", "up", "--name", name, "--json")
        facts = json.loads(answer.strip().splitlines()[-1])
        path = f"{facts['bin']}:{os.environ['PATH']}"
        environment = {**os.environ, "KUBECONFIG": facts["kubeconfig"], "PATH": path}
        return cls(environment, facts["registry"], plain_http=True)

    @classmethod
    def existing(cls, registry: str) -> Cluster:
        if not registry:
            raise DemoError("CLUSTER=existing needs REGISTRY=host/path, which you can push to and the nodes pull from")
        for tool in ("kubectl", "helm"):
            if not shutil.which(tool):
                raise DemoError(f"{tool} is not on the PATH; install it, or leave out CLUSTER=existing")
        return cls(dict(os.environ), registry.rstrip("/"), plain_http=False)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return run("kubectl", *arguments, env=self.environment, text=text)

    def helm(self, *arguments: str, text: str | None = None) -> str:
        return run("helm", *arguments, env=self.environment, text=text)

    def push(self, image: str, *arguments: str) -> dict[str, Any]:
        """Builds and pushes an image; returns what the builder says about it."""
        extra = ["--plain-http"] if self.plain_http else []
        command = (
            PYTHON,
            "-m",
            "tokenservice.cli",
            "image",
            "push",
            image,
            "--registry",
            self.registry,
            "--tag",
            "demo",
        )
        answer = run(*command, *extra, *arguments)
        result: dict[str, Any] = json.loads(answer.strip().splitlines()[-1])
        print(f"    {result['image']}  {result['bytes'] / 1e6:.0f} MB, {result['pushed_bytes'] / 1e6:.0f} MB pushed")
        return result


def install(cluster: Cluster, operator: str, base: str, values: dict[str, Any]) -> None:
    """The operator, with this cluster's registry for environments; `values` say where their packages come from."""
    repository, digest = operator.split("@")
    ours: dict[str, Any] = {
        "image": {"repository": repository, "digest": digest},
        "registry": {"url": f"{cluster.registry}/tokenservice", "plainHTTP": cluster.plain_http},
    }
    merged = {**values, **ours, "registry": {**values.get("registry", {}), **ours["registry"]}}
    merged["builder"] = {**values.get("builder", {}), "baseImage": base}
    cluster.helm(
        "upgrade", "--install", "tokenservice-operator", "charts/tokenservice-operator",
        "--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout", "5m", "--values", "-",
        text=json.dumps(merged),
    )  # fmt: skip


def local_channel(cluster: Cluster, base: str) -> dict[str, Any]:
    """Serves conda packages inside the cluster, made on this machine; returns the chart's values that name them.

    The operator takes them for any other channel. Conda's own need nothing but their names.
    """
    from tools.localchannel import in_cluster

    folder = run(PYTHON, "-m", "tools.localchannel", "build").strip().splitlines()[-1]
    image = cluster.push("model", "--from", folder, "--name", "conda-channel")["image"]
    make_namespace(cluster, CHANNEL_NAMESPACE)
    alias, index = in_cluster.apply(cluster.kubectl, image, base, CHANNEL_NAMESPACE)
    print(f"    {alias}/conda-forge, {alias}/pytorch, {index}")
    return {"builder": {"channels": {"alias": alias}, "pip": {"indexUrl": index}}}


def registry_login(cluster: Cluster) -> dict[str, Any]:
    """This machine's login for the registry as a Secret beside the operator, whose Jobs push environments."""
    file = Path(os.environ.get("DOCKER_CONFIG", "~/.docker")).expanduser() / "config.json"
    if not file.is_file():
        return {}
    make_namespace(cluster, OPERATOR_NAMESPACE)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "registry-login", "namespace": OPERATOR_NAMESPACE},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": file.read_text()},
    }
    cluster.kubectl("apply", "--server-side", "-f", "-", text=json.dumps(secret))
    return {"registry": {"dockerConfigSecret": "registry-login"}}


def make_namespace(cluster: Cluster, name: str) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.kubectl("apply", "-f", "-", text=json.dumps(namespace))


def manifest(cluster: Cluster, model: str, tiny: str | None) -> str:
    """examples/tiny.yaml with this cluster's image of the model, or the hub's model in the same environment."""
    import yaml

    resource = yaml.safe_load((ROOT / "examples" / "tiny.yaml").read_text())
    spec = resource["spec"]
    if tiny:
        spec["template"]["spec"]["volumes"][0]["image"]["reference"] = tiny
    else:
        resource["metadata"]["name"] = "demo"
        spec["model"] = {"source": model}
        if os.environ.get("HF_TOKEN"):
            secret = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "hub"},
                "stringData": {"token": os.environ["HF_TOKEN"]},
            }
            cluster.kubectl("apply", "--namespace", NAMESPACE, "-f", "-", text=json.dumps(secret))
            spec["model"]["authSecretRef"] = {"name": "hub"}
        del spec["template"]
    return yaml.safe_dump(resource, sort_keys=False)


def pod_news(cluster: Cluster) -> dict[str, str]:
    """What the scheduler and the kubelet have said about pods: an event's uid, and the event in a line."""
    events = json.loads(cluster.kubectl("get", "events", "--namespace", NAMESPACE, "-o", "json"))["items"]
    told = [event for event in events if event["involvedObject"]["kind"] == "Pod" and event["reason"] in TOLD]
    return {event["metadata"]["uid"]: f"{event['reason']}: {DIGEST.sub('', event['message'])}" for event in told}


def job_news(cluster: Cluster) -> str:
    """The newest line of the Job that solves or builds now; "" if there is none."""
    command = (
        "kubectl",
        "logs",
        "--namespace",
        OPERATOR_NAMESPACE,
        "--selector",
        "tokenservice.dev/job",
        "--tail",
        "1",
    )
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("{")]
    return lines[-1] if lines else ""


def serves(conditions: dict[str, Any]) -> bool:
    """Whether the first version does."""
    return all(conditions.get(kind, {}).get("status") == "True" for kind in ("EnvironmentReady", "Ready"))


def rolled_out(conditions: dict[str, Any]) -> bool:
    """Whether the newest version serves, and has proven good."""
    return bool(conditions.get("Progressing", {}).get("reason") == "Complete")


def unsolvable(conditions: dict[str, Any]) -> bool:
    return bool(conditions.get("EnvironmentReady", {}).get("reason") == "Unsolvable")


def wait(cluster: Cluster, name: str, old_news: dict[str, str], done: Callable[[dict[str, Any]], bool]) -> None:
    """Waits until the conditions of the TokenService's newest spec are so; prints their changes, and what pods do.

    Raises DemoError when it takes longer than READY_SECONDS.
    """
    deadline = time.monotonic() + READY_SECONDS
    shown: dict[str, str] = {}
    known = set(old_news)
    while time.monotonic() < deadline:
        for uid, line in pod_news(cluster).items():
            if uid not in known:
                print(f"    pod: {line}", flush=True)
                known.add(uid)
        text = cluster.kubectl("get", "tsvc", name, "--namespace", NAMESPACE, "-o", "json")
        resource = json.loads(text)
        status = resource.get("status", {})
        if status.get("observedGeneration") == resource["metadata"]["generation"]:
            conditions = {each["type"]: each for each in status["conditions"]}
            for kind in ("EnvironmentReady", "Progressing", "Ready"):
                found = conditions.get(kind)
                line = f"    {kind}={found['status']} {found['reason']}: {found['message']}" if found else ""
                if line and shown.get(kind) != line:
                    print(DIGEST.sub("", line.partition("\n")[0]), flush=True)
                    shown[kind] = line
            if done(conditions):
                return
        work = job_news(cluster)
        if work and shown.get("job") != work:
            print(f"    job: {work}", flush=True)
            shown["job"] = work
        time.sleep(0.5)
    raise DemoError(f"not there within {READY_SECONDS:.0f} s; see `kubectl describe tsvc {name} -n {NAMESPACE}`")


def edit(cluster: Cluster, name: str, dependencies: list[Any]) -> None:
    """What `kubectl edit` of the environment's dependencies does."""
    print(f"    dependencies: {json.dumps(dependencies)}")
    patch = {"spec": {"environment": {"conda": {"dependencies": dependencies}}}}
    cluster.kubectl("patch", "tsvc", name, "--namespace", NAMESPACE, "--type", "merge", "--patch", json.dumps(patch))


@contextlib.contextmanager
def forwarded(cluster: Cluster, name: str) -> Iterator[str]:
    """The Service on a port of this machine, for as long as the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("kubectl", "port-forward", "--namespace", NAMESPACE, f"service/{name}", f"{port}:80")
    with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if "Forwarding" not in process.stdout.readline():
                raise DemoError("kubectl port-forward did not start")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def stream(base_url: str, prompt: str) -> int:
    """Asks with the official client and prints the tokens as they come; returns how many pieces came."""
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none", timeout=120, max_retries=0)
    model = client.models.list().data[0].id
    print(f"    model {model}, prompt {prompt!r}\n\n    ", end="", flush=True)
    pieces = 0
    begun = time.monotonic()
    for chunk in client.completions.create(model=model, prompt=prompt, max_tokens=48, stream=True):
        if chunk.choices and chunk.choices[0].text:
            pieces += 1
            print(chunk.choices[0].text.replace("\n", " "), end="", flush=True)
    print(f"\n\n    {pieces} pieces in {time.monotonic() - begun:.2f} s")
    if not pieces:
        raise DemoError("the service answered without a single token")
    return pieces


def demo(arguments: argparse.Namespace) -> None:
    import yaml

    steps = Steps()
    local = arguments.cluster != "existing"
    with steps.step("cluster: a real one-node Kubernetes" if local else "cluster: the one of KUBECONFIG"):
        cluster = Cluster.local(arguments.name) if local else Cluster.existing(arguments.registry)
        print(cluster.kubectl("get", "nodes", "-o", "wide"))
    with steps.step("images: built without Docker, pushed to the registry"):
        operator, base = cluster.push("operator")["image"], cluster.push("base")["image"]
        tiny = None
        if arguments.model == "tiny":
            with tempfile.TemporaryDirectory(prefix="tokenservice-model-") as folder:
                run(PYTHON, "tools/make_model.py", folder)
                tiny = cluster.push("model", "--from", folder, "--name", "tiny")["image"]
    if local:
        with steps.step("channel: conda packages made on this machine, with stand-ins for CUDA's libraries"):
            values = local_channel(cluster, base)
    else:
        values = registry_login(cluster)
    with steps.step("operator: helm install"):
        install(cluster, operator, base, values)
        print(cluster.kubectl("get", "pods", "--namespace", OPERATOR_NAMESPACE))
    with steps.step("TokenService: kubectl apply; its environment is solved, built and run"):
        make_namespace(cluster, NAMESPACE)
        old_news = pod_news(cluster)
        resource = manifest(cluster, arguments.model, tiny)
        print(resource)
        print(cluster.kubectl("apply", "--namespace", NAMESPACE, "-f", "-", text=resource))
        name = "tiny" if tiny else "demo"
        wait(cluster, name, old_news, serves)
    with steps.step("tokens, streamed"), forwarded(cluster, name) as base_url:
        stream(base_url, "The quick brown fox")
        if tiny:
            print("    (random weights: the model has learned nothing; MODEL=hf://org/name takes a real one)")
    dependencies = yaml.safe_load(resource)["spec"]["environment"]["conda"]["dependencies"]
    with steps.step("an edit of the environment: the new version takes over once it has proven good"):
        old_news = pod_news(cluster)
        edit(cluster, name, [*dependencies, "wheel"])
        wait(cluster, name, old_news, rolled_out)
        print(cluster.kubectl("get", "controllerrevisions", "--namespace", NAMESPACE))
    with steps.step("an edit that cannot be solved: the version before goes on serving"):
        edit(cluster, name, [*dependencies, "wheel", "numpy<1"])
        wait(cluster, name, pod_news(cluster), unsolvable)
        print(cluster.kubectl("get", "tsvc", name, "--namespace", NAMESPACE))
        edit(cluster, name, [*dependencies, "wheel"])
        wait(cluster, name, pod_news(cluster), rolled_out)
    if tiny:
        show_starts(cluster, steps, name)
    print("\n=== the operator's log")
    selector = "app.kubernetes.io/name=tokenservice-operator"
    lines = cluster.kubectl("logs", "--namespace", OPERATOR_NAMESPACE, "--selector", selector, "--tail", "8")
    print("\n".join(sorted(lines.splitlines())[-8:]))  # of both replicas; each line begins with its time
    print()
    print("=== kubectl get tsvc,cenv,twp,deploy,svc,pdb,pods")
    print(cluster.kubectl("get", "tsvc,cenv,twp,deploy,svc,pdb,pods", "--namespace", NAMESPACE))
    print(cluster.kubectl("events", "--namespace", NAMESPACE, "--for", f"tokenservice/{name}"))
    how_to_go_on(cluster, name, local=local, seconds=steps.seconds)


def show_starts(cluster: Cluster, steps: Steps, name: str) -> None:
    """One more replica, cold and out of a warm pool, side by side."""

    def kubectl(*arguments: str) -> str:
        return cluster.kubectl(*arguments, "--namespace", NAMESPACE)

    with steps.step("one more replica, cold: kubectl scale"):
        demo_starts.scale(kubectl, name, 2)
        cold = demo_starts.started(kubectl, name, 2, "Cold", "Prepulled")
        demo_starts.scale(kubectl, name, 1)
    with steps.step("a warm pool of its own, of one pod: spec.warmPool"):
        patch = json.dumps({"spec": {"warmPool": {"replicas": 1}}})
        print("    " + kubectl("patch", "tsvc", name, "--type", "merge", "--patch", patch).strip())
        full = demo_starts.filled(kubectl, name)
        print(kubectl("get", "twp"))
    with steps.step("one more replica, warm: kubectl scale"):
        demo_starts.scale(kubectl, name, 2)
        warm = demo_starts.started(kubectl, name, 2, "Warm")
        if not (cold and full and warm):
            raise DemoError(f"no replica came that way; see `kubectl describe tsvc,twp {name} -n {NAMESPACE}`")
        print("    where the seconds went (status.lastStart):\n")
        print(demo_starts.side_by_side(cold, warm))


def how_to_go_on(cluster: Cluster, name: str, *, local: bool, seconds: float) -> None:
    print(f"The demo took {seconds:.0f} s. It goes on serving; call it yourself:\n")
    if local:
        folder = cluster.environment["PATH"].split(":")[0]
        print(f"  export KUBECONFIG={cluster.environment['KUBECONFIG']} PATH={folder}:$PATH")
    print(f"  kubectl -n {NAMESPACE} port-forward service/{name} 8000:80 &")
    print("  curl -N http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\")
    model = name if name == "tiny" else "MODEL"
    body = json.dumps({"model": model, "prompt": "Once upon a time", "max_tokens": 32, "stream": True})
    print(f"    -d '{body}'")
    print("\nand take it all down:\n")
    if local:
        print("  make clean")
    else:
        print(f"  kubectl delete namespace {NAMESPACE}")
        print(f"  helm uninstall tokenservice-operator -n {OPERATOR_NAMESPACE}")
        print("  kubectl delete -f crds/  # with every TokenService that is left")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="demo", help="name of the local cluster")
    parser.add_argument("--cluster", default="", help="'existing' for the cluster of KUBECONFIG")
    parser.add_argument("--registry", default="", help="with --cluster existing: where to push, host/path")
    parser.add_argument("--model", default="tiny", help="'tiny', made on the spot, or hf://org/name")
    arguments = parser.parse_args()
    if arguments.model != "tiny" and not arguments.model.startswith("hf://"):
        parser.error(f"MODEL must be tiny or hf://org/name, not {arguments.model}")
    try:
        demo(arguments)
    except DemoError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; `make demo` goes on from here, `make clean` takes all down", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the API server is and how to prove who we are: in a cluster, from a kubeconfig, or from kopf's login."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import kopf

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ConfigError(Exception):
    """The connection's configuration cannot be used; the text says what is missing and where."""


@dataclass(frozen=True)
class Connection:
    """An API server and credentials for it.

    server: URL without a trailing slash. Certificates are PEM text (`*_data`) or paths (`*_file`). token_file is read
    again every minute, since mounted tokens rotate. token_source is called instead, in a thread, where a login
    program makes the tokens.
    """

    server: str
    ca_file: str | None = None
    ca_data: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    cert_data: str | None = field(default=None, repr=False)
    key_data: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    token_source: Callable[[], str | None] | None = field(default=None, repr=False)
    scheme: str = "Bearer"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    insecure: bool = False
    server_name: str | None = None
    proxy: str | None = None
    namespace: str = "default"

    @classmethod
    def detect(cls, kubeconfig: str | None = None, context: str | None = None) -> Connection:
        """The kubeconfig if one is named (here or in KUBECONFIG); else the cluster this runs in; else ~/.kube/config.

        Raises ConfigError.
        """
        if not (kubeconfig or context or os.environ.get("KUBECONFIG")) and "KUBERNETES_SERVICE_HOST" in os.environ:
            return cls.in_cluster()
        return cls.from_kubeconfig(kubeconfig, context)

    @classmethod
    def in_cluster(cls, mount: Path = SERVICE_ACCOUNT) -> Connection:
        """From the pod's service account. Raises ConfigError outside a pod."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ConfigError("not in a cluster: KUBERNETES_SERVICE_HOST is not set")
        token, ca, namespace = mount / "token", mount / "ca.crt", mount / "namespace"
        if not token.is_file():
            raise ConfigError(f"no service account token at {token}: is automountServiceAccountToken off?")
        return cls(
            server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            ca_file=str(ca) if ca.is_file() else None,
            token_file=str(token),
            namespace=namespace.read_text().strip() if namespace.is_file() else "default",
        )

    @classmethod
    def from_kubeconfig(cls, path: str | None = None, context: str | None = None) -> Connection:
        """From kubeconfig files, merged as kubectl does: the first file that has an entry wins.

        path: one or several joined by ':'; default KUBECONFIG, then ~/.kube/config. context: default the current one.
        Login programs and auth providers are left to the `kubernetes` package. Raises ConfigError.
        """
        spec = path or os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
        paths = [Path(part).expanduser() for part in spec.split(os.pathsep) if part]
        merged = _merge([entry for entry in paths if entry.is_file()])
        if not merged.contexts:
            raise ConfigError(f"no context in kubeconfig {spec}: name one with --kubeconfig or KUBECONFIG")
        name = context or merged.current
        if name not in merged.contexts:
            raise ConfigError(
                f"kubeconfig {spec} has no context {name!r}; it has: {', '.join(sorted(merged.contexts))}"
            )
        chosen = merged.contexts[name]
        cluster = merged.clusters.get(chosen.get("cluster", ""))
        if cluster is None or not cluster.get("server"):
            raise ConfigError(f"kubeconfig {spec}: context {name!r} names a cluster that has no server")
        user = merged.users.get(chosen.get("user", ""), {})
        base = cls(
            server=cluster["server"].rstrip("/"),
            ca_file=cluster.get("certificate-authority"),
            ca_data=_pem(cluster.get("certificate-authority-data")),
            insecure=bool(cluster.get("insecure-skip-tls-verify")),
            server_name=cluster.get("tls-server-name"),
            proxy=cluster.get("proxy-url"),
            namespace=chosen.get("namespace") or "default",
        )
        if "exec" in user or "auth-provider" in user:
            return _through_login_program(base, spec, name)
        return replace(
            base,
            cert_file=user.get("client-certificate"),
            cert_data=_pem(user.get("client-certificate-data")),
            key_file=user.get("client-key"),
            key_data=_pem(user.get("client-key-data")),
            token=user.get("token"),
            token_file=user.get("tokenFile"),
            username=user.get("username"),
            password=user.get("password"),
        )

    @classmethod
    def from_kopf(cls, info: kopf.ConnectionInfo) -> Connection:
        """From what kopf's login came to."""
        return cls(
            server=info.server.rstrip("/"),
            ca_file=_text(info.ca_path),
            ca_data=_pem(info.ca_data),
            cert_file=_text(info.certificate_path),
            cert_data=_pem(info.certificate_data),
            key_file=_text(info.private_key_path),
            key_data=_pem(info.private_key_data),
            token=info.token,
            scheme=info.scheme or "Bearer",
            username=info.username,
            password=info.password,
            insecure=bool(info.insecure),
            proxy=info.proxy_url,
            namespace=info.default_namespace or "default",
        )

    def ssl_context(self) -> ssl.SSLContext:
        """The TLS settings; certificates given as text touch the disk for a moment, since Python loads them from
        files only.
        """
        try:
            tls = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_data)
            with contextlib.ExitStack() as stack:
                cert = self.cert_file or _temporary(stack, self.cert_data)
                if cert:
                    tls.load_cert_chain(cert, self.key_file or _temporary(stack, self.key_data))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"certificates for {self.server} cannot be loaded: {error}") from error
        if self.insecure:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        return tls

    def authorization(self) -> str | None:
        """The Authorization header as of now. Blocks: reads a file or runs a login program. Raises ConfigError."""
        if self.username and self.password:
            return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")
        token = self.token
        if self.token_file:
            try:
                token = Path(self.token_file).read_text().strip()
            except OSError as error:
                raise ConfigError(f"token file {self.token_file}: {error.strerror}") from error
        elif self.token_source:
            token = self.token_source()
        return f"{self.scheme} {token}" if token else None

    @property
    def rotates(self) -> bool:
        """Whether the Authorization header can change."""
        return bool(self.token_file or self.token_source)


@dataclass(frozen=True)
class _Merged:
    current: str
    contexts: Mapping[str, Mapping[str, Any]]
    clusters: Mapping[str, Mapping[str, Any]]
    users: Mapping[str, Mapping[str, Any]]


_PATH_KEYS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


def _merge(paths: list[Path]) -> _Merged:
    import yaml

    current, found = "", {"contexts": {}, "clusters": {}, "users": {}}  # type: tuple[str, dict[str, dict[str, Any]]]
    for path in paths:
        try:
            document = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"kubeconfig {path} cannot be read: {error}") from error
        current = current or document.get("current-context") or ""
        for plural, entries in found.items():
            for entry in document.get(plural) or ():
                value = dict(entry.get(plural[:-1]) or {})
                for key in _PATH_KEYS:  # relative paths count from the file that holds them
                    if value.get(key):
                        value[key] = str(path.parent / value[key])
                entries.setdefault(entry["name"], value)
    return _Merged(current, **found)


def _through_login_program(base: Connection, spec: str, context: str) -> Connection:
    import kubernetes.client
    import kubernetes.config

    def login() -> Any:
        configuration = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_kube_config(spec, context, client_configuration=configuration)
        except Exception as error:  # the package raises many kinds, those of the login program included
            raise ConfigError(f"kubeconfig {spec}: logging in with context {context!r} failed: {error}") from error
        return configuration

    first = login()
    token = first.get_api_key_with_prefix("BearerToken") or first.get_api_key_with_prefix("authorization")
    if not token:
        return replace(base, cert_file=first.cert_file, key_file=first.key_file)

    def source() -> str | None:
        fresh = login()
        found = fresh.get_api_key_with_prefix("BearerToken") or fresh.get_api_key_with_prefix("authorization")
        return str(found).removeprefix("Bearer ") if found else None

    return replace(base, token_source=source)


def _pem(data: str | bytes | None) -> str | None:
    if not data:
        return None
    text = data.decode("ascii") if isinstance(data, bytes) else data
    return text if text.lstrip().startswith("-----BEGIN ") else base64.b64decode(text).decode("ascii")


def _text(path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> str | None:
    return os.fsdecode(path) if path else None


def _temporary(stack: contextlib.ExitStack, data: str | None) -> str | None:
    if data is None:
        return None
    handle = stack.enter_context(tempfile.NamedTemporaryFile(buffering=0))  # noqa: SIM115 - the stack closes it
    handle.write(data.encode("ascii"))
    return handle.name

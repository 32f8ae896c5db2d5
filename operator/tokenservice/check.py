"""`tokenservice check`: whether the cluster takes TokenServices, asked without changing anything."""

from __future__ import annotations

from tokenservice.api import names
from tokenservice.kube.client import Client
from tokenservice.kube.connection import ConfigError, Connection
from tokenservice.kube.errors import ApiError, Unreachable
from tokenservice.kube.resources import TOKENSERVICES

_TRIAL = {
    "apiVersion": names.API_VERSION,
    "kind": "TokenService",
    "metadata": {"name": "check"},
    "spec": {"model": {"source": "file:///check"}, "environment": {"image": {"reference": "check"}}},
}


async def check(namespace: str, kubeconfig: str = "") -> str | None:
    """Sends a TokenService as a dry run. Returns None if all is well, else one line that says what to do."""
    try:
        client = Client(Connection.detect(kubeconfig or None))
    except ConfigError as error:
        return f"no cluster: {error}"
    async with client:
        try:
            await client.request(
                "PATCH",
                TOKENSERVICES.path(namespace, "check"),
                query={"fieldManager": "tokenservice-check", "dryRun": "All", "force": "true"},
                body=_TRIAL,
                content_type="application/apply-patch+yaml",
            )
        except ApiError as error:
            if error.is_not_found:
                return "the cluster does not know TokenServices: install the CRD (kubectl apply -f crds/)"
            if error.is_forbidden:
                return f"this account may not try: {error.message}"
            return f"the API server refuses a valid TokenService: {error.message}"
        except Unreachable as error:
            return f"the API server does not answer: {error}"
    return None

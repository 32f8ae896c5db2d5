"""The token that a warm pod's assignment must come with: one for each pod, known to the operator alone.

A pod's spec holds the token's SHA-256, its annotation the nonce that the token was made with. So the operator keeps no
token anywhere, and a restarted one, or another replica with the same key, makes it again. Without the nonce a pod would
have the token of an earlier one of its name, which whoever served there has seen. Pure functions.
"""

from __future__ import annotations

import hashlib
import hmac


def token(key: bytes, namespace: str, pod: str, nonce: str) -> str:
    """The token of a pod: HMAC-SHA256 (RFC 2104) of namespace, name and nonce under the operator's key, in hexadecimal.

    None of the three can contain the slash that stands between them.
    """
    return hmac.new(key, f"{namespace}/{pod}/{nonce}".encode(), hashlib.sha256).hexdigest()


def key_id(key: bytes) -> str:
    """Tells keys apart, and nothing about them."""
    return hashlib.sha256(b"key of tokens for warm pods: " + key).hexdigest()[:8]


def digest(token: str) -> str:
    """What the pod is told of its token: the SHA-256, in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()

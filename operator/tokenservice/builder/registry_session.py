"""Requests to one registry: which scheme it speaks, how it wants to be asked, retries, and streamed answers.

https://distribution.github.io/distribution/spec/auth/token/ is the token flow. Safe for several threads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urljoin, urlsplit

import urllib3

from .errors import BuildError
from .http import RETRIED, Http, Retries
from .names import may_be_plain, server_of, speaks_no_tls
from .progress import say
from .registry_auth import Challenge, Login, parse_challenge
from .registry_errors import Answer, plain_cause, refused, unreachable

# A registry hashes, and some copy, a whole layer before they answer its upload.
_UPLOAD_SECONDS = 120.0


@dataclass
class Session:
    """One registry. `login` is called with no argument when it asks for one."""

    host: str
    http: Http = field(repr=False)
    login: Callable[[], Login | None]
    plain_http: bool = False
    retries: Retries = field(default_factory=Retries)
    _base: str = field(default="", init=False)
    _challenge: Challenge | None = field(default=None, init=False)
    _tokens: dict[tuple[str, ...], str] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    def call(
        self,
        method: str,
        path: str,
        scopes: tuple[str, ...],
        fine: set[int],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Sends until there is an answer in `fine`. Raises BuildError for every other."""
        url = self.url(path)
        for attempt in range(self.retries.attempts):
            last = attempt == self.retries.attempts - 1
            answer = self.once(method, url, scopes, headers or {}, body, raising=last)
            if answer is not None and answer.status in fine:
                return answer
            if last or (answer is not None and not answer.passes):
                raise refused(self.host, method, path, answer)
            self.retries.pause(attempt, answer.headers.get("retry-after") if answer else None)
        raise AssertionError("the last attempt returns or raises")

    def once(
        self, method: str, url: str, scopes: tuple[str, ...], headers: Mapping[str, str], body: object, *, raising: bool
    ) -> Answer | None:
        """One try, with a new token if the old one is no longer taken. None: no answer (raised if `raising`)."""
        try:
            answer = self._send(method, url, {**headers, **self._authorization(url, scopes)}, body)
            if answer.status != 401 or not self._asks_anew(answer, scopes) or hasattr(body, "read"):
                return answer
            return self._send(method, url, {**headers, **self._authorization(url, scopes)}, body)
        except urllib3.exceptions.HTTPError as error:
            if raising or isinstance(error, urllib3.exceptions.SSLError):
                raise unreachable(self.host, error) from error
            say(f"{self.host} does not answer ({plain_cause(error)}), trying again")
            return None

    def stream(self, path: str, scopes: tuple[str, ...], headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """One try of a download: an answer of 200 or 206 whose body is not read yet.

        Raises RefusedError for every other answer, urllib3's HTTPError for none.
        """
        url = self.url(path)
        for _ in range(2):
            response, _ = self._follow("GET", url, {**headers, **self._authorization(url, scopes)}, None)
            if response.status in (200, 206):
                return response
            answer = _read(response, url)
            if answer.status != 401 or not self._asks_anew(answer, scopes):
                break
        raise RefusedError(answer)

    def url(self, path: str) -> str:
        """The address of a path below /v2/; an address stays what it is."""
        return path if "://" in path else f"{self.connect()}/v2/{path}"

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: object) -> Answer:
        response, last_url = self._follow(method, url, headers, body)
        return _read(response, last_url)

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], body: object
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """One request; redirects of downloads are followed, without credentials when they lead elsewhere."""
        timeout = None
        if hasattr(body, "read"):
            connect, read = self.http.timeout.connect_timeout, self.http.timeout.read_timeout
            patience = max(_UPLOAD_SECONDS, read) if isinstance(read, (int, float)) else _UPLOAD_SECONDS
            timeout = urllib3.Timeout(connect=connect, read=patience)
        for _ in range(5):
            response = self.http.open(method, url, headers, body, timeout)
            if response.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return response, url
            response.drain_conn()
            response.release_conn()
            target = urljoin(url, response.headers.get("Location", ""))
            if not may_know(url, target):
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target
        raise BuildError(f"{self.host}: too many redirects", "RegistryUnavailable")

    # Connection and authentication

    def connect(self) -> str:
        """The registry's base address, found out once: which scheme it speaks, and how it wants to be asked."""
        with self._lock:
            if not self._base:
                self._base, self._challenge = self._found()
            return self._base

    def _found(self) -> tuple[str, Challenge | None]:
        schemes = ["http"] if self.plain_http else ["https", "http"] if may_be_plain(self.host) else ["https"]
        for attempt in range(self.retries.attempts):
            for scheme in schemes:
                base = f"{scheme}://{server_of(self.host)}"
                try:
                    answer = self._send("GET", f"{base}/v2/", {}, None)
                except urllib3.exceptions.HTTPError as error:
                    if scheme != schemes[-1] and speaks_no_tls(error):
                        continue
                    if isinstance(error, urllib3.exceptions.SSLError) or attempt == self.retries.attempts - 1:
                        raise unreachable(self.host, error) from error
                    say(f"{self.host} does not answer ({plain_cause(error)}), trying again")
                    break
                if answer.status in (200, 401):
                    return base, self._challenge_of(answer)
                if answer.status not in RETRIED or attempt == self.retries.attempts - 1:
                    text = f"{self.host} is no registry: GET /v2/ gave {answer.status}"
                    raise BuildError(text, "RegistryUnavailable")
                break
            self.retries.pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _challenge_of(self, answer: Answer) -> Challenge | None:
        header = answer.headers.get("www-authenticate", "")
        return parse_challenge(header) if answer.status == 401 and header else None

    def _asks_anew(self, answer: Answer, scopes: tuple[str, ...]) -> bool:
        """Notes what a 401 asks for; whether asking again can help (a token, which may have run out)."""
        with self._lock:
            had = self._challenge is not None
            self._challenge = self._challenge_of(answer) or self._challenge
            self._tokens.pop(scopes, None)
            return not had or (self._challenge is not None and self._challenge.scheme == "bearer")

    def _authorization(self, url: str, scopes: tuple[str, ...]) -> dict[str, str]:
        challenge = self._challenge
        if challenge is None or not may_know(self._base, url):
            return {}
        if challenge.scheme == "bearer":
            with self._lock:  # one thread asks for a token, the others use it
                token = self._tokens.get(scopes) or self._token(challenge, scopes)
                self._tokens[scopes] = token
            return {"Authorization": f"Bearer {token}"}
        if challenge.scheme != "basic":
            text = f"{self.host} wants the authentication {challenge.scheme!r}; basic and bearer are known"
            raise BuildError(text, "RegistryUnauthorized")
        login = self.login()
        if login is None:
            hint = "log in with a Docker config.json (--docker-config, or the settings' dockerConfig or credentials)"
            raise BuildError(f"{self.host} wants a user and a password: {hint}", "RegistryUnauthorized")
        return {"Authorization": login.basic}

    def _token(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        realm = urljoin(f"{self._base}/v2/", challenge.parameters.get("realm", ""))
        if self._base.startswith("https:") and not realm.startswith("https:"):
            text = f"{self.host} sends logins to {realm}, which is not encrypted"
            raise BuildError(text, "RegistryUnauthorized")
        login = self.login()
        query = [("service", challenge.parameters.get("service", "")), *(("scope", scope) for scope in scopes)]
        if login is not None and login.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", login.identity_token),
                ("client_id", "tokenservice"),
            ]
            form += [query[0], ("scope", " ".join(scopes))]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._send("POST", realm, headers, urlencode(form).encode())
        else:
            headers = {"Authorization": login.basic} if login else {}
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query, quote_via=quote)}"
            answer = self._send("GET", url, headers, None)
        if answer.status == 200:
            content = json.loads(answer.body)
            token = content.get("token") or content.get("access_token")
            if token:
                return str(token)
        who = f"the login from {login.source}" if login else "no login"
        text = f"{self.host}: {urlsplit(realm).netloc} gave no token for {who} ({answer.status})"
        raise BuildError(text, "RegistryUnavailable" if answer.status in RETRIED else "RegistryUnauthorized")


class RefusedError(Exception):
    """A download that the registry answered with something else than content."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def may_know(origin: str, url: str) -> bool:
    """Whether what is secret at `origin` may be sent to `url`: the same host, and no encryption is lost."""
    here, there = urlsplit(origin), urlsplit(url)
    return here.netloc == there.netloc and (here.scheme != "https" or there.scheme == "https")


def _read(response: urllib3.BaseHTTPResponse, url: str) -> Answer:
    try:
        content = response.read() or b""
    finally:
        response.release_conn()
    kept = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, {**kept, "x-request-url": url}, content)

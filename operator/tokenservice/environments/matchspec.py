"""conda's MatchSpec, as far as a person's mistakes in it can be told before anything is solved, and in one form.

Grammar: https://conda.org/learn/ceps/cep-0029 and conda's documentation of `environment.yml`. The solver reads the
canonical text again by itself. It accepts a few texts that are refused here, since what it makes of them is not what
their author meant: see `tests/unit/environments/test_matchspec_rattler.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
CHANNEL = re.compile(
    r"https?://[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%+-]*)*|[a-z0-9][\w.-]*(?:/[\w.-]+)*/?",
    re.ASCII | re.IGNORECASE,
)
"""A channel's name, labels behind it, or its URL."""
_SUBDIR = re.compile(r"noarch|(?:linux|osx|win|emscripten|wasi)-[a-z0-9_]+")
_OPERATOR = r"(?:==|>=|<=|!=|~=|=|>|<)"
_CONSTRAINT = rf"{_OPERATOR}?[A-Za-z0-9*][A-Za-z0-9_.*+!-]*"
_VERSION = re.compile(rf"[(]*{_CONSTRAINT}[)]*(?:[,|][(]*{_CONSTRAINT}[)]*)*")
_NUMBER = re.compile(
    r"(?:[0-9]+!)?[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*_?(?:\+[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*)?(?:\.?\*)?"
)
_BUILD = re.compile(r"[A-Za-z0-9_.*+-]+|\^\S*\$")
_PAIR = re.compile(r"""\s*([a-z_0-9]+)\s*=\s*('[^']*'|"[^"]*"|[^,'"\s]+)\s*(?:,|$)""")
_KEYS = {
    "version": re.compile(r".+"),
    "build": _BUILD,
    "build_number": re.compile(rf"{_OPERATOR}?[0-9]+"),
    "channel": CHANNEL,
    "subdir": _SUBDIR,
    "md5": re.compile(r"[0-9a-fA-F]{32}"),
    "sha256": re.compile(r"[0-9a-fA-F]{64}"),
    "license": re.compile(r"[^'\"]+"),
    "license_family": re.compile(r"[^'\"]+"),
    "track_features": re.compile(r"[^'\"]+"),
}
_PACKAGE_FILE = re.compile(r"\.(conda|tar\.bz2|whl|tar\.gz|zip)$")
_FILE = "is a package file; name the package instead: channel::name=version=build"
_ANY = ("*", "*.*")
_LOOK = "versions look like =1.2, 1.2.*, >=1.2,<2, ==1.2.3 or ~=1.2"


class InvalidMatchSpec(ValueError):  # noqa: N818 - a finding, not a mistake of the program
    """The text says what is wrong, and what to write instead where that is clear."""


@dataclass(frozen=True)
class MatchSpec:
    """What a dependency asks for; None stands for what is not constrained.

    Attributes:
        name: in lower case, as conda compares it.
        version: constraints without blanks; `=1.2` for 1.2 and all that begins with `1.2.`, `1.2` for that alone.
        extra: further keys of the brackets with their values, sorted.

    """

    name: str
    version: str | None = None
    build: str | None = None
    channel: str | None = None
    subdir: str | None = None
    extra: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The canonical text: two texts that ask for the same way of saying it have the same one."""
        extra = dict(self.extra)
        where = ""
        if self.channel:
            where = f"{self.channel}/{self.subdir}::" if self.subdir else f"{self.channel}::"
        elif self.subdir:
            extra["subdir"] = self.subdir
        brackets = ",".join(f"{key}='{value}'" for key, value in sorted(extra.items()))
        return f"{where}{self.name}{self._choice()}{f'[{brackets}]' if brackets else ''}"

    def _choice(self) -> str:
        version, build = self.version, self.build
        if version is None:
            return f"=*={build}" if build else ""
        plain = _NUMBER.fullmatch(version) or version == "*"
        if plain and build:
            return f"={version}={build}"
        if build:
            return f" {version} {build}"
        if plain:
            return f"={version}" if version.endswith("*") else f"=={version}"
        return version if version[0] in "=<>!~" else f" {version}"


def canonical(text: str) -> str:
    """The dependency in one form: blanks, the name's case and the brackets that were not needed do not matter.

    Raises:
        InvalidMatchSpec: it is none.

    """
    return str(parse(text))


def parse(text: str) -> MatchSpec:
    """Reads one conda dependency.

    Raises:
        InvalidMatchSpec: it is none.

    """
    rest = text.split("#", 1)[0].strip()
    if not rest:
        raise InvalidMatchSpec("is empty")
    _refuse_places(rest)
    rest, pairs = _brackets(rest)
    channel, subdir = pairs.pop("channel", None), pairs.pop("subdir", None)
    if "::" in rest:
        before, rest = (part.strip() for part in rest.split("::", 1))
        if not CHANNEL.fullmatch(before):
            raise InvalidMatchSpec("has no channel before '::'")
        channel, subdir = _channel(before, subdir)
    match = _NAME.match(rest)
    if not match:
        raise InvalidMatchSpec("does not begin with a package's name")
    name, rest = match[0].lower(), rest[match.end() :]
    _check_follows(rest)
    version, build = _version_and_build(rest.strip())
    if "version" in pairs:
        version, _ = _version_and_build(pairs.pop("version"), alone=True)
    return MatchSpec(name, version, pairs.pop("build", build), channel, subdir, tuple(sorted(pairs.items())))


def _refuse_places(text: str) -> None:
    if text.startswith(("-", "@")):
        raise InvalidMatchSpec("is an option; an environment file has none")
    if text.startswith((".", "/", "~", "file:")) or re.match(r"[A-Za-z]:[\\/]", text):
        raise InvalidMatchSpec("is a path; only packages of channels can be installed")
    if re.match(r"[a-z]+\+[a-z]+:", text):
        raise InvalidMatchSpec("is a source, which is nothing that conda installs; only packages of channels can be")
    if "://" in text.split("::", 1)[-1] or _PACKAGE_FILE.search(text):
        raise InvalidMatchSpec(_FILE)


def _brackets(text: str) -> tuple[str, dict[str, str]]:
    if "[" not in text:
        if "]" in text:
            raise InvalidMatchSpec("has a ']' without a '['")
        return text, {}
    before, inside = text.split("[", 1)
    extras = re.match(r"[A-Za-z0-9_.,\s-]+(?=\])", inside)
    if extras:
        raise InvalidMatchSpec(f"has [{extras[0]}]: extras are pip's, and such a line belongs below `pip:`")
    if not inside.endswith("]"):
        raise InvalidMatchSpec("has a '[' without a ']' at its end")
    inside = inside[:-1]
    pairs: dict[str, str] = {}
    at = 0
    while at < len(inside):
        match = _PAIR.match(inside, at)
        if not match:
            raise InvalidMatchSpec(f"has [{inside}], which is not key=value, key='value', ...")
        key, value, at = match[1], match[2].strip("'\""), match.end()
        if key in ("url", "fn"):
            raise InvalidMatchSpec(_FILE)
        if key not in _KEYS:
            raise InvalidMatchSpec(f"has the key {key!r}; known are {', '.join(_KEYS)}")
        if key in pairs:
            raise InvalidMatchSpec(f"has the key {key!r} twice")
        if not _KEYS[key].fullmatch(value):
            raise InvalidMatchSpec(f"has {key}={value!r}, which is no {key.replace('_', ' ')}")
        pairs[key] = value
    return before.strip(), pairs


def _channel(text: str, subdir: str | None) -> tuple[str, str | None]:
    before, _, last = text.rpartition("/")
    if before and _SUBDIR.fullmatch(last):
        return before, last
    return text.rstrip("/"), subdir


def _check_follows(rest: str) -> None:
    """What comes right after the name must begin a version."""
    if not rest or re.match(r"[\s=<>!~]", rest):
        return
    if rest[0] == ":":
        raise InvalidMatchSpec("has one ':'; a channel stands before '::', as in conda-forge::numpy")
    if rest[0] == ";":
        raise InvalidMatchSpec("has a marker, which is pip's; such a line belongs below `pip:`")
    raise InvalidMatchSpec(f"has {rest[0]!r} after the name; a version follows after '=', '>=', '<', ... or a blank")


def _version_and_build(text: str, *, alone: bool = False) -> tuple[str | None, str | None]:
    """Of `=1.2`, `=1.2=py_0`, `==1.2`, `>=1,<2`, `1.2.*`, `1.2 py_0`, `>=1.2 *cuda*`; alone: no build may follow."""
    if not text:
        return None, None
    # Blanks after an operator and around what joins constraints belong to the version; another one begins the build.
    tight = re.sub(rf"({_OPERATOR})\s+", r"\1", re.sub(r"\s*([,|])\s*", r"\1", text.strip()))
    tight = re.sub(r"\s+(?=\))|(?<=\()\s+", "", tight)
    match = _VERSION.match(tight)
    if not match:
        raise InvalidMatchSpec(f"has {text!r} where a version should be; {_LOOK}")
    version, after = match[0], tight[match.end() :]
    if re.match(r"\s*[<>!~]", after):
        raise InvalidMatchSpec(f"has {text!r} where a version should be: two constraints need a comma; {_LOOK}")
    if after and not re.match(r"[\s=]", after):
        raise InvalidMatchSpec(f"has {text!r} where a version should be; {_LOOK}")
    _check_version(version)
    if not after:
        version = version[2:] if version.startswith("==") and _NUMBER.fullmatch(version[2:]) else version
        return None if version.lstrip("=") in _ANY else version, None
    build = re.sub(r"^\s*=?\s*", "", after)
    if alone or not _BUILD.fullmatch(build):
        raise InvalidMatchSpec(f"has {after.strip()!r} after the version, which is no build; {_LOOK}")
    if version.lstrip("=") in _ANY:
        return "*", build
    return _exact(version), build


def _exact(version: str) -> str:
    """Beside a build, conda takes `=1.2` for that version alone, and `==1.2.*` for 1.2."""
    single = re.fullmatch(r"(==?)([^=,|]+)", version)
    if not single:
        return version
    return single[2].removesuffix(".*") if single[1] == "==" else single[2]


def _check_version(version: str) -> None:
    depth = 0
    for character in version:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            break
    if depth:
        raise InvalidMatchSpec(f"has the version {version!r} with a parenthesis too many")
    for part in re.split(r"[,|]", re.sub(r"[()]", "", version)):
        operator = re.match(_OPERATOR, part)
        number = part[operator.end() :] if operator else part
        if number in _ANY and (not operator or operator[0] in ("=", "==")):
            continue
        if not _NUMBER.fullmatch(number) or ("_" in number and "-" in number):
            raise InvalidMatchSpec(f"has the version {version!r}; {_LOOK}")

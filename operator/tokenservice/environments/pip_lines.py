"""The lines below `pip:` in an environment file: requirements of packages, and by name what is none.

Grammar: https://packaging.python.org/en/latest/specifications/dependency-specifiers/
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tokenservice.environments.urls import CREDENTIALS_ADVICE, holds_secret

_FOLDER = "installs a folder that is not there when the image is built; publish the package as a wheel"
_FILE = "reads a file that is not there when the image is built; write its lines here"
_INDEX = "chooses where packages come from, which is the cluster owner's choice (builder.pip in the chart's values)"
_OPTIONS = {
    **dict.fromkeys(("-e", "--editable"), _FOLDER),
    **dict.fromkeys(("-r", "--requirement", "-c", "--constraint"), _FILE),
    **dict.fromkeys(("-i", "--index-url", "--extra-index-url", "-f", "--find-links"), _INDEX),
    "--trusted-host": "turns off the check of certificates; give the cluster's owner the CA bundle instead",
    "--no-binary": "compiles from source, which a build does not; leave it out",
    "--pre": "cannot be set for all packages; ask for the one version, as in name==2.0rc1",
}
_SOURCE = (
    "would be built from its source, which runs code that nobody locked; "
    "publish a wheel to an index, or name one by its address, https://....whl"
)
_SINGLE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[^\]]*\])?)\s*=\s*(?P<version>[0-9][^=\s;,]*)\s*$")


class InvalidPipLine(ValueError):  # noqa: N818 - a finding, not a mistake of the program
    """The text says what is wrong, and what to write instead."""


def canonical(line: str) -> str:
    """The line in one form: name normalised, extras and specifiers sorted.

    Raises:
        InvalidPipLine: it is no requirement, or one that needs a folder, a file or another index.

    """
    text = re.sub(r"(^|\s)#.*$", "", line).strip()
    if not text:
        raise InvalidPipLine("is empty")
    if "\n" in text:
        raise InvalidPipLine("has several lines; each requirement is an entry of its own")
    if text.startswith("-"):
        option = re.split(r"[\s=]", text, maxsplit=1)[0]
        short = option[:2] if not option.startswith("--") else option
        reason = _OPTIONS.get(short, "is an option of pip; below `pip:` stand requirements alone")
        raise InvalidPipLine(f"{short} {reason}")
    if " --hash" in text:
        raise InvalidPipLine("carries a hash; hashes stand in the lock, which every build has")
    if holds_secret(text):
        raise InvalidPipLine(CREDENTIALS_ADVICE)
    _refuse_paths(text)
    if re.match(r"https?://", text):
        _check_address(text)
        return text  # the cluster's owner decides about it, by an allow-list
    if re.match(r"[a-z]+\+[a-z]+:", text) or re.match(r"[a-z]+://", text):
        raise InvalidPipLine(_SOURCE)
    single = _SINGLE.fullmatch(text)
    if single:
        raise InvalidPipLine(f"is conda's way to write it; for pip write {single['name']}=={single['version']}")
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        words = str(error).splitlines()[0]
        raise InvalidPipLine(f"is no requirement ({words}); write name, name==1.2 or name[extra]>=1.2,<2") from None
    if not found.name[-1].isalnum():
        raise InvalidPipLine(f"names {found.name!r}; a name ends with a letter or digit")
    if found.url:
        _refuse_paths(found.url)
        _check_address(found.url)
    extras = f"[{','.join(sorted(found.extras))}]" if found.extras else ""
    where = f" @ {found.url}" if found.url else str(found.specifier)
    marker = f" ; {found.marker}" if found.marker else ""
    return f"{canonicalize_name(found.name)}{extras}{where}{marker}"


def _check_address(url: str) -> None:
    try:
        path = urlsplit(url).path
    except ValueError:
        raise InvalidPipLine("is no address; write https://HOST/PATH.whl") from None
    if not re.match(r"https?://", url) or not path.endswith(".whl"):
        raise InvalidPipLine(_SOURCE)


def _refuse_paths(text: str) -> None:
    first = text.split(maxsplit=1)[0]
    local = re.match(r"[./~]|(git\+)?file:", first, re.IGNORECASE) or re.search(r"@\s*([./~]|file:)", text)
    if local or ("://" not in text and re.search(r"\.(whl|tar\.gz|zip)$", first)):
        raise InvalidPipLine("is a path, and no folder of yours is there when the image is built; publish the package")

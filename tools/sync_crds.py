"""Makes the chart's template of the CustomResourceDefinitions from crds/, their source of truth.

    python -m tools.sync_crds            writes charts/tokenservice-operator/templates/crds.yaml
    python -m tools.sync_crds --check    exits 1 if it is not up to date

The template holds the files as they stand, comments and order included, under the conditions `crds.enabled` and
`crds.keep`. They are templates, not the chart's crds/ folder, because Helm never upgrades what lies in that folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from tools import generated
from tools.generated import ROOT

SOURCE = ROOT / "crds"
TARGET = ROOT / "charts" / "tokenservice-operator" / "templates" / "crds.yaml"

HEADER = "{{- /* Made from crds/ by tools/sync_crds.py (`make crds`): change the files there. */}}\n"
KEEP = """\
{{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
{{- end }}
"""


class UnexpectedLayoutError(ValueError):
    """A CRD file has no place to put the annotation in; the text names the file."""


def template(name: str, text: str) -> str:
    """One CRD file as a part of a Helm template.

    Braces that Helm would take for an action become literals; the annotation `helm.sh/resource-policy: keep` is added
    if `crds.keep` is set. Nothing else changes.

    Raises:
        UnexpectedLayoutError: `text` has not exactly one top-level `metadata:`, or annotations of its own.

    """
    body = re.sub(r"\{\{|\}\}", r'{{ "\g<0>" }}', text.removeprefix("---\n").strip("\n"))
    parts = re.split(r"^metadata:\n", body, flags=re.MULTILINE)
    if len(parts) != 2:
        raise UnexpectedLayoutError(f"{name}: expected one document with one `metadata:` block, found {len(parts) - 1}")
    head, rest = parts
    if re.match(r"(?: .*\n|#.*\n|\n)*?  annotations:", rest):
        raise UnexpectedLayoutError(f"{name}: metadata.annotations is where crds.keep goes; put nothing else there")
    return f"---\n{head}metadata:\n{KEEP}{rest}\n"


def render(files: Sequence[tuple[str, str]]) -> str:
    """The whole template from (file name, text) pairs."""
    return HEADER + "{{- if .Values.crds.enabled }}\n" + "".join(template(*item) for item in files) + "{{- end }}\n"


def _make() -> str:
    return render([(path.name, path.read_text()) for path in sorted(SOURCE.glob("*.yaml"))])


def main(argv: Sequence[str] | None = None) -> int:
    return generated.main(argv, __doc__, TARGET, SOURCE, _make)


if __name__ == "__main__":
    sys.exit(main())

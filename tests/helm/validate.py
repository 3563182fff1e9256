"""Validates Kubernetes objects against the API schemas of several versions; runs in the chart tools' own venv.

Standard input: {"versions": ["1.30"], "documents": [...]}. Standard output: a list of complaints.
"""

import json
import sys
import warnings

import kubernetes_validate  # type: ignore[import-not-found]

warnings.simplefilter("ignore")


def main() -> None:
    asked = json.load(sys.stdin)
    complaints = []
    for version in asked["versions"]:
        for document in asked["documents"]:
            name = f"{version} {document.get('kind')}/{document.get('metadata', {}).get('name')}"
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                complaints.append(f"{name}: {error.message} at {'.'.join(map(str, error.path))}")
            except kubernetes_validate.SchemaNotFoundError:
                complaints.append(f"{name}: no such kind in {document.get('apiVersion')}")
    json.dump(complaints, sys.stdout)


main()

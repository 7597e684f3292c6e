"""The JSON schema of a study, for editors: generated from the typed config, pinned by a test.

python -m upcycle.study.schema        # rewrites workflow/schemas/study.schema.json
"""

from __future__ import annotations

import json
from pathlib import Path

from upcycle.files import write_atomic
from upcycle.study.study import StudyConfig

SCHEMA = Path("workflow") / "schemas" / "study.schema.json"


def schema_text() -> str:
    """The schema as the file holds it."""
    return json.dumps(StudyConfig.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    write_atomic(SCHEMA, schema_text())

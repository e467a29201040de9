"""`python -m contracts.schemas`: writes the schemas beside this file. A test says when they are out of date."""

import json
import sys
from pathlib import Path

from contracts.schemas import documents


def main() -> None:
    folder = Path(__file__).parent
    for name, document in documents().items():
        (folder / name).write_text(written(document), encoding="utf-8")
        sys.stdout.write(f"{folder / name}\n")


def written(document: dict[str, object]) -> str:
    """The text of a document's file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()

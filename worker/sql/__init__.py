"""SQL lives in `.sql` files beside this one: named queries (`verify` has a file of its own) and ordered `migrations/`."""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import takewhile


@cache
def queries(file: str = "queries.sql") -> dict[str, str]:
    """Name → text of every `-- name: …` block of the file."""
    blocks = re.split(r"^-- name: (\w+)\n", (files(__package__) / file).read_text(), flags=re.MULTILINE)
    return dict(zip(blocks[1::2], (text.strip() for text in blocks[2::2]), strict=True))


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `migrations/`: `0001_what_it_does.sql`."""

    version: int
    name: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def summary(self) -> str:
        """The first sentence of the file's first comment."""
        lines = takewhile(lambda line: line.startswith("--"), self.text.splitlines())
        comment = " ".join(line.removeprefix("--").strip() for line in lines)
        return re.split(r"(?<=\.) ", comment, maxsplit=1)[0].rstrip(".")


def migrations() -> list[Migration]:
    """In the order in which they are applied."""
    directory = files(__package__) / "migrations"
    found = [
        Migration(int(matched[1]), matched[2], file.read_text())
        for file in directory.iterdir()
        if (matched := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name))
    ]
    return sorted(found, key=lambda migration: migration.version)

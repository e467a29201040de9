"""Bodies to send instead of a rejected one: from a file, or from an editor."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer

from contracts.json_values import canonical
from worker.cli.terminal import err, fail
from worker.cli.watch import printable
from worker.record import DecodeLimits
from worker.repair import WrongBody, check_body

_LISTED = 20


def read_body(file: str) -> bytes:
    """A file's bytes, or standard input's. Exits 2 where it can't be read."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        fail(f"--patch: expected a file to read, found {file}: {error.strerror}", 2)


def say_violations(wrong: WrongBody) -> None:
    """One line each, on stderr."""
    for one in wrong.violations[:_LISTED]:
        found = printable(canonical(one.found).decode())
        err.print(f"{printable(one.path)}: expected {one.expected}, found {found}", markup=False)
    if wrong.total > _LISTED:
        err.print(f"… and {wrong.total - _LISTED:,} more")


def edit_body(body: bytes, notes: Sequence[str], limits: DecodeLimits) -> bytes:
    """What the editor leaves, checked; the file stays where it is wrong, so that the work isn't lost. Exits 1."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.NamedTemporaryFile("wb", prefix="rejected-", suffix=".json", delete=False) as file:
        for note in notes:
            file.write(f"// {printable(note)}\n".encode())
        file.write(body if body.endswith(b"\n") else body + b"\n")
    path = Path(file.name)
    while True:
        try:
            code = subprocess.call([*shlex.split(editor), str(path)])
        except OSError as error:
            path.unlink()
            fail(f"$EDITOR: expected an editor, found {editor}: {error.strerror}")
        edited = _without_notes(path.read_bytes())
        if code != 0 or edited.strip() == body.strip() or not edited.strip():
            path.unlink()
            fail("the body wasn't changed: nothing was sent (without --edit it is sent as it was)")
        try:
            check_body(edited.strip(), limits)
        except WrongBody as wrong:
            say_violations(wrong)
            if not sys.stdin.isatty() or not typer.confirm("Edit it again?", default=True, err=True):
                path.write_bytes(edited)
                fail(f"the body is wrong: nothing was sent; it is kept in {path} (--patch sends it)")
            continue
        path.unlink()
        return edited.strip()


def _without_notes(text: bytes) -> bytes:
    """The lines at the top that begin with `//`: JSON has no comments."""
    lines = text.splitlines(keepends=True)
    while lines and lines[0].startswith(b"//"):
        del lines[0]
    return b"".join(lines)

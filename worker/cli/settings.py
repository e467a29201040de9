"""`settings`: every setting, its meaning, default and present value."""

import re
from datetime import timedelta
from typing import Annotated, Any

import orjson
import typer
from pydantic import SecretStr
from rich.padding import Padding
from rich.text import Text

from worker.cli.terminal import out
from worker.settings import Settings, load_settings


def settings(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List every setting with its meaning, default and present value (secrets masked).

    Settings come from the environment and from a file .env in the present directory.
    """
    present = load_settings()
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(present, name)
        rows.append(
            {
                "name": name.upper(),
                "value": _shown(value),
                "default": _shown(field.default),
                "set": name in present.model_fields_set,
                "meaning": field.description or "",
            }
        )
    if json:
        print(orjson.dumps({"settings": rows}).decode())
        return
    if not out.is_terminal:
        for row in rows:
            default = "" if row["default"] is None else f" (default: {row['default']})"
            print(f"{row['name']}={row['value'] or ''}  # {row['meaning']}{default}")
        return
    for row in rows:
        line = Text(f"{row['name']}", style="bold" if row["set"] else "")
        line.append(f" = {row['value'] or '(not set)'}", style="green" if row["set"] else "")
        if row["set"] and row["default"] is not None:
            line.append(f"  default {row['default']}", style="dim")
        out.print(line)
        out.print(Padding(Text(str(row["meaning"]), style="dim"), (0, 0, 0, 4)), soft_wrap=False)


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, SecretStr):
        return _without_password(value.get_secret_value())
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
            if seconds >= size and seconds % size == 0:
                return f"{seconds / size:.0f}{unit}"
        return f"{seconds:g}s"
    return str(value)


def _without_password(url: str) -> str:
    """`postgresql://user:***@host/name?password=***`: which database it is helps, the secret doesn't."""
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    place = re.sub(r"(password=)[^&]*", r"\1***", place, flags=re.IGNORECASE)
    return f"{scheme}://{user}{':***' if colon else ''}{at}{place}"

"""`lanes`: how far each partition is applied, and an operator's decisions about one that has stopped."""

import asyncio
import getpass
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
import typer
from aiokafka import TopicPartition

from worker.cli.terminal import out
from worker.database import close, connect
from worker.errors import SettingsError
from worker.lane_decisions import Decision, DecisionResult, decide
from worker.settings import Settings, load_settings
from worker.sql import queries

app = typer.Typer(
    name="lanes",
    no_args_is_help=True,
    add_completion=False,
    help="How far each partition is applied; decide about one that has stopped.",
)

Partition = Annotated[
    str, typer.Argument(metavar="TOPIC/PARTITION", help="for example measurement-updates/0")
]
Why = Annotated[str, typer.Option("--why", help="The reason, kept with your name.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides (default: the present user).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_lanes(json: Json = False) -> None:
    """List the partitions of the input: how far applied and answered, and by whom."""
    rows = asyncio.run(_list(load_settings()))
    if json:
        print(orjson.dumps({"lanes": rows}).decode())
        return
    if not rows:
        out.print("no lane yet: no worker has taken a partition over in this database")
    for row in rows:
        retired = " (retired)" if row["retired"] else ""
        out.print(
            f"{row['topic']}/{row['partition']}{retired}: applied up to {row['next_to_apply']}, answered up to"
            f" {row['next_to_answer']}, {row['duplicates']} duplicates, epoch {row['epoch']},"
            f" last owner {row['owner'] or '-'}",
            markup=False,
        )


@app.command()
def skip(partition: Partition, why: Why, by: By = None, json: Json = False) -> None:
    """Go on without the records that retention has taken before they were applied."""
    _decide(partition, "skip", by, why, json)


@app.command()
def restart(partition: Partition, why: Why, by: By = None, json: Json = False) -> None:
    """Apply what is in the log now as a new log, from its first record on (the topic was deleted and made anew)."""
    _decide(partition, "restart", by, why, json)


@app.command()
def accept(partition: Partition, why: Why, by: By = None, json: Json = False) -> None:
    """Accept records that are stamped ahead of the database's clock, up to the last one in the log now."""
    _decide(partition, "accept", by, why, json)


def _decide(partition: str, decision: Decision, by: str | None, why: str, json: bool) -> None:
    settings = load_settings()
    topic, _, number = partition.rpartition("/")
    if not topic or not number.isdecimal():
        raise SettingsError(f"expected TOPIC/PARTITION, for example measurement-updates/0, found {partition}")
    tp = TopicPartition(topic, int(number))
    decided = asyncio.run(_carry_out(settings, tp, decision, by or getpass.getuser(), why))
    if json:
        print(orjson.dumps({"lane": decided.lane, "decision": decision, "detail": decided.detail}).decode())
    else:
        out.print(f"{partition}: {decided.detail}", markup=False)


async def _carry_out(
    settings: Settings, tp: TopicPartition, decision: Decision, by: str, why: str
) -> DecisionResult:
    connection = await connect(settings.dsn, application="measurement-updates lanes")
    try:
        return await decide(connection, settings, tp, decision, by, why)
    finally:
        await close(connection)


async def _list(settings: Settings) -> Sequence[dict[str, Any]]:
    connection = await connect(settings.dsn, application="measurement-updates lanes")
    try:
        rows = await connection.fetch(queries()["all_lanes"])
    finally:
        await close(connection)
    return [dict(row) for row in rows]

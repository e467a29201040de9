"""The main job, end to end."""

from tests.system import System


async def test_an_update_is_applied_and_answered_with_the_full_model(lab: System) -> None:
    await lab.seed("m-1", notes="before")
    async with lab.worker():
        await lab.update("m-1", {"notes": "vented at 45 °C"}, id="e-1")
        [answer] = await lab.answers()
    assert answer.model["notes"] == "vented at 45 °C"
    assert answer.revision == 1
    assert answer.changed == ["notes"]
    assert (await lab.row("m-1"))["notes"] == "vented at 45 °C"

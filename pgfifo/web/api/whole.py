"""The queue as a whole: what it is, and whether anything starts."""

from __future__ import annotations

from pydantic import Field

import pgfifo
from pgfifo.web.api.actions import Changed
from pgfifo.web.api.routing import CHANGING, new_router
from pgfifo.web.bodies import WhyBody
from pgfifo.web.dependencies import Changing, CurrentSettings, CurrentUser, Fifo
from pgfifo.web.security import How
from pgfifo.web.shapes import Document, Json, answer, one

router = new_router("whole")


class About(Document):
    """What answers here, and for whom it does."""

    version: str = Field(description="The package's version.")
    schema_version: int = Field(description="The schema's version.")
    allow_changes: bool = Field(description="Whether anything can be changed here.")
    user: str = Field(description="Who asks; empty if nobody has to say so.")
    known_by: How = Field(description="How that is known.")


@router.get("/about", summary="What this is", response_model=one(About))
async def about(fifo: Fifo, settings: CurrentSettings, user: CurrentUser) -> Json:
    """Versions, and who asks."""
    return answer(
        {
            "version": pgfifo.__version__,
            "schema_version": (await fifo.schema_info()).version,
            "allow_changes": settings.allow_changes,
            "user": user.name,
            "known_by": user.how,
        }
    )


@router.post("/pause", summary="Pause everything", response_model=one(Changed), responses=CHANGING)
async def pause_everything(fifo: Changing, body: WhyBody | None = None) -> Json:
    """Let nothing more start at all; what is active goes on."""
    return answer({"changed": await fifo.pause_everything(reason=(body or WhyBody()).reason)})


@router.post("/resume", summary="Resume everything", response_model=one(Changed), responses=CHANGING)
async def resume_everything(fifo: Changing) -> Json:
    """End the pause of everything; what is paused by itself stays so."""
    return answer({"changed": await fifo.resume_everything()})

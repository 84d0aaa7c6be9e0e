"""A Celery application, whose workers are forked from the process that imports it."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.servers import application

app = Celery("tasks")
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": os.environ["CELERY_FOLDER"],
        "data_folder_out": os.environ["CELERY_FOLDER"],
        "control_folder": os.environ["CELERY_FOLDER"],
    },
    result_backend=f"file://{os.environ['CELERY_FOLDER']}",
    worker_hijack_root_logger=False,
)


@app.task  # type: ignore[untyped-decorator]
def append() -> dict[str, Any]:
    """Append an event."""
    return application.append()

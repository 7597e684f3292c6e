"""`upcycle forecast`: a forecast is written once, before the runs that it predicts, and vouches for itself."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from upcycle import __version__
from upcycle.errors import UserError, nearest
from upcycle.files import write_atomic
from upcycle.laws.forecast import forecast_losses
from upcycle.laws.tables.losses import collect_losses
from upcycle.manifest import json_bytes, sealed
from upcycle.study.forecast import read_forecast
from upcycle.study.spec import canonical_json
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import REHEARSAL, RESULTS, forecast_path
from upcycle.workflow.rehearsal import planned_losses


def write_forecast(workflow: Workflow, name: str) -> str:
    """Write forecasts/<name>.json and say so; for an existing one, say whether its laws, runs and losses are the same.

    Raises `UserError` for a forecast that the study does not name, if a run that it predicts is finished, and if the
    file that is there was made of other laws, runs or losses, or was altered.
    """
    if name not in workflow.study.forecasts:
        known = list(workflow.study.forecasts)
        raise UserError(f"study `{workflow.study.study}` has no `{name}` under `forecasts`; {nearest(name, known)}")
    asked, runs, plan = workflow.study.forecasts[name], workflow.forecasts[name], workflow.plan
    folders = [RESULTS / "runs" / run_id for run_id in runs.read]
    losses = collect_losses(folders, plan.membership(), plan.names, simulated=REHEARSAL is not None)
    training = dict(zip(losses["id"].tolist(), losses["loss"].tolist(), strict=True))
    made_of: dict[str, Any] = {
        "sweep": asked.sweep,
        "laws": asked.laws,
        "fitted": {run_id: training[run_id] for run_id in runs.fitted},
        "repeated": {run_id: training[run_id] for run_id in runs.repeated},
        "predicted": list(runs.predicted),
    }
    key = hashlib.sha256(canonical_json(made_of).encode()).hexdigest()
    path = Path(forecast_path(workflow.out, name))
    if path.exists():
        return _unchanged(path, key)
    workflow.check_unforeseen(name)
    rows = planned_losses(plan)
    content = {
        "forecast": name,
        "study": plan.study,
        "simulated": REHEARSAL is not None,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "up_to": dict(asked.up_to),
        "waiting": sorted(runs.waiting),
        "made_of": made_of,
        "made_of_sha256": key,
        **forecast_losses(
            losses[losses["id"].isin(runs.fitted)].reset_index(drop=True),
            losses[losses["id"].isin(runs.repeated)].reset_index(drop=True),
            rows[rows["id"].isin(runs.predicted)].reset_index(drop=True),
            list(asked.laws),
        ),
    }
    workflow.check_unforeseen(name)  # nothing may have finished meanwhile
    write_atomic(path, json_bytes(sealed(content)))
    path.chmod(0o444)
    return f"{path}: {len(runs.predicted)} runs forecast from {len(runs.fitted)}, sha256 {key}"


def _unchanged(path: Path, key: str) -> str:
    written = read_forecast(path)
    if written["made_of_sha256"] != key:
        raise UserError(
            f"{path}: written {written['written']} of other laws, runs or losses than there are now, and a forecast is "
            "never overwritten; name a new one under `forecasts`"
        )
    return f"{path}: written {written['written']}, of the same laws, runs and losses (sha256 {key})"

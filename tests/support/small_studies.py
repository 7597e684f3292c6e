"""Studies of one tiny model, to be planned."""

from __future__ import annotations

from upcycle.study.counting import flops_per_token
from upcycle.study.study import StudyConfig


def small_study(sweeps: dict, **changes) -> StudyConfig:
    """A study of these sweeps over model `tiny` and mixture `8x2`; `changes` replace whole sections."""
    return StudyConfig.model_validate(
        {
            "study": "test",
            "data": {"dataset": "english", "vocab_size": 1024},
            "context": 256,
            "execution": {"device": "cpu"},
            "models": {
                "tiny": {
                    "n_layer": 2,
                    "d_model": 64,
                    "n_head": 2,
                    "batch": 8,
                    "warmup_steps": 4,
                    "lr": 8e-3,
                    "lr_moe": 4e-3,
                }
            },
            "moes": {"8x2": {"n_expert": 8, "top_k": 2}},
            "sweeps": sweeps,
        }
        | changes
    )


def dense_study(steps: list[int], longest: int | None = None, **sweep) -> StudyConfig:
    """One dense trunk; a segment of `longest` steps is expected to take the hour that it may."""
    made = small_study({"dense": {"kind": "dense", "model": "tiny", "steps": steps} | sweep})
    if longest is None:
        return made
    step = flops_per_token(made.model_spec("tiny")) * 8 * 256
    limit = {"max_segment_hours": 1, "flops_per_second": (longest + 0.5) * step / 3600}
    return made.model_copy(update={"execution": made.execution.model_copy(update=limit)})

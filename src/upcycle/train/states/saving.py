"""Saving off the critical path: the training thread takes a snapshot, another thread makes it durable.

The snapshot copies weights and moments into buffers that are kept from save to save, so it costs one pass over them.
Hashing, writing, `fsync` and the rename follow in a background thread, beside the next updates, which compute the same
bits with or without it: it only ever touches its own copy. Several processes each save their part (`sharded`); all call
`save` and `wait` at the same steps.

At most one save is under way. A new one waits for it rather than being skipped: `save_seconds` says how much work a
kill may cost, and a disk too slow for it shows up as time lost (`save_seconds` of metrics.json) and not as lost work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from upcycle.model.stacks import own
from upcycle.train.processes.distributed import GLOO
from upcycle.train.processes.preemption import Preempted
from upcycle.train.states import rolling

log = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=30)
"""Longest wait of saving processes for each other. They meet when each has written its part, so the quickest waits as
long as the slowest writes, on whatever disk: 30 minutes are 180 GB a process at 100 MB/s. Longer than training's
(`distributed.TIMEOUT`), whose meetings wait for no disk. A process that is gone ends the others sooner."""


class Saver:
    """Context within which rolling states are saved in the background; its end waits for the last one.

    An error of the background (a full disk) is raised, as it was, by the next `save` or `wait`, or by the context's end
    unless another error is on its way, which is then the one to hear about. Preempted is none: it says "saved".
    """

    def __init__(self) -> None:
        self.step: int | None = None
        """Step of the last state that was handed over."""
        self._buffers: dict[str, Tensor] = {}
        self._processes: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        if dist.is_initialized() and dist.get_world_size() > 1:
            # Apart from the training's collectives, beside which it meets.
            self._processes = dist.new_group(backend=GLOO, timeout=TIMEOUT)
            import upcycle.train.states.sharded  # noqa: F401 (half a second, now rather than when asked to stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None or isinstance(error, Preempted):
                raise
            log.error("the last save failed: %s", failure)

    def save(
        self,
        folder: Path,
        step: int,
        tensors: Mapping[str, Tensor],
        notes: dict[str, Any],
        *,
        before: Callable[[], None],
        after: Callable[[float], None],
    ) -> None:
        """Take a snapshot now; publish it in `folder` soon.

        In the background `before()` comes first (what must be durable before the state is), and `after(seconds)` last,
        with the time that it all took. Raises what the save before raised.
        """
        self.wait()  # the thread of the save before still reads the buffers that the snapshot writes into
        snapshot = self._snapshot(tensors)
        processes = self._processes

        def publish() -> None:
            begun = time.perf_counter()
            try:
                if processes is None:
                    before()
                    rolling.save_rolling(folder, step, snapshot, notes)
                else:
                    from upcycle.train.states import sharded

                    sharded.save_sharded(folder, step, snapshot, notes, processes, before=before)
                after(time.perf_counter() - begun)
            except BaseException as error:  # noqa: BLE001 (raised again by `wait`)
                self._error = error

        self.step = step
        self._thread = threading.Thread(target=publish, name=f"save of step {step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the save under way, if any, is durable; raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            self.step = None
            raise error

    def _snapshot(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies, of what this process holds, in CPU memory that is used again by the next snapshot."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                buffer = self._buffers.get(name)
                if buffer is None:
                    self._buffers[name] = tensor.detach().to("cpu", copy=True)
                else:
                    own(buffer).copy_(own(tensor))
        return {name: self._buffers[name] for name in tensors}

"""The one door to devices and to `tf.distribute`.

A replica is a copy of the model on a device of its own, with its part of each
batch. Without a strategy there is one, and nothing here changes anything. A
worker is a process; each has replicas of its own.
"""

from moco_keras.distribution.batches import (
    ReplicaValues,
    distribute_batch,
    distribute_batches,
    match_replicas,
    predict,
)
from moco_keras.distribution.collectives import (
    all_gather,
    all_reduce_overflow,
    apply_gradients,
    num_replicas,
    replica_slice,
    stack,
)
from moco_keras.distribution.strategies import (
    NAMES,
    check_accumulation,
    check_batch,
    check_scope,
    describe,
    strategy,
)
from moco_keras.distribution.workers import (
    all_reduce_sum,
    barrier,
    broadcast,
    chief_first,
    is_chief,
    is_multi_worker,
    num_workers,
    readable_worker_errors,
    replica_logs,
)

__all__ = [
    "NAMES",
    "ReplicaValues",
    "all_gather",
    "all_reduce_overflow",
    "all_reduce_sum",
    "apply_gradients",
    "barrier",
    "broadcast",
    "check_accumulation",
    "check_batch",
    "check_scope",
    "chief_first",
    "describe",
    "distribute_batch",
    "distribute_batches",
    "is_chief",
    "is_multi_worker",
    "match_replicas",
    "num_replicas",
    "num_workers",
    "predict",
    "readable_worker_errors",
    "replica_logs",
    "replica_slice",
    "stack",
    "strategy",
]

"""What is measured: the benchmarks, and the work and settings of each side."""

_FULL = {"width": 64, "batch_size": 64, "queue_size": 4096, "bn_splits": 1}
_NARROW = {"width": 16, "batch_size": 256, "queue_size": 4096, "bn_splits": 8}
_SERVED = {"encoder": "resnet50", "batch_size": 32}

# By name, the sides: the workload and its settings. The first is compared with
# the others; one alone with the peer's, where that has the same workload.
BENCHMARKS = {
    "step": [{"work": "step", "steps": 4, **_FULL}],
    "step_split": [{"work": "step", "steps": 8, **_NARROW}],
    "limit": [
        {"work": "step", "steps": 4, **_FULL},
        {"work": "supervised", "steps": 4, **_FULL},
    ],
    "limit_split": [
        {"work": "step", "steps": 8, **_NARROW},
        {"work": "supervised", "steps": 8, **_NARROW},
    ],
    "long_queue": [
        {"work": "step", "steps": 4, **_FULL, "queue_size": 65536},
        {"work": "step", "steps": 4, **_FULL},
    ],
    # The same step by two devices, by one, and by two that exchange no images.
    "replicas": [
        {"work": "replicas", "steps": 8, **_NARROW, "replicas": 2},
        {"work": "replicas", "steps": 8, **_NARROW, "replicas": 1},
        {
            "work": "replicas",
            "steps": 8,
            **_NARROW,
            "replicas": 2,
            "shuffle": "split",
        },
    ],
    # Saved forty times as often as once a minute, and not at all.
    "checkpoint": [
        {"work": "saved", "steps": 8, **_FULL, "queue_size": 65536, "every": n}
        for n in ("1 step", None)
    ],
    "augment_32": [{"work": "augment_32", "batch_size": 1024, "cores": 1}],
    "augment_224": [
        {"work": "augment_224", "batch_size": 32, "epochs": 32, "cores": 1}
    ],
    "input_pipeline": [{"work": "input_pipeline", **_NARROW}],
    "end_to_end": [{"work": "end_to_end", **_NARROW, "num_images": 10_000}],
    "more_images": [
        {"work": "end_to_end", **_NARROW, "num_images": n}
        for n in (10_000, 50_000, 1_000_000)
    ],
    "more_files": [
        {"work": "read_files", "batch_size": 256, "num_images": n, "epochs": e}
        for n, e in ((10_000, 20), (50_000, 4), (1_000_000, 1))
    ],
    "momentum_update": [{"work": "momentum_update", "steps": 100, **_FULL}],
    "queue": [
        {"work": "queue", "steps": 20, "batch_size": 256, "queue_size": 65536}
    ],
    "knn": [{"work": "knn", "bank": 50_000, "queries": 2_000}],
    # An export, and its parts without it.
    "serve_encoded": [
        {"work": work, **_SERVED}
        for work in ("serve_encoded", "decode_and_encode")
    ],
    "serve_images": [
        {"work": work, **_SERVED} for work in ("serve_images", "encode_images")
    ],
    "load_export": [{"work": "load_export", **_SERVED}],
    "import": [
        {"work": "import moco_keras"},
        {"work": "import keras"},
        {"work": "cifar10 --help"},
    ],
}
# Whole processes, by what the interpreter is given.
COMMANDS = {
    "import moco_keras": ["-c", "import moco_keras"],
    "import keras": ["-c", "import keras"],
    "cifar10 --help": ["-m", "moco_keras.recipes.cifar10", "--help"],
}
NOT_OF_PEER = {
    "supervised",
    "read_files",
    "replicas",
    "saved",
    "load_export",
    *COMMANDS,
}
# On a GPU the peer does only what ends with a number on the host: nothing else
# waits for the GPU.
ENDS_ON_HOST = {"step", "end_to_end"}

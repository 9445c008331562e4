import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf
import without_keras
from programs import ROOT

from moco_keras import distribution

# Most start processes that train, and many tests take the results of each.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("replicas")]


def start(what, replicas, folder, **env):
    """Starts helpers/replicas.py; returns the process and its folder."""
    folder.mkdir(exist_ok=True)
    program = [sys.executable, str(ROOT / "tests/helpers/replicas.py")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*program, what, str(replicas), str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stderr=log,
        )
    return process, folder


def finish(process, folder):
    """Waits for a process; returns its results by run and name."""
    try:  # replicas that wait for each other wait forever
        code = process.wait(timeout=300)
    finally:
        process.kill()
    assert code == 0, (folder / "log").read_text()
    return dict(np.load(folder / "results.npz"))


def start_workers(what, replicas_of_all, folder):
    """Starts two workers on this host."""
    folder.mkdir(exist_ok=True)
    ports = replicas.free_ports(2)
    return [
        start(
            what,
            replicas_of_all,
            folder / str(i),
            TF_CONFIG=replicas.tf_config(ports, index=i),
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def one(folder):
    return finish(*start("compare", 1, folder / "one"))


@pytest.fixture(scope="module")
def two(folder):
    return finish(*start("compare", 2, folder / "two"))


@pytest.fixture(scope="module")
def four(folder):
    return finish(*start("compare", 4, folder / "four"))


@pytest.fixture(scope="module")
def workers(folder):
    """The results of the first worker, which equal the second's."""
    started = start_workers("compare", 4, folder / "workers")
    first, second = (finish(*worker) for worker in started)
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value, err_msg=key)
    return first


def of_run(results, name):
    """The results of a run, in order, because names of weights count up."""
    return [
        (key, value)
        for key, value in results.items()
        if key == name or key.startswith(f"{name}/")
    ]


def assert_same(results, expected, name):
    wanted = of_run(expected, name)
    names = " ".join(key for key, _ in wanted)
    assert f"{name}/loss" in names and "keys" in names
    pairs = zip(of_run(results, name), wanted, strict=True)
    for (key, value), (_, wanted) in pairs:
        np.testing.assert_allclose(
            value, wanted, rtol=0, atol=1e-5, err_msg=key
        )


@pytest.mark.parametrize(
    ("count", "name"),
    [
        ("two", "plain"),
        ("workers", "plain"),
        ("two", "symmetric v2"),
        ("four", "symmetric v2"),
        ("workers", "symmetric v2"),
    ],
)
def test_replicas_train_as_one_device(one, name, count, request):
    """Losses, weights, key weights, queue, even the views, step by step."""
    assert_same(request.getfixturevalue(count), one, name)


def test_another_method_trains_on_replicas_as_on_one_device(one, two):
    expected = of_run(one, "moco v3")
    assert len(expected) > 10
    for key, value in expected:
        np.testing.assert_allclose(two[key], value, atol=1e-5, err_msg=key)


def test_shuffled_batch_norm_equals_split_batch_norm_of_one_device(one, two):
    assert_same(two, one, "batch norm")


def test_unshuffled_batch_norm_equals_that_of_one_device(one, two):
    assert_same(two, one, "in order")


def test_synchronized_batch_norm_equals_that_of_one_device(one, two):
    assert_same(two, one, "sync")


def test_replicas_stay_identical(two):
    """Even the queue, whose size 50 batches of 16 do not divide."""
    same = of_run(two, "same")
    assert any("keys" in key for key, _ in same)
    for key, value in same:
        assert len(value) == 1 and value.all(), key


@pytest.mark.parametrize(
    "reader", ["exported", "predicted", "exported_by_keras", "extracted"]
)
def test_readers_of_an_interrupted_model_get_the_mean_of_replicas(two, reader):
    before = two[f"interrupted/{reader}/before"]
    assert len(before) == 2 and np.abs(before[0] - before[1]).max() > 1e-3
    for found in np.atleast_2d(two[f"interrupted/{reader}"]):
        np.testing.assert_allclose(found, before.mean(axis=0), rtol=1e-5)


def test_a_read_within_an_epoch_does_not_change_its_mean(two):
    first, second = two["read within"]
    np.testing.assert_array_equal(first, second)


def test_the_encoders_of_replicas_start_with_the_same_state(two):
    query, key = (two[f"normalized/{x}_encoder"] for x in ("query", "key"))
    np.testing.assert_allclose(key, query, rtol=0, atol=1e-5)


def test_shuffling_hides_batch_statistics(four):
    assert four["cheat/none"] > 0.9
    assert four["cheat/replicas"] < 0.25  # a quarter of the batch is shared


def assert_same_draws(results, one):
    expected = of_run(one, "drawn")
    # An order; 4 of a crop, 6 of the jitter, 2 of the blur, 3 others.
    assert len(expected) == 3 * 16
    for (key, value), (_, wanted) in zip(
        of_run(results, "drawn"), expected, strict=True
    ):
        np.testing.assert_allclose(
            value, wanted, rtol=0, atol=1e-6, err_msg=key
        )


def test_draws_of_two_replicas_equal_those_of_one_device(one, two):
    """The draws include the order of shuffling."""
    assert_same_draws(two, one)


def test_draws_of_four_replicas_equal_those_of_one_device(one, four):
    assert_same_draws(four, one)


def test_a_gather_keeps_every_bit(two):
    same = of_run(two, "gathered")
    assert len(same) == 2 * 4 + 1
    for key, value in same:
        assert value.tolist() == [True, True], key


def test_a_gradient_that_overflows_on_one_replica_is_skipped_by_all(one, two):
    for results in (one, two):
        weights, scale = results["overflow/weights"], results["overflow/scale"]
        assert scale[:3].tolist() == [2**10, 2**9, 2**9]
        np.testing.assert_array_equal(weights[1], weights[0])
        assert np.isfinite(weights).all()
        moved = weights[2:] != weights[1:-1]
        assert moved.any(axis=1).all()  # in every later step
    # Processors that add in float16 round more, and batches of other sizes
    # otherwise: 3e-3 was seen on one.
    cpu = Path("/proc/cpuinfo")
    native = cpu.exists() and "avx512_fp16" in cpu.read_text()
    for name in ("weights", "loss"):
        np.testing.assert_allclose(
            two[f"overflow/{name}"],
            one[f"overflow/{name}"],
            rtol=0,
            atol=5e-3 if native else 1e-3,
        )


@pytest.mark.parametrize("name", replicas.SEQUENCES)
def test_the_key_encoder_follows_whatever_users_do(one, two, name):
    """As equation 2 says, on two replicas as on one device."""
    for error, moved, steps in two[f"followed/{name}"]:
        assert error < 1e-6 and moved > 0.1 and steps >= 3
    for key, expected in of_run(one, f"followed/{name}"):
        np.testing.assert_allclose(two[key], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", ["two", "workers"])
def test_held_out_images_have_the_loss_of_one_device(one, count, request):
    results = request.getfixturevalue(count)
    expected = of_run(one, "evaluated")
    assert len(expected) == 6
    for key, value in expected:
        if (count, key) == ("workers", "evaluated/data set"):
            continue  # TensorFlow deals its images out in another order
        np.testing.assert_allclose(
            results[key], value, rtol=0, atol=1e-5, err_msg=key
        )


@pytest.mark.parametrize("count", ["two", "workers"])
def test_the_health_of_replicas_is_that_of_one_device(one, count, request):
    results = request.getfixturevalue(count)
    expected = of_run(one, "health")
    assert len(expected) == 22
    for key, value in expected:
        np.testing.assert_allclose(
            results[key], value, rtol=0, atol=1e-5, err_msg=key
        )


def test_a_step_of_replicas_is_not_compiled(two):
    """Even if requested, or loaded from a file that requests it."""
    (warning,) = two["jit_compile/warning"]
    assert "jit_compile=True" in str(warning)
    for name in ("loaded", "told"):
        assert not two[f"jit_compile/{name}"]
        assert np.isfinite(two[f"jit_compile/{name}/loss"]).all()


def test_the_check_of_a_gpu_has_a_row_for_each_of_these_tests(
    one, two, monkeypatch
):
    """With the results of logical CPUs in place of a GPU's."""
    import gpu  # which imports this module

    results = {1: one, 2: two}
    monkeypatch.setitem(
        globals(), "start", lambda what, replicas, folder: (replicas, folder)
    )
    monkeypatch.setitem(
        globals(), "finish", lambda replicas, folder: results[replicas]
    )
    rows = list(gpu.CHECKS["replicas"].work())
    assert len(rows) >= len(replicas.RUNS) + 1
    for measured, value, passed in rows:
        assert (value, passed) == ("as expected", True), measured


@pytest.fixture(scope="module")
def needs(folder):
    return finish(*start("needs", 2, folder / "needs"))


# A group of its own, which another process may take.
of_needs = pytest.mark.xdist_group("needs")


@of_needs
def test_gpus_have_all_kernels_of_a_step(needs):
    problems = of_run(needs, "problems")
    assert len(problems) == 4
    for key, value in problems:
        assert value.tolist() == [], key


@of_needs
def test_the_next_batch_waits_on_the_right_device(needs):
    wanted, device = needs["where a batch waits"]
    assert device.endswith(wanted.removeprefix("/"))


@of_needs
def test_a_step_has_few_collectives(needs):
    """Two gathers, and one reduction, or two with loss scaling."""
    assert len(of_run(needs, "Gather")) == len(of_run(needs, "Reduce")) == 4
    for key, count in of_run(needs, "Gather"):
        assert count == 2, key
    for key, count in of_run(needs, "Reduce"):
        if "sync" in key:
            # 3 for each batch norm of the network: queries, backward, and keys.
            assert count == 1 + 3 * 6
        else:
            assert count == 1 + ("mixed_float16" in key), key


def test_a_linear_classifier_of_replicas_is_that_of_one_device(one, two):
    for name in ("losses", "kernel"):
        name = f"classifier/{name}"
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_frozen_is_named(two):
    refusal = str(two["classifier/refusal"])
    assert "must stay as it is. Received, after epoch 1" in refusal
    assert str(two["classifier/leak"]) in refusal


def test_workers_wait_for_what_the_chief_prepares(workers):
    assert workers["chief first"]  # of both, because their results are equal


def test_files_of_replicas_load_on_one_device(two, workers, folder, tmp_path):
    """Only one of several workers writes them."""
    images, expected = replicas.make_images(19), {}
    for count, results in {"two": two, "workers": workers}.items():
        (place,) = folder.glob(f"{count}/**/model.keras")
        model = keras.models.load_model(place)
        np.testing.assert_allclose(
            model.predict(images, verbose=0),
            results["predicted"],
            rtol=0,
            atol=1e-5,
        )
        features = keras.Model(
            model.query_encoder.input,
            model.query_encoder.get_layer("features").output,
        )
        expected[str(place.parent / "encoder" / "1")] = features(images)
    files = [tf.io.encode_png(image).numpy() for image in images]
    np.savez(tmp_path / "given.npz", images=images, image_bytes=files)
    served = without_keras.embed(tmp_path / "given.npz", list(expected))
    for name, embedding in served.items():
        wanted = expected[name.split()[0]][: len(embedding)]
        np.testing.assert_allclose(
            embedding, wanted, rtol=0, atol=1e-5, err_msg=name
        )


def test_a_dead_worker_ends_the_others_and_a_restart_resumes(tmp_path):
    """To the bit, from the last checkpoint."""
    (survivor, _), (victim, _) = start_workers("die", 2, tmp_path)
    assert victim.wait(timeout=300) == 9
    assert survivor.wait(timeout=60) == 1
    errors = (tmp_path / "0/log").read_text()
    assert "ConnectionError: All workers must run until the end" in errors
    assert [path.parent.name for path in tmp_path.glob("*/run")] == ["0"]
    saved = sorted(int(p.stem) for p in tmp_path.glob("0/run/*.index"))
    assert saved == [2, 4, 6]  # it died at 8 of 15, within an epoch

    restarted = [finish(*w) for w in start_workers("survive", 2, tmp_path)]
    assert (tmp_path / "0/run/000000015.index").exists()
    for results in restarted:
        assert [results[f"steps of {x}"] for x in ("rest", "whole")] == [9, 15]
        rest, whole = of_run(results, "rest"), of_run(results, "whole")
        assert len(whole) > 10
        for (key, value), (_, expected) in zip(rest, whole, strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=key)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("indivisible", "batch_size=15, 2 replicas. 16 would do."),
        ("unequal", "drop_remainder=True"),
        ("queue", "queue_size=8, keys of one step=16"),
        ("steps", "steps_per_execution=2"),
        ("compiled", "The optimizer must be made in the scope"),
        ("built", "The model must be made in the scope"),
    ],
)
def test_bad_input_is_refused(two, name, expected):
    assert expected in str(two[f"complaint/{name}"])


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="'mirrord'"):
        distribution.strategy("mirrord")


def test_a_strategy_of_workers_must_be_made_first(monkeypatch):
    tf.constant(0)
    config = replicas.tf_config(replicas.free_ports(1))
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(RuntimeError, match="first in the program"):
        distribution.strategy()


def test_a_tpu_strategy_needs_a_tpu(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(RuntimeError, match="A TPU must be attached"):
        distribution.strategy("tpu")


def test_one_worker_is_the_chief():
    assert distribution.is_chief(distribution.strategy("none"))
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver
    spec = tf.train.ClusterSpec
    for jobs, task, expected in (
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), True),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("chief", 0), True),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("worker", 0), False),
    ):
        strategy = mock.create_autospec(
            tf.distribute.MultiWorkerMirroredStrategy, instance=True
        )
        strategy.cluster_resolver = resolver(spec(jobs), "", *task)
        assert distribution.is_chief(strategy) is expected

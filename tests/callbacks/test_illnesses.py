"""Planted illnesses are named, and healthy runs raise no alarm."""

import illnesses
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shallow_networks")]


@pytest.fixture(params=["textures", "cifar10"])
def images(request):
    if request.param == "cifar10":
        request.getfixturevalue("cifar10_dir")
    return illnesses.read(request.param)


@pytest.mark.parametrize("name", illnesses.ILLNESSES)
def test_a_planted_illness_is_named_in_time(name, images):
    _, right, latest = illnesses.ILLNESSES[name]
    # Later epochs only add alarms of later epochs.
    planted = illnesses.planted(name, images)
    monitor = illnesses.run(epochs=latest, **planted)
    told = {alarm.kind: alarm.epoch for alarm in monitor.alarms}
    in_time = {kind for kind, epoch in told.items() if epoch <= latest}
    assert right & in_time, told


@pytest.mark.parametrize("settings", illnesses.HEALTHY, ids=str)
def test_a_healthy_run_raises_no_alarm(settings, images):
    monitor = illnesses.run(images, **settings)
    assert monitor.alarms == []

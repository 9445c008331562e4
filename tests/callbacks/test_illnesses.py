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
def test_a_planted_illness_is_named_in_three_epochs(name, images):
    monitor = illnesses.run(**illnesses.planted(name, images))
    _, right = illnesses.ILLNESSES[name]
    found = {alarm.kind: alarm.epoch for alarm in monitor.alarms}
    assert right & found.keys(), found
    assert max(found.values()) <= illnesses.EPOCHS


@pytest.mark.parametrize("settings", illnesses.HEALTHY, ids=str)
def test_a_healthy_run_raises_no_alarm(settings, images):
    monitor = illnesses.run(images, **settings)
    assert monitor.alarms == []

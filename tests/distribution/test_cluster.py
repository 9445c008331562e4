import socket
import threading
import time

import pytest
from replicas import free_ports
from replicas import tf_config as config

from moco_keras.distribution import cluster


@pytest.fixture
def ports():
    return free_ports(2)


def greet(listener, after, word=b"\0\0\x18\x04\0\0\0\0\0"):
    """Answers after some seconds, by default like TensorFlow's server."""
    time.sleep(after)
    connection, _ = listener.accept()
    with connection:
        connection.sendall(word)


def test_workers_wait_for_each_other(ports, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(ports))
    with socket.create_server(("", ports[1])) as late:
        other = threading.Thread(target=greet, args=(late, 1))
        other.start()
        start = time.monotonic()
        cluster.join(seconds=30)
        assert time.monotonic() - start > 0.9
        other.join()
    socket.create_server(("", ports[0])).close()  # free for TensorFlow


def test_a_waiting_worker_greets_the_others(ports, monkeypatch):
    """For as long as it waits itself."""
    monkeypatch.setenv("TF_CONFIG", config(ports))
    waiting = threading.Thread(target=cluster.join, args=(30,))
    waiting.start()
    for _ in range(3):
        connection = connect(ports[0])
        with connection:
            hello = connection.recv(100).decode()
            assert hello.startswith(f"worker localhost:{ports[0]} of ")
    with socket.create_server(("", ports[1])) as late:
        greet(late, after=0)
        waiting.join()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", ports[0]))


def connect(port):
    for _ in range(100):
        try:
            return socket.create_connection(("localhost", port), 5)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise TimeoutError


@pytest.mark.parametrize("word", [b"SSH-2.0-OpenSSH_9.2", b"worker a:1 of 12"])
def test_something_else_is_not_a_worker(word, ports, monkeypatch):
    """Another program, or a worker with another address."""
    monkeypatch.setenv("TF_CONFIG", config(ports))
    with socket.create_server(("", ports[1])) as stranger:
        other = threading.Thread(target=greet, args=(stranger, 0, word))
        other.start()
        with pytest.raises(ConnectionError, match=word.decode()):
            cluster.join(seconds=0)
        other.join()


def test_a_host_that_sends_nothing_is_not_a_worker(ports, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(ports))
    with socket.create_server(("", ports[1])):
        with pytest.raises(ConnectionError, match=f"{ports[1]} .timed out"):
            cluster.join(seconds=0)


def test_a_single_worker_does_not_wait(ports, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(ports[:1]))
    cluster.join(seconds=0)


@pytest.mark.parametrize("host", ["localhost", "no.invalid", "a..b"])
def test_a_dead_host_is_named(host, ports, monkeypatch):
    dead = f"{host}:{ports[1]}"
    monkeypatch.setenv("TF_CONFIG", config(ports[:1], chief=[dead]))
    with pytest.raises(ConnectionError, match=rf"within 0.5 s: {dead} \("):
        cluster.join(seconds=0.5)


def test_a_taken_port_is_named(ports, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(ports))
    with socket.create_server(("", ports[0])):
        with pytest.raises(ConnectionError, match=f"localhost:{ports[0]}"):
            cluster.join(seconds=0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[]", "must be JSON"),
        ('{"cluster": {"worker": ["a:1"]}}', "KeyError: 'task'"),
        (config([1], index=1), "IndexError"),
        (config([1], index="first"), "ValueError"),
        (config([1], index=-1), "from 0"),
        (config([1], kind="chief"), "KeyError: 'chief'"),
        (config([1], kind="ps", ps=["host:1"]), "must name workers"),
        (config([1], chief="host:1"), "must be JSON"),
        (config(["x"]), "must be JSON"),
        (config([0]), "a port from 1 to 65535"),
        (config([1, 1]), "an address of its own"),
        (config([1], chief=[":2"]), "a host and a port"),
    ],
)
def test_malformed_tf_config(text, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG") as caught:
        cluster.join()
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)

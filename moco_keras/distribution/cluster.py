"""Checks of TF_CONFIG, where TensorFlow would wait for other hosts forever."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import socket
import threading
import time

_EXAMPLE = (
    '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


def join(seconds=45):
    """Waits until every host that TF_CONFIG names runs this too.

    Args:
        seconds: that the others have to come up.

    Raises:
        ValueError: if TF_CONFIG is not what TensorFlow needs.
        ConnectionError: if a host cannot be reached in time, or the port of
            this one is taken.
    """
    addresses, own = parse(os.environ.get("TF_CONFIG", ""))
    port = int(own.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
        )
    except OSError as error:
        raise ConnectionError(
            f"The port of this worker must be free. Received: {own}, of "
            f"TF_CONFIG, where {error.strerror}. End the program that uses it, "
            "perhaps an earlier run, or choose another port for all workers."
        ) from None
    hello = _hello(own, addresses)
    greeter = threading.Thread(target=_greet, args=(listener, hello))
    greeter.daemon = True
    greeter.start()
    try:
        _reach(addresses, own, seconds)
    finally:
        # Whoever has seen all continues, and TensorFlow listens in its place.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        greeter.join(timeout=1)
        listener.close()


def _hello(address, addresses):
    """What a worker says to those of its own cluster."""
    cluster = hashlib.sha256(" ".join(sorted(addresses)).encode()).hexdigest()
    return f"worker {address} of {cluster[:12]}\n".encode()


def _greet(listener, hello):
    """Says hello to whoever connects, until the listener is shut down."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(hello)


def _reach(addresses, own, seconds):
    deadline = time.monotonic() + seconds
    waiting = [a for a in addresses if a != own]
    while waiting:
        with concurrent.futures.ThreadPoolExecutor(len(waiting)) as pool:
            answers = pool.map(lambda a: _failure(a, addresses), waiting)
            reasons = dict(zip(waiting, answers, strict=True))
        waiting = [a for a in waiting if reasons[a]]
        if waiting and time.monotonic() > deadline:
            unreached = ", ".join(f"{a} ({reasons[a]})" for a in waiting)
            raise ConnectionError(
                "All workers that TF_CONFIG names must run. Could not reach "
                f"within {seconds} s: {unreached}. Start the program there "
                "too, or take the host out of every worker's TF_CONFIG."
            )
        time.sleep(0.2 if waiting else 0)


def _failure(address, addresses):
    """Why this cluster's worker does not answer; None where it does."""
    host, _, port = address.rpartition(":")
    try:
        target = host.strip("[]"), int(port)
        with socket.create_connection(target, timeout=2) as connection:
            # Some networks connect to hosts that are not there.
            answer = connection.recv(1024)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    # A frame of settings is how TensorFlow's own server begins.
    if answer == _hello(address, addresses) or answer[3:5] == b"\x04\x00":
        return None
    return f"something else answers there: {answer[:80]!r}"


def parse(text):
    """Reads a TF_CONFIG: the addresses of all workers, and that of this one.

    Raises:
        ValueError: if it is malformed.
    """
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        addresses = [a for workers in jobs.values() for a in workers]
        own = jobs[task["type"]][int(task["index"])]
        ports = [int(a.rpartition(":")[2]) for a in addresses]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise ValueError(
            f"TF_CONFIG must be JSON such as '{_EXAMPLE}', with the address of "
            "every worker, and this one's place among them, from 0. Received: "
            f"{text!r} ({type(e).__name__}: {e})."
        ) from None
    if not set(jobs) <= {"chief", "worker"} or int(task["index"]) < 0:
        raise ValueError(
            "TF_CONFIG must name workers, one of which may be called chief, "
            f"and this one's place among them, from 0. Received: {text!r}."
        )
    if (
        len(set(addresses)) < len(addresses)
        or not all(a.rpartition(":")[0] for a in addresses)
        or not all(0 < port < 65536 for port in ports)
    ):
        raise ValueError(
            "TF_CONFIG must give every worker an address of its own, a host "
            f"and a port from 1 to 65535. Received: {text!r}."
        )
    return addresses, own

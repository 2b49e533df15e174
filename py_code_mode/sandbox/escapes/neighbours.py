"""Other sessions of the same host: their variables, files, sockets, packages and processes."""

from __future__ import annotations

import importlib
import os
import signal
import socket

from .attempt import FACTS, Contained, attack, call, read


@attack
def read_a_file_of_another_session() -> object:
    return read(os.path.join(FACTS["neighbour_workdir"], "neighbours-file"))


@attack
def read_a_temporary_file_of_another_session() -> object:
    return read("/tmp/neighbours-file")


@attack
def read_shared_memory_of_another_session() -> object:
    return read("/dev/shm/neighbours-file")


@attack
def attach_shared_memory_of_another_session() -> object:
    from multiprocessing.shared_memory import SharedMemory

    found = SharedMemory("neighbours-memory")
    return bytes(found.buf or b"")[:20]


@attack
def read_the_home_of_another_session() -> object:
    return read(os.path.expanduser("~/neighbours-file"))


@attack
def connect_to_an_abstract_socket_of_another_session() -> object:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect("\0neighbours-socket")
        return "connected"


@attack
def connect_to_a_port_of_another_session() -> object:
    with socket.create_connection(("127.0.0.1", FACTS["neighbour_port"]), timeout=0.7):
        return "connected"


@attack
def import_a_package_of_another_session() -> object:
    importlib.invalidate_caches()
    try:
        return importlib.import_module("neighbours_package")
    except ModuleNotFoundError as error:
        raise Contained(str(error)) from None


@attack
def list_the_packages_of_all_sessions() -> object:
    found = os.listdir("/overlays")
    if found:
        return found
    raise Contained("an empty folder")


@attack
def uncover_the_packages_of_all_sessions() -> object:
    return call(166, b"/overlays", 2)


@attack
def open_the_folder_of_all_sessions_files() -> object:
    found = os.listdir("/session")
    if found:
        return found
    raise Contained("an empty folder")


@attack
def find_the_process_of_another_session() -> object:
    return read(f"/proc/{FACTS['neighbour']}/environ")


@attack
def kill_the_process_of_another_session() -> object:
    os.kill(FACTS["neighbour"], signal.SIGKILL)
    return "killed"


@attack
def guess_what_others_are_given_by_chance() -> object:
    """Sessions are copies: their random numbers must not be."""
    import random
    import uuid

    seen = f"{random.getrandbits(128):x} {uuid.uuid4().hex}"
    if any(word in FACTS["neighbour_random"] for word in seen.split()):
        return seen
    raise Contained("numbers of its own")

"""Readers that do what no reader must, each with whatever is not the valid file: the campaign has to notice."""

import os
import signal
import time

import numpy as np

from fuzz_files.child import Reader

VALID = b"valid"


def prepare(folder):
    (folder / "file").write_bytes(VALID)
    return [VALID]


def reading(act):
    """A reader that does something to whatever is not the valid file."""

    def read(folder):
        path = folder / "file"
        if path.read_bytes() != VALID:
            act(path)

    return Reader("file", prepare, read)


def hang(path):
    time.sleep(60)


def hang_in_python(path):
    while True:
        pass


def allocate(path):
    bytearray(3 << 30)


def allocate_in_secret(path):
    try:
        np.zeros(3 << 30, np.uint8)
    except MemoryError as error:
        raise ValueError(f"{path}: damaged") from error


def forget_the_name(path):
    raise ValueError("something is wrong")


def leave_a_file(path):
    path.with_name("file.part").touch()


def change(path):
    path.write_bytes(VALID)


LEFT_OPEN = []


def leave_open(path):
    LEFT_OPEN.append(open(path, "rb"))


def refuse(path):
    raise ValueError(f"{path}: expected another file")


READERS = {
    "hangs": reading(hang),
    "loops": reading(hang_in_python),
    "allocates": reading(allocate),
    "allocates-in-secret": reading(allocate_in_secret),
    "raises": reading(lambda path: {}["missing"]),
    "names-nothing": reading(forget_the_name),
    "leaves": reading(leave_a_file),
    "changes": reading(change),
    "leaves-open": reading(leave_open),
    "dies": reading(lambda path: os.kill(os.getpid(), signal.SIGSEGV)),
    "exits": reading(lambda path: os._exit(0)),
    "refuses": reading(refuse),
}

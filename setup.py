"""Build: the compiled kernels where there is a C++ compiler, pure Python (Numba kernels) where there is none."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup


def compiler_works() -> bool:
    """Whether a C++ compiler is here that can build a program; says so in one line if not."""
    if os.environ.get("FASTRNN_NO_EXTENSION"):
        reason = "FASTRNN_NO_EXTENSION is set"
    elif sys.platform == "win32":
        return True  # CMake finds Visual Studio by itself, outside PATH
    else:
        named = os.environ.get("CXX", "").split()
        compiler = named or next(([path] for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), [])
        reason = "no C++ compiler was found"
        if compiler:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "probe.cpp")
                source.write_text("#include <atomic>\nint main() { std::atomic<int> a{0}; return a.load(); }\n")
                command = [*compiler, "-std=c++20", str(source), "-o", str(Path(folder, "probe"))]
                try:
                    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                        return True
                    reason = f"{compiler[0]} cannot compile C++20"
                except OSError as error:
                    reason = f"{compiler[0]} does not start ({error})"
    print(f"✗ C++: {reason}. fastrnn is installed without compiled kernels and runs on Numba.", flush=True)
    return False


packages = ["fastrnn.bench", *find_packages(include=["fastrnn", "fastrnn.*"])]
extension = {"cmake_source_dir": "."} if compiler_works() else {}
setup(packages=packages, package_dir={"fastrnn.bench": "bench"}, **extension)

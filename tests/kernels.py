"""Print the kind of CPU and the kernels that the numerical libraries choose on it.

The last bits of a product depend on both, so these lines explain a test that fails on one machine only."""
import os
import subprocess
import sys

import numpy as np
import scipy.linalg  # noqa: F401  loads its own OpenBLAS
from cryptolstm.core.machine import cores, cpu_kind
from threadpoolctl import threadpool_info

PRODUCT = "import tensorflow as tf; tf.matmul(tf.ones([64, 64]), tf.ones([64, 64]))"


def onednn() -> str:
    "Instruction set that oneDNN, TensorFlow's matrix library, uses."
    env = {**os.environ, "ONEDNN_VERBOSE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    lines = subprocess.run(
        [sys.executable, "-c", PRODUCT], env=env, capture_output=True, text=True
    ).stdout.splitlines()
    return next(
        (line.rpartition("isa:")[2] for line in lines if "cpu,isa:" in line),
        "not used for this product (Eigen is)",
    )


def kernels() -> dict[str, str]:
    "Library and instruction set; oneDNN is left out because querying it takes seconds."
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    blas = {i["version"]: i["architecture"] for i in threadpool_info() if i.get("internal_api") == "openblas"}
    return {
        "CPU": f"{cpu_kind()}; {cores()} cores",
        "NumPy": ", ".join([*simd.get("baseline", ()), *simd.get("found", ())]),
        **{f"OpenBLAS {version}": str(architecture) for version, architecture in blas.items()},
    }


if __name__ == "__main__":
    for name, said in {**kernels(), "oneDNN": onednn()}.items(): print(f"{name}: {said}")

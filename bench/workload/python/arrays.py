"""arrays: NumPy with a gibibyte of state and BLAS threads.

Usage: arrays.py [--mib N] [--steps N]

Each step multiplies two matrices (in the threads of BLAS), folds the product
into one of the arrays that make up the state, and prints "step N". At the end
it prints "result DIGEST", over all of the state.
"""

import argparse
import hashlib

import numpy as np

ORDER = 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024, help="size of the state")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()

    rng = np.random.default_rng(20)
    blocks = args.mib * 1024 * 1024 // (ORDER * ORDER * 8)
    # Numbers as measurements are: few significant bits, so that they compress.
    state = [np.round(rng.standard_normal((ORDER, ORDER)), 2) for _ in range(blocks)]
    turn = np.linalg.qr(rng.standard_normal((ORDER, ORDER)))[0]

    for step in range(1, args.steps + 1):
        a, b = state[step % blocks], state[step * 7 % blocks]
        a += 0.01 * (b @ turn)
        print("step", step, flush=True)

    digest = hashlib.sha256()
    for block in state:
        digest.update(block)
    print("result", digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main()

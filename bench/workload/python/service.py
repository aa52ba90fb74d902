"""service: a model in NumPy arrays that answers requests.

Usage: service.py [--mib N]

Prints "ready", then waits for SIGUSR1. Each answers one request: one sixteenth
of the model is multiplied with a vector, and "step N end_ns=T" is printed, T by
the real-time clock, with the answer after it.
"""

import argparse
import signal
import time

# Before NumPy starts the threads of BLAS, which would die of the signal.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

import numpy as np

WIDTH = 1024
BLOCKS = 16


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256, help="size of the model")
    args = parser.parse_args()

    rng = np.random.default_rng(7)
    height = args.mib * 1024 * 1024 // (BLOCKS * WIDTH * 4)
    # Weights as trained ones are stored: few significant bits.
    model = [np.round(rng.standard_normal((height, WIDTH)), 2).astype(np.float32) for _ in range(BLOCKS)]
    names = {"row-%d" % i: i for i in range(20000)}
    vector = np.ones(WIDTH, dtype=np.float32)

    print("ready", flush=True)
    request = 0
    while True:
        signal.sigwait([signal.SIGUSR1])
        request += 1
        answer = model[names["row-%d" % request] % BLOCKS] @ vector
        print("step", request, "end_ns=%d" % time.time_ns(), "answer", float(answer[0]), flush=True)


if __name__ == "__main__":
    main()

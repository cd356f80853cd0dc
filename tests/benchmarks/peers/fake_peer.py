"""An engine in a few lines of Python, for tests of the driver. The variant says how it behaves."""

import json
import os
import sys
import time


class Peer:
    def __init__(self, variant):  # type: ignore[no-untyped-def]
        self.version = "7"
        self.variant = variant

    def prepare(self, checkpoint, scratch):  # type: ignore[no-untyped-def]
        if self.variant == "unfit":
            raise ValueError("no such\nmodel")
        with open(os.path.join(scratch, "converted"), "w") as file:
            json.dump({"from": checkpoint, "process": os.getpid()}, file)

    def load(self, checkpoint, scratch, threads):  # type: ignore[no-untyped-def]
        with open(os.path.join(scratch, "converted")) as file:
            converted = json.load(file)
        assert converted["from"] == checkpoint
        assert converted["process"] != os.getpid()
        assert os.environ["OMP_NUM_THREADS"] == str(threads)
        self.calls = 0
        self.awake = time.monotonic()

    def generate(self, sources, new, beams):  # type: ignore[no-untyped-def]
        print("chatter that must not reach the driver")
        if self.variant == "hangs":
            time.sleep(60)
        self.calls += 1
        if self.variant == "dies" and self.calls == 3:
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(3)
        if self.variant == "slow":
            time.sleep(0.2)
        if self.variant == "dozes" and time.monotonic() - self.awake > 0.08:
            time.sleep(0.3)
        self.awake = time.monotonic()
        return [[1] * new for _ in sources]

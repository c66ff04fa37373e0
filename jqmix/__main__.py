"""``python -m jqmix`` and the ``jqmix`` command: signals are taken before anything slow is imported."""

import gc
import sys

from jqmix.interrupts import take_over_process


def main() -> int:
    take_over_process()
    gc.set_threshold(50_000, 20, 20)  # tracing makes millions of objects that live on: look for what is dead less often
    from jqmix.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())

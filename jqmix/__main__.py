"""``python -m jqmix`` and the ``jqmix`` command: signals are taken before anything slow is imported."""

import sys

from jqmix.interrupts import take_over_process


def main() -> int:
    take_over_process()
    from jqmix.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())

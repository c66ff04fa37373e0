"""What only a chip itself can say: whether our kernels come out right on it, and how far the model of its time is off.

python benchmarks/on_chip.py kernels    # on a GPU: what each proof says, and its seconds
python benchmarks/on_chip.py model --chip h100 [--preset smax_published] [--seeds 1 16] [--set FIELD=VALUE …]

``model`` times whole iterations that learn, and compares them with the forecast (``jqmix bench --target``) for the
very program that ran: its launches, bytes and products with the constants of ``jqmix/chips/catalogue.py``.
``seconds_per_launch`` is what that constant would have to be, were launches all that takes time. Off the chip both run,
and say nothing of it.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from measure import Training, fields, forecast_of, kernel_proofs, write

from jqmix.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="kernels | model")
    commands.add_parser("kernels").set_defaults(run=kernels)
    model_command = commands.add_parser("model")
    model_command.add_argument("--chip", default="h100", help="whose constants are taken (h100)")
    model_command.add_argument("--preset", default="smax_published")
    model_command.add_argument("--seeds", type=int, nargs="+", default=[1, 16])
    model_command.add_argument("--repeats", type=int, default=3, help="timed calls, of which the median counts (3)")
    model_command.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="changes the preset")
    model_command.set_defaults(run=model)
    for command in commands.choices.values():
        command.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    args.run(args)


def kernels(args: argparse.Namespace) -> None:
    rows = {}
    for name, proof in kernel_proofs().items():
        begin = time.perf_counter()
        found = proof()
        rows[name] = {"trouble": found, "seconds": time.perf_counter() - begin}
        print(f"{name:32} {rows[name]['seconds']:6.2f} s   {found or 'right'}")
    write(args.json, rows)


def model(args: argparse.Namespace) -> None:
    rows = {}
    for seeds in args.seeds:
        row = _measured(args, seeds)
        rows[str(seeds)] = row
        print(
            f"{args.preset} {seeds:3} seeds: measured {1e3 * row['measured_s']:.2f} ms an iteration, predicted "
            f"{1e3 * row['predicted_s']:.2f}, ratio {row['predicted_over_measured']:.2f}; {row['launches']:,} launches"
        )
    write(args.json, {"preset": args.preset, "constants_of": args.chip, "seeds": rows})


def _measured(args: argparse.Namespace, seeds: int) -> dict[str, Any]:
    cfg = load_config(args.preset, **({"seeds": seeds, "eval.episodes": 1} | fields(args.set)))
    training = Training(cfg)
    training.until_learning()
    seconds = median(training.training_call() for _ in range(args.repeats)) / training.iterations
    found = forecast_of(training.text(), args.chip)
    return {
        "measured_s": seconds,
        "predicted_s": found["total"]["seconds"],
        "predicted_over_measured": found["total"]["seconds"] / seconds,
        "launches": found["total"]["launches"],
        "seconds_per_launch": seconds / found["total"]["launches"],
        "parts": found["parts"],
        **training.costs,
    }


if __name__ == "__main__":
    main()

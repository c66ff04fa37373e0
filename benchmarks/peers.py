"""jqmix beside JaxMARL, on the same work and in the same call.

python benchmarks/peers.py speed --jaxmarl CLONE [--case smax_3m] [--hidden 64]      # whole QMIX training
python benchmarks/peers.py learning --jaxmarl CLONE --algorithm pqn_vdn --hidden 64 --seeds 3 --total-steps 2000000
python benchmarks/peers.py compiled --jaxmarl CLONE [--target h100] [--case smax_2s3z] [--seeds 1 16]  # no chip needed
python benchmarks/peers.py smax [--maps 3m 2s3z] [--batches 16 64 256]               # the environment alone

``CLONE`` is a clone of JaxMARL's repository; its programs are run as they are and need flashbax and six. Every
program runs in a process of its own. See ``peers_speed.py``, ``peers_learning.py``, ``peers_compiled.py`` and
``peers_smax.py`` for what is compared.
"""

import argparse
from pathlib import Path

import peers_compiled
import peers_learning
import peers_smax
import peers_speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="speed | learning | compiled | smax")
    modules = {"speed": peers_speed, "learning": peers_learning, "compiled": peers_compiled, "smax": peers_smax}
    for name, module in modules.items():
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.add_argument("--json", type=Path, help="write the result here, too")
        command.set_defaults(run=module.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

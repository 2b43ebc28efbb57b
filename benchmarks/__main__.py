"""`python -m benchmarks NAME [options]`: measures one thing and prints it; `plot` draws what others printed."""

import argparse
import logging

from . import align_step, dense_step, feature_cache, gpu, loader, memory, methods, plot, shots, sinkhorn

BENCHMARKS = {
    "align_step": align_step,
    "dense_step": dense_step,
    "feature_cache": feature_cache,
    "gpu": gpu,
    "loader": loader,
    "memory": memory,
    "methods": methods,
    "plot": plot,
    "shots": shots,
    "sinkhorn": sinkhorn,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").split("\n", 1)[0]
        module.add_arguments(choices.add_parser(name, help=summary, description=module.__doc__))
    arguments = parser.parse_args()
    logging.getLogger("transport.sinkhorn").setLevel(logging.ERROR)  # some ask for more than can converge
    BENCHMARKS[arguments.name].run(arguments)


if __name__ == "__main__":
    main()

"""Run every benchmark that the device at hand can run, one after the other.

    python benchmarks                   all of them, an hour or more
    python benchmarks --quick           a first look; writes nothing
    python benchmarks flash --device cpu

Options go to each script that knows them; each can also be called alone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {  # with the options that each knows
    "multi_head": {"--quick", "--device", "--rounds"},
    "layer": {"--quick", "--device", "--rounds"},
    "flash": {"--quick", "--device", "--rounds"},
    "flash_cpp": {"--quick", "--rounds"},
    "decode": {"--quick", "--device", "--rounds"},
    "small_gpt": {"--quick"},
    "context_parallel": {"--quick", "--rounds"},
    "site": {"--quick"},
}


def main() -> int:
    """Run them, and give 1 if any failed."""
    options = arguments()
    names = options.names or list(SCRIPTS)
    given = {"--device": options.device, "--rounds": options.rounds}
    failed = []
    for number, name in enumerate(names, start=1):
        command = [sys.executable, str(HERE / f"{name}.py")]
        command += ["--quick"] * options.quick
        for option, value in given.items():
            if value is not None and option in SCRIPTS[name]:
                command += [option, value]
        print(f"== {number}/{len(names)}: {name} ==", flush=True)
        if code := subprocess.run(command, check=False).returncode:
            failed.append(name)
            print(f"{name} did not finish: exit code {code}", flush=True)
    return bool(failed)


def arguments() -> argparse.Namespace:
    """The options of the command line; a misfit ends the program with a message."""
    summary, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python benchmarks",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--quick", action="store_true", help="less, nothing written")
    parser.add_argument("--device", help="cpu or cuda (default: all there)")
    parser.add_argument("--rounds", help="samples of each contender")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCRIPTS):
        got = ", ".join(sorted(unknown))
        parser.error(f"names: expected some of {', '.join(SCRIPTS)}, got {got}")
    return options


if __name__ == "__main__":
    sys.exit(main())
